"""Module 4, the model pruner: each layer's new tensors from its old ones and its part of the plan.

:func:`rebuild_layer` is a pure function of one layer, so layers of all rounds rebuild side by
side, each reading only its own bytes. The graph is for :mod:`shifter.pruning.rewrite`.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from shifter.pruning.analyse import by_group
from shifter.pruning.fuse import fuse_norm, read_tensor, read_weight
from shifter.pruning.network import Float64s, Ints
from shifter.pruning.parts import ConstantPlan, LayerPlan, ParameterPlan, PrunePlan
from shifter.pruning.rewrite import other_tensors, rebuild_graph
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


def rebuild(
    plan: PrunePlan, tensors: Tensors, dtype: DTypeLike = np.float32, threads: int | None = None
) -> Arrays:
    """Everything that the plan makes anew: layers, sliced parameters and constants.

    Args:
        threads: that work side by side; as many as there are cores unless said.
    """
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        layers = list(pool.map(lambda part: rebuild_layer(part, tensors, dtype), plan.layers))
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


def rebuild_layer(part: LayerPlan, tensors: Tensors, dtype: DTypeLike = np.float32) -> Arrays:
    """The layer's reduced tensors, computed in float64 and rounded once.

    Args:
        tensors: must hold ``part.layer.tensors``.

    Returns:
        Weight (kept out, kept in / groups, …), as stored (in, out) if the layer's is, and bias
        (kept out,) if it has one, C-contiguous.

    Raises:
        CheckpointError: if a tensor is missing, misshapen or not finite.
    """
    weight = read_weight(part.layer, tensors)
    factor, bias = fuse_norm(part.layer, tensors, weight.shape[0])
    bias = bias + folded_bias(part, weight, factor)
    kept = _take(part, weight)
    scale = np.ones(len(part.outputs)) if factor is None else factor[list(part.outputs)]
    rebuilt = np.empty(kept.shape, dtype)
    np.multiply(kept, scale.reshape(-1, *[1] * (kept.ndim - 1)), out=rebuilt, casting="same_kind")
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
    """What the folded inputs contribute to every output channel: shape (out,)."""
    total = np.zeros(weight.shape[0])
    if not part.folded_inputs:
        return total
    channels, values = (np.asarray(column) for column in zip(*part.folded_inputs, strict=True))
    each = weight.shape[0] // part.layer.groups
    for group, member, chosen in by_group(channels, part.layer.groups, part.widths[1]):
        rows = slice(group * each, (group + 1) * each)
        read = weight[rows][:, member].astype(np.float64)
        total[rows] = read.sum(axis=tuple(range(2, read.ndim))) @ values[chosen]
    return total if factor is None else total * factor


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
    for carrier in sorted({carrier for _, carrier, _ in part.carried_inputs}):
        carried = [(channel, ratio) for channel, via, ratio in part.carried_inputs if via == carrier]
        rows = np.flatnonzero(outputs // each == carrier // size)
        read = weight[outputs[rows]][:, [channel % size for channel, _ in carried]].astype(np.float64)
        moved = np.tensordot(read, np.array([ratio for _, ratio in carried]), axes=([1], [0]))
        if factor is not None:
            moved *= factor[outputs[rows]].reshape(-1, *[1] * (moved.ndim - 1))
        rebuilt[rows, column[carrier]] += moved


def _columns(part: LayerPlan) -> dict[int, int]:
    """Where a kept input channel's weights are in the rebuilt weight: its number in its group."""
    each = max(1, len(part.inputs) // part.groups)
    return {channel: place % each for place, channel in enumerate(part.inputs)}


def _take(part: LayerPlan, weight: NDArray[Any]) -> NDArray[Any]:
    """The kept weights as stored: (kept out, kept in / groups, …)."""
    outputs, inputs = np.asarray(part.outputs, np.int64), np.asarray(part.inputs, np.int64)
    rows = weight if outputs.size == weight.shape[0] else weight[outputs]
    groups = part.layer.groups
    if groups == part.widths[1] and groups > 1:
        return rows  # depthwise: its one input goes with its outputs
    if groups == 1:
        return rows if inputs.size == part.widths[1] else np.take(rows, inputs, axis=1)
    size, each = part.widths[1] // groups, part.widths[0] // groups
    member: Ints = (inputs % size).reshape(part.groups, -1)
    left = np.unique(inputs // size)
    return np.take_along_axis(
        rows,
        member[np.searchsorted(left, outputs // each)].reshape(*outputs.shape, -1, *[1] * (rows.ndim - 2)),
        axis=1,
    )
