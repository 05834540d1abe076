"""Code that fixes sizes by hand, such as ``x.view(-1, 64, 8, 8)``: found by running a reduced network.

What such a line computes, and what it reads, stays as wide as it is.
"""

from __future__ import annotations

import linecache
import traceback
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import nn

from shifter.models.export import Origin

_TORCH = str(Path(torch.__file__).parent)
_DOMAIN = "shifter.kept"


@dataclass(frozen=True)
class Line:
    """A line of a network's code.

    Args:
        module: name of the module whose code it is; empty for the network itself.
    """

    file: str
    number: int
    module: str

    @property
    def text(self) -> str:
        """Its source; empty where that is not at hand."""
        return linecache.getline(self.file, self.number).strip()

    def __str__(self) -> str:
        return f"{self.file}:{self.number}: {self.text or '(source not at hand)'}"


def failing_lines(error: Exception, network: nn.Module) -> list[Line]:
    """The lines of ``network``'s code that led to ``error``, the innermost first."""
    names = {id(part): name for name, part in network.named_modules()}
    found: list[Line] = []
    module = ""
    for frame, number in traceback.walk_tb(error.__traceback__):
        module = names.get(id(frame.f_locals.get("self")), module)
        if frame.f_code.co_filename != __file__ and (found or id(frame.f_locals.get("self")) in names):
            found.append(Line(frame.f_code.co_filename, number, module))
    return found[::-1]


def own_line(lines: Collection[Line]) -> Line | None:
    """The first that is not torch's; the first at all if there is none."""
    own = [line for line in lines if not line.file.startswith(_TORCH)]
    return next(iter([*own, *lines]), None)


def operators_at(
    lines: Collection[Line], origins: Mapping[str, Origin], kept: Collection[str]
) -> tuple[Line, frozenset[str]] | None:
    """The first line that operators of the graph come from which are not ``kept`` yet, and those."""
    for line in lines:
        new = frozenset(_from(line, origins)) - set(kept)
        if new:
            return line, new
    return None


def _from(line: Line, origins: Mapping[str, Origin]) -> Iterator[str]:
    inner = f"{line.module}." if line.module else ""
    for name, origin in origins.items():
        within = origin.module == line.module or origin.module.startswith(inner)
        if within and (line.file, line.number) in origin.lines:
            yield name


def readers(architecture: bytes, weights: Collection[str]) -> frozenset[str]:
    """Names of the operators that read one of these weights."""
    graph = onnx.ModelProto.FromString(architecture).graph
    return frozenset(node.name for node in graph.node if set(node.input) & set(weights))


def keep(architecture: bytes, operators: Collection[str]) -> bytes:
    """An architecture for planning only, in which these operators are unknown: nothing changes there."""
    if not operators:
        return architecture
    model = onnx.ModelProto.FromString(architecture)
    for node in model.graph.node:
        if node.name in operators:
            node.domain = _DOMAIN
    model.opset_import.append(onnx.helper.make_opsetid(_DOMAIN, 1))
    kept: bytes = model.SerializeToString(deterministic=True)
    return kept
