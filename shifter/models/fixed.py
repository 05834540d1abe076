"""Code that fixes sizes by hand, such as ``x.view(-1, 64, 8, 8)``: found by running a reduced network.

What such a line computes, and what it reads, stays as wide as it is.
"""

from __future__ import annotations

import linecache
import traceback
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import nn

from shifter.models.export import Origin

_TORCH = str(Path(torch.__file__).parent)
_DOMAIN = "shifter.kept"
_REASON = "its code fixes sizes by hand, or no layer of torch's owns its weight"


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


def told(lines: Sequence[Line], pinned: Line | None = None) -> str:
    """Where it is, for people: the innermost line that is not torch's, and the part of the network.

    Args:
        lines: the innermost first. pinned: the one of these that is meant; the first if None.
    """
    if not lines:
        return "at a place that is not known"
    first = lines.index(pinned) if pinned else 0
    own = [line for line in lines[first:] if not line.file.startswith(_TORCH)]
    module = lines[first].module
    return f"{[*own, lines[first]][0]}{f' (in {module})' if module else ''}"


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
    """Names of the operators that read one of these weights, as it is stored or transposed."""
    graph = onnx.ModelProto.FromString(architecture).graph
    read = set(weights)
    read |= {n.output[0] for n in graph.node if n.op_type == "Transpose" and n.input[0] in read}
    return frozenset(node.name for node in graph.node if read & set(node.input))


def reasons(untouched: Mapping[str, str]) -> dict[str, str]:
    """A plan's reasons, with one of our own for the operators of :func:`keep`."""
    return {name: _told_reason(why) for name, why in untouched.items()}


def reasons_told(idle: Mapping[str, int]) -> dict[str, int]:
    """How many channels stay for each reason, likewise."""
    told: dict[str, int] = {}
    for why, count in idle.items():
        told[_told_reason(why)] = told.get(_told_reason(why), 0) + count
    return told


def _told_reason(why: str) -> str:
    return _REASON if why.startswith(_DOMAIN) else why


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
