"""One small network of each family, alive: batch norm has seen data, no bias is zero.

Widths, depths and images are small; operators, and how they are joined, are the family's own.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from shifter.models.export import export_architecture
from shifter.values import InputSpec

from .members import CLASSES, FAMILIES

Tensors = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Family:
    """A network, dense, and its architecture; ``other`` is an image size that its code takes as well."""

    name: str
    network: nn.Module
    architecture: bytes
    size: int
    other: int | None

    @property
    def tensors(self) -> Tensors:
        return checkpoint(self.network)

    def images(self, count: int, size: int | None = None, seed: int = 0) -> NDArray[np.float32]:
        """Half of them smooth, as photographs are, half of them noise."""
        rng = np.random.default_rng(seed)
        smooth = photographs(rng, -(-count // 2), size or self.size)
        noise = rng.normal(size=(count // 2, *smooth.shape[1:]))
        return np.concatenate([smooth, noise]).astype(np.float32)

    def answers(self, tensors: Mapping[str, NDArray[Any]], images: NDArray[Any]) -> NDArray[np.float64]:
        """What the module itself computes in float64 with these tensors, one image at a time."""
        double = _double(self)
        state = double.state_dict()
        with torch.no_grad():
            for name, value in tensors.items():
                state[name].copy_(torch.from_numpy(value))
            one_by_one = [double(torch.from_numpy(image[None]).double()) for image in images]
        return torch.cat(one_by_one).numpy()


def checkpoint(network: nn.Module) -> Tensors:
    """The tensors that inference reads, copied, under their names."""
    return {
        name: value.numpy().copy()
        for name, value in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }


@functools.cache
def family(name: str) -> Family:
    """The family's network and its export, which takes seconds: once a session."""
    build, size, other = FAMILIES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build()
        enliven(network, size)
    spec = InputSpec(3, size, size, 255.0, (0.0,) * 3, (1.0,) * 3, tuple("abcde"))
    return Family(name, network, export_architecture(network, spec), size, other)


@functools.cache
def _double(of: Family) -> nn.Module:
    network = FAMILIES[of.name][0]().double()
    share_float32_constants(network)
    return network.eval()


def photographs(rng: np.random.Generator, count: int, size: int) -> NDArray[np.float64]:
    """Correlated over space and colour, of different brightness: (count, 3, size, size)."""
    coarse = torch.from_numpy(rng.normal(size=(count, 3, 4, 4)))
    coarse += torch.from_numpy(rng.normal(size=(count, 1, 4, 4)) + rng.normal(size=(count, 1, 1, 1)))
    smooth = functional.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False)
    return 2 * smooth.numpy() + 0.1 * rng.normal(size=(count, 3, size, size))


def enliven(network: nn.Module, size: int) -> None:
    """Random weights of a trained network's size, then batch norm calibrated, then perturbed."""
    share_float32_constants(network)
    norms = (nn.BatchNorm2d, nn.LayerNorm)
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, norms):
                nn.init.normal_(parameter, 1.0 if name == "weight" else 0.0, 0.3)
            elif name == "layer_scale":
                nn.init.uniform_(parameter, 0.3, 1.0)
            elif name.endswith("weight"):
                fan = parameter[0].numel()
                nn.init.normal_(parameter, 0.0, (2 / fan) ** 0.5)
            elif name != "logit_scale":  # biases, tokens, positions
                nn.init.normal_(parameter, 0.0, 0.15)
    batch_norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in batch_norms:
        norm.momentum = None
    network.train()
    rng = np.random.default_rng(1)
    with torch.no_grad():
        for _ in range(2 if batch_norms else 0):
            network(torch.from_numpy(photographs(rng, 16, size)).float())
    for norm in batch_norms:
        nn.init.normal_(norm.weight, 1.0, 0.3)
        nn.init.normal_(norm.bias, 0.1, 0.3)
    network.eval()


def share_float32_constants(network: nn.Module) -> None:
    """The network's small numbers as ONNX stores them, so that both compute the same in float64."""
    for module in network.modules():
        if hasattr(module, "eps"):
            module.eps = float(np.float32(module.eps))
        if isinstance(module, nn.Hardswish | nn.Hardsigmoid):
            module.forward = functools.partial(_hard, isinstance(module, nn.Hardswish))


_SIXTH = float(np.float32(1 / 6))


def _hard(swish: bool, x: torch.Tensor) -> torch.Tensor:
    if x.dtype == torch.float32:
        return functional.hardswish(x) if swish else functional.hardsigmoid(x)
    gate = (x * _SIXTH + 0.5).clamp(0, 1)
    return x * gate if swish else gate


def mask(
    dense: Mapping[str, NDArray[Any]], rng: np.random.Generator, *, aligned: bool, mercy: float = 0.0
) -> Tensors:
    """Whole filters and neurons, input slices and single weights are zero, in varied proportions.

    With ``aligned``, tensors with as many rows lose the same ones, as channels that residual blocks
    share do in training; for half of those the norms' shifts are zero too, so that they are zero and
    not constant. ``mercy``, from 0 to 1, is how much less is zeroed.
    """

    def some(size: tuple[int, ...], *shares: float) -> NDArray[np.bool_]:
        return rng.random(size) < (1 - mercy) * rng.choice(shares)

    sparse = {name: np.array(value) for name, value in dense.items()}
    counts = sorted({value.shape[0] for value in sparse.values() if value.ndim})
    dead = {count: some((count,), 0.3, 0.5) for count in counts}
    zero = {count: rows & (rng.random(count) < 0.5) for count, rows in dead.items()}
    last = [name for name, value in sparse.items() if value.ndim > 1][-1]
    for name, value in sparse.items():
        if aligned and name.endswith("bias") and value.shape[0] != CLASSES:
            value[zero[value.shape[0]]] = 0
        if value.ndim < 2 or not name.endswith("weight"):
            continue
        if rng.random() < 0.6:
            value[some(value.shape, 0.3, 0.6)] = 0
        if aligned:
            if name != last:
                value[dead[value.shape[0]]] = 0
            continue
        if rng.random() < 0.7 and name != last:
            value[some(value.shape[:1], 0.25, 0.5)] = 0
        if rng.random() < 0.4 and value.shape[1] > 3:
            value[:, some(value.shape[1:2], 0.25, 0.5)] = 0
    return sparse
