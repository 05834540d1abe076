"""Module 4, the model pruner: each layer's new tensors from its old ones and its part of the plan.

:func:`rebuild_layer` is a pure function of one layer, so layers of all rounds rebuild side by
side, each reading only its own bytes. The graph is for :mod:`shifter.pruning.rewrite`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from shifter.pruning.analyse import by_group, contribution
from shifter.pruning.fuse import fuse_norms, read_tensor, read_weight
from shifter.pruning.network import Float64s
from shifter.pruning.parts import ConstantPlan, LayerPlan, ParameterPlan, PrunePlan
from shifter.pruning.rewrite import other_tensors, rebuild_graph
from shifter.pruning.threads import side_by_side
from shifter.pruning.zeros import in_blocks, is_finite
from shifter.values import Tensors

__all__ = [
    "other_tensors",
    "rebuild",
    "rebuild_constant",
    "rebuild_graph",
    "rebuild_layer",
    "rebuild_parameter",
    "rebuild_tensors",
    "rounded",
]

Arrays = dict[str, NDArray[Any]]

ALIGNED = 16
"""Weights start at multiples of this many numbers: a cache line of float32."""


def rebuild(
    plan: PrunePlan, tensors: Tensors, dtype: DTypeLike = np.float32, threads: int | None = None
) -> Arrays:
    """Everything that the plan makes anew: layers, sliced parameters and constants.

    The weights are parts of one piece of memory, which is given back when none of them is left.

    Args:
        threads: that work side by side; as many as there are cores unless said.
    """
    room = _Room.of(plan, tensors, np.dtype(dtype))
    layers = side_by_side(
        lambda part: rebuild_layer(part, tensors, dtype, room.take(part)), plan.layers, threads
    )
    made: Arrays = {}
    for arrays in layers:
        made |= arrays
    for part in plan.slices:
        made |= rebuild_parameter(part, tensors, dtype)
    for constant in plan.constants:
        made |= rebuild_constant(constant, dtype)
    return made


def rebuild_tensors(
    architecture: bytes, plan: PrunePlan, tensors: Tensors, dtype: DTypeLike = np.float32
) -> Arrays:
    """Everything that the reduced graph reads, tensors of layers that are not followed included."""
    rest = {name: rounded(tensors[name], dtype) for name in other_tensors(architecture, plan)}
    return rest | rebuild(plan, tensors, dtype)


def rounded(array: NDArray[Any], dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """The array as ``dtype`` if it holds real numbers; indices and truths stay what they are."""
    return np.ascontiguousarray(array, dtype=dtype if array.dtype.kind == "f" else None)


def rebuild_parameter(part: ParameterPlan, tensors: Tensors, dtype: DTypeLike = np.float32) -> Arrays:
    """A per-channel parameter with the channels that are kept.

    Raises:
        CheckpointError: if it is missing or not finite.
    """
    kept = np.take(read_tensor(part.name, tensors), part.kept, axis=part.axis)
    return {part.name: np.ascontiguousarray(kept, dtype=dtype)}


def rebuild_constant(part: ConstantPlan, dtype: DTypeLike = np.float32) -> Arrays:
    """An operand that is the same for every image: shape (kept channels, 1, …)."""
    return {part.name: np.asarray(part.values, dtype).reshape(-1, *[1] * part.trailing)}


def rebuild_layer(
    part: LayerPlan, tensors: Tensors, dtype: DTypeLike = np.float32, out: NDArray[Any] | None = None
) -> Arrays:
    """The layer's reduced tensors, computed in float64 and rounded once.

    Args:
        tensors: must hold ``part.layer.tensors``.
        out: where the weight is written, C-contiguous; new memory unless given.

    Returns:
        Weight (kept out, kept in / groups, …), as stored (in, out) if the layer's is, and bias
        (kept out,) if it has one, C-contiguous.

    Raises:
        CheckpointError: if a tensor is missing or misshapen, or what is read of it is not finite.
    """
    weight = read_weight(part.layer, tensors)
    factor, bias = fuse_norms(part.layer, tensors, weight.shape[0])
    bias = bias + folded_bias(part, weight, factor)
    rebuilt = np.empty(_kept_shape(part, weight), dtype) if out is None else out
    _scale_kept(part, weight, factor, rebuilt)
    if not (is_finite(rebuilt) and is_finite(bias)):
        read_tensor(part.layer.weight, tensors)
    settle_constants(part, weight, factor, rebuilt)
    bias = settle_outputs(part, rebuilt, bias)
    if part.layer.transposed:
        rebuilt = np.ascontiguousarray(rebuilt.T)
    if not part.is_biased:
        return {part.layer.reduced_weight: rebuilt}
    return {
        part.layer.reduced_weight: rebuilt,
        part.layer.reduced_bias: np.ascontiguousarray(bias[list(part.outputs)], dtype=dtype),
    }


def settle_outputs(part: LayerPlan, rebuilt: NDArray[Any], bias: Float64s) -> Float64s:
    """Output channels that nothing needs become zero; constant ones become their bias."""
    place = {channel: row for row, channel in enumerate(part.outputs)}
    bias = bias.copy()
    for channel, value in (*((c, 0.0) for c in part.empty_outputs), *part.constant_outputs):
        rebuilt[place[channel]] = 0.0
        bias[channel] = value
    return bias


def folded_bias(part: LayerPlan, weight: NDArray[Any], factor: Float64s | None) -> Float64s:
    """What the folded inputs contribute to every kept output channel: shape (out,), zero for others."""
    if not part.folded_inputs:
        return np.zeros(weight.shape[0])
    channels, values = (np.asarray(column) for column in zip(*part.folded_inputs, strict=True))
    outputs = np.asarray(part.outputs, np.int64)
    return contribution(weight, factor, part.layer.groups, outputs, channels, values)


def settle_constants(
    part: LayerPlan, weight: NDArray[Any], factor: Float64s | None, rebuilt: NDArray[Any]
) -> None:
    """Weights of constant inputs become zero; what they contributed moves to the carrier's weights."""
    groups, widths = part.layer.groups, part.widths
    size, each = widths[1] // groups, widths[0] // groups
    outputs, column = np.asarray(part.outputs), _columns(part)
    for group, _, chosen in by_group(np.asarray(part.silent_inputs, np.int64), groups, widths[1]):
        rows = np.flatnonzero(outputs // each == group)
        columns = np.array([column[part.silent_inputs[i]] for i in chosen.tolist()])
        rebuilt[np.ix_(rows, columns)] = 0.0
    by_carrier: dict[int, list[tuple[int, float]]] = {}
    for channel, carrier, ratio in part.carried_inputs:
        by_carrier.setdefault(carrier, []).append((channel % size, ratio))
    for carrier, carried in by_carrier.items():
        members, ratios = (np.asarray(side) for side in zip(*carried, strict=True))
        places = np.flatnonzero(outputs // each == carrier // size)
        for some in in_blocks(places, members.size * math.prod(weight.shape[2:])):
            rows = outputs[some]
            read = np.take(weight[rows], members, axis=1).astype(np.float64)
            moved = np.vecdot(read.reshape(rows.size, members.size, -1).swapaxes(1, 2), ratios)
            if factor is not None:
                moved *= factor[rows, None]
            rebuilt[some, column[carrier]] += moved.reshape(rows.size, *weight.shape[2:])


def _columns(part: LayerPlan) -> dict[int, int]:
    """Where a kept input channel's weights are in the rebuilt weight: its number in its group."""
    each = max(1, len(part.inputs) // part.groups)
    return {channel: place % each for place, channel in enumerate(part.inputs)}


def _kept_shape(part: LayerPlan, weight: NDArray[Any]) -> tuple[int, ...]:
    """Of the kept weights: (kept out, kept in / groups, …)."""
    into = len(part.inputs) // part.groups if weight.shape[1] > 1 else 1
    return (len(part.outputs), into, *weight.shape[2:])


def _scale_kept(
    part: LayerPlan, weight: NDArray[Any], factor: Float64s | None, rebuilt: NDArray[Any]
) -> None:
    """Writes the kept weights times their factor, block by block: rows first, since they are cheap."""
    outputs, inputs = np.asarray(part.outputs, np.int64), np.asarray(part.inputs, np.int64)
    groups, into = part.layer.groups, weight.shape[1]
    members = None
    if groups > 1 and into > 1:
        left = np.unique(inputs // into)
        member = (inputs % into).reshape(part.groups, -1)
        members = member[np.searchsorted(left, outputs // (part.widths[0] // groups))]
        members = members.reshape(*members.shape, *[1] * (weight.ndim - 2))
    for places in in_blocks(np.arange(outputs.size), math.prod(weight.shape[1:])):
        rows, target = outputs[places], rebuilt[places[0] : places[-1] + 1]
        kept = weight[rows[0] : rows[-1] + 1] if rows[-1] - rows[0] == rows.size - 1 else weight[rows]
        if members is not None:
            kept = np.take_along_axis(kept, members[places], axis=1)
        elif groups == 1 and inputs.size < into:
            kept = np.take(kept, inputs, axis=1)
        if factor is None:
            target[:] = kept
        else:
            scale = factor[rows].reshape(-1, *[1] * (weight.ndim - 1))
            np.multiply(kept, scale, out=target, casting="same_kind")


class _Room:
    """One piece of memory for all the weights that are made: large pages of it come at once, where
    small ones would be asked for one by one, which takes longer than filling them.
    """

    def __init__(self, memory: NDArray[Any], places: Mapping[str, tuple[int, tuple[int, ...]]]) -> None:
        self._memory, self._places = memory, places

    @classmethod
    def of(cls, plan: PrunePlan, tensors: Tensors, dtype: np.dtype[Any]) -> _Room:
        places, end = {}, 0
        for part in plan.layers:
            shape = _kept_shape(part, read_weight(part.layer, tensors))
            places[part.layer.name] = (end, shape)
            end += -(-math.prod(shape) // ALIGNED) * ALIGNED
        return cls(np.empty(end, dtype), places)

    def take(self, part: LayerPlan) -> NDArray[Any]:
        """Where this layer's weight goes."""
        start, shape = self._places[part.layer.name]
        return self._memory[start : start + math.prod(shape)].reshape(shape)
