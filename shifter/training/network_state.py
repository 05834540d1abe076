"""A network's weights and statistics as arrays, and back, bit for bit."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shifter.values import Tensors


def array(tensor: Tensor) -> NDArray[np.generic]:
    """A C-contiguous copy on the CPU."""
    copied: NDArray[np.generic] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format).numpy()
    return copied


def state_of(network: nn.Module) -> dict[str, np.ndarray]:
    """Weights and batch norm statistics as arrays of their own, C-contiguous.

    Without ``num_batches_tracked``, which nothing reads where batch norm has a momentum.
    """
    return {
        name: array(tensor)
        for name, tensor in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }


def load_state(network: nn.Module, tensors: Tensors) -> None:
    """The opposite of :func:`state_of`, in place, bit for bit.

    Raises:
        ValueError: if a tensor of the network is missing.
    """
    state = network.state_dict()
    for name, tensor in state.items():
        if not name.endswith("num_batches_tracked"):
            if name not in tensors:
                raise ValueError(f"there are no weights for {name}")
            tensor.copy_(torch.tensor(tensors[name]))
