"""A network's parameters side by side in one tensor, and their gradients in another.

So that all workers' gradients are added up in one call and in one order, from a process's first step
on: DistributedDataParallel sorts its buckets anew after the first, and a process that goes on from
the middle of a round would not end with the bits of one that was never stopped. And so that a step
of the optimiser, and the mask, are one pass over memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from shifter.training import world
from shifter.values import Mask

_ALIGNMENT = 16
"""Parameters begin at multiples of this many numbers: 64 bytes, as if they stood alone."""


class FlatParameters:
    """The parameters of ``network`` that train; from here on they are views of :attr:`weights`.

    Args:
        network: float32, on its device and in its memory format, both for good.
        mask: the weights that stay; the rest is zeroed here and by :meth:`prune`.

    Attributes:
        weights: every parameter, for an optimiser; its ``grad`` holds every gradient.
    """

    def __init__(self, network: nn.Module, mask: Mask) -> None:
        named = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self._places: dict[str, tuple[int, nn.Parameter]] = {}
        end = 0
        for name, parameter in named.items():
            assert parameter.dtype == torch.float32, f"{name} is {parameter.dtype}"
            self._places[name] = (end, parameter)
            end += -(-parameter.numel() // _ALIGNMENT) * _ALIGNMENT
        device = next(iter(named.values())).device
        self.weights = nn.Parameter(torch.zeros(end, device=device))
        # A place before the gradients takes what else the workers tell each other at a step.
        self._told = torch.zeros(_ALIGNMENT + end, device=device)
        gradients = self._told[_ALIGNMENT:]
        self.weights.grad = gradients
        for (name, view), (_, gradient) in zip(
            self.named(self.weights.data).items(), self.named(gradients).items(), strict=True
        ):
            parameter = named[name]
            view.copy_(parameter.data)
            parameter.data, parameter.grad = view, gradient
        self._pruned = self._where_pruned(network, mask)
        self.prune()

    def _where_pruned(self, network: nn.Module, mask: Mask) -> Tensor | None:
        pruned = torch.zeros_like(self.weights, dtype=torch.bool)
        views = self.named(pruned)
        for name, kept in mask.items():
            where = torch.tensor(~kept, device=pruned.device)
            if name in views:
                views[name].copy_(where)
            else:  # frozen: once is enough
                network.get_parameter(name).data.masked_fill_(where, 0.0)
        return pruned if pruned.any() else None

    def named(self, tensor: Tensor) -> dict[str, Tensor]:
        """Views of the parts of ``tensor``, which is laid out as :attr:`weights`, by parameter."""
        return {
            name: tensor.as_strided(parameter.shape, parameter.stride(), tensor.storage_offset() + start)
            for name, (start, parameter) in self._places.items()
        }

    def filled(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """A new tensor, laid out as :attr:`weights`, of the values in ``tensors``."""
        tensor = torch.zeros_like(self.weights.data)
        for name, view in self.named(tensor).items():
            view.copy_(tensors[name])
        return tensor

    def zero_gradients(self) -> None:
        """In place, the count of those who asked included: autograd adds to what is there."""
        self._told.zero_()

    def add_up_gradients(self, asked: bool = False) -> Tensor:
        """Sums the gradients over all workers; the number of those that ``asked``, on the device."""
        if asked:
            self._told[0] = 1
        world.add_up(self._told)
        return self._told[0]

    @torch.no_grad()
    def prune(self) -> None:
        """Zeroes the pruned weights."""
        # Not a product with the mask: that gives -0.0 for negative weights and NaN for infinite ones.
        if self._pruned is not None:
            self.weights.masked_fill_(self._pruned, 0.0)

    def digest(self) -> str:
        """sha256 of the weights, for comparison between workers."""
        return hashlib.sha256(self.weights.detach().cpu().numpy().data).hexdigest()
