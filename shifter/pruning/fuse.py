"""Module 1, the model pre-processor: batch normalisation folded into the convolution before it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from shifter.errors import CheckpointError
from shifter.pruning.graph import Layer
from shifter.values import Tensors

Float64s = NDArray[np.float64]


def fuse_layer(layer: Layer, tensors: Tensors) -> tuple[Float64s, Float64s]:
    """The layer's weight and bias in float64, with its batch normalisation (if any) folded in.

    A weight that was zero stays exactly zero: it is only ever multiplied.

    Args:
        tensors: must hold ``layer.tensors``.

    Returns:
        Weight of shape (out, in, …) and bias of shape (out,).

    Raises:
        CheckpointError: if a tensor is missing, misshapen or not finite.
    """
    weight = _read(layer.weight, tensors)
    if weight.ndim != (4 if layer.op == "Conv" else 2):
        raise CheckpointError(f"{layer.weight!r} has shape {weight.shape}, which is no {layer.op} weight")
    width = weight.shape[0]
    bias = np.zeros(width) if layer.bias is None else _read(layer.bias, tensors, width)
    if layer.norm is None:
        return weight, bias
    norm = layer.norm
    scale, shift, mean, var = (
        _read(name, tensors, width) for name in (norm.scale, norm.bias, norm.mean, norm.var)
    )
    if (var + norm.epsilon <= 0).any():
        raise CheckpointError(f"{norm.var!r} holds a negative variance: {var.min()}")
    factor = scale / np.sqrt(var + norm.epsilon)
    return weight * factor.reshape(-1, *[1] * (weight.ndim - 1)), (bias - mean) * factor + shift


def _read(name: str, tensors: Tensors, width: int | None = None) -> NDArray[Any]:
    if name not in tensors:
        raise CheckpointError(f"the checkpoint has no tensor {name!r}, which the architecture needs")
    array = np.asarray(tensors[name], dtype=np.float64)
    if width is not None and array.shape != (width,):
        raise CheckpointError(f"{name!r} has shape {array.shape}, not ({width},) as its layer's weight asks")
    if not np.isfinite(array).all():
        raise CheckpointError(f"{name!r} holds NaN or infinite values: it cannot be reduced exactly")
    return array
