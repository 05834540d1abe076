"""Other tools that make a sparse network smaller, each on a copy of the module.

They are no dependencies: ``pip install --no-deps torch-simplify==1.1.4 torch-pruning==1.6.1``.
"""

from __future__ import annotations

import copy
import importlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Attempt:
    """What a tool made of a network, and the seconds of its parts."""

    module: nn.Module
    seconds: Mapping[str, float]

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


def torch_simplify(module: nn.Module, size: int) -> Attempt:
    """Fuses batch norm, propagates biases of zero filters, and removes those."""
    simplify = _installed("simplify", "torch-simplify")
    network, image = copy.deepcopy(module), torch.zeros(1, 3, size, size)
    began = time.perf_counter()
    reduced = simplify.simplify(network, image)
    return Attempt(reduced, {"all": time.perf_counter() - began})


def torch_pruning(module: nn.Module, size: int, dead: Mapping[str, Sequence[int]]) -> Attempt:
    """Removes the filters ``dead`` with all that depends on them; it is not told that they are zero."""
    tp = _installed("torch_pruning", "torch-pruning")
    network, image = copy.deepcopy(module), torch.zeros(1, 3, size, size)
    for parameter in network.parameters():
        parameter.requires_grad_(True)  # its graph is traced through gradients
    named = dict(network.named_modules())
    began = time.perf_counter()
    graph = tp.DependencyGraph().build_dependency(network, image)
    traced = time.perf_counter()
    for name, filters in dead.items():
        part = named[name]
        prune = tp.prune_conv_out_channels if isinstance(part, nn.Conv2d) else tp.prune_linear_out_channels
        group = graph.get_pruning_group(part, prune, idxs=list(filters))
        if graph.check_pruning_group(group):
            group.prune()
    ended = time.perf_counter()
    return Attempt(network, {"graph": traced - began, "pruning": ended - traced})


def versions() -> dict[str, str]:
    """Of the tools that are installed."""
    found = {}
    for name in ("torch-simplify", "torch-pruning"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _installed(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise SystemExit(f"{package} is not installed: pip install --no-deps {package}") from error
