"""Module 1, the model pre-processor: batch normalisation folded into the layer before it.

A layer's fused weight is its weight times one factor per output channel: it is never made as a
whole, since most of it may go. A weight that was zero stays exactly zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from shifter.errors import CheckpointError
from shifter.pruning.network import Float64s, Layer
from shifter.pruning.zeros import is_finite
from shifter.values import Tensors


def read_weight(layer: Layer, tensors: Tensors) -> NDArray[Any]:
    """The layer's weight as stored, but always with (out, in / groups, …): a view, not looked at.

    Raises:
        CheckpointError: if it is missing or misshapen.
    """
    weight = _stored(layer.weight, tensors)
    if weight.ndim != layer.rank:
        raise CheckpointError(f"{layer.weight!r} has shape {weight.shape}, which is no {layer.op} weight")
    return weight.T if layer.transposed else weight


def fuse_norm(layer: Layer, tensors: Tensors, width: int) -> tuple[Float64s | None, Float64s]:
    """What the batch normalisation (if any) makes of the layer, in float64.

    Args:
        width: output channels of the layer.

    Returns:
        The factor of each output channel's weights, shape (out,), or None for 1; and the bias, shape
        (out,).

    Raises:
        CheckpointError: if a tensor is missing, misshapen or not finite.
    """
    bias = np.zeros(width) if layer.bias is None else _read(layer.bias, tensors, width)
    if layer.norm is None:
        return None, bias
    norm = layer.norm
    scale, shift, mean, var = (
        _read(name, tensors, width) for name in (norm.scale, norm.bias, norm.mean, norm.var)
    )
    if (var + norm.epsilon <= 0).any():
        raise CheckpointError(f"{norm.var!r} holds a negative variance: {var.min()}")
    factor = scale / np.sqrt(var + norm.epsilon)
    return factor, (bias - mean) * factor + shift


def read_tensor(name: str, tensors: Tensors) -> NDArray[Any]:
    """One tensor as stored.

    Raises:
        CheckpointError: if it is missing or not finite.
    """
    array = _stored(name, tensors)
    if not is_finite(array):
        raise not_finite(name)
    return array


def not_finite(name: str) -> CheckpointError:
    """What to raise of a tensor that holds no numbers."""
    return CheckpointError(f"{name!r} holds NaN or infinite values: it cannot be reduced exactly")


def _stored(name: str, tensors: Tensors) -> NDArray[Any]:
    if name not in tensors:
        raise CheckpointError(f"the checkpoint has no tensor {name!r}, which the architecture needs")
    array = np.asarray(tensors[name])
    return array if array.dtype.kind == "f" else array.astype(np.float64)


def _read(name: str, tensors: Tensors, width: int) -> Float64s:
    array = read_tensor(name, tensors)
    if array.shape != (width,):
        raise CheckpointError(f"{name!r} has shape {array.shape}, not ({width},) as its layer's weight asks")
    return array.astype(np.float64)
