"""Module 4, the model pruner: each layer's new tensors from its old ones and its part of the plan.

:func:`rebuild_layer` is a pure function of one layer, so layers of all rounds rebuild side by
side, each reading only its own bytes. The graph is for :mod:`shifter.pruning.rewrite`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from shifter.pruning.fuse import fuse_norms, not_finite, read_tensor, read_weight
from shifter.pruning.network import Float64s, Ints
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
    writer = _Writer(part, weight, factor)
    bias = bias[writer.outputs]
    if factor is None and weight.dtype == np.dtype(dtype) and part.is_whole:
        rebuilt = read_tensor(part.layer.weight, tensors)
    else:
        rebuilt = np.empty(_kept_shape(part, weight), dtype) if out is None else out
        bias += writer.write(rebuilt)
        if not np.isfinite(bias).all():
            read_tensor(part.layer.weight, tensors)
        settle_outputs(part, writer.outputs, rebuilt, bias)
        rebuilt = rebuilt.T if part.layer.transposed else rebuilt
    made = {part.layer.reduced_weight: np.ascontiguousarray(rebuilt)}
    return made | ({part.layer.reduced_bias: bias.astype(dtype)} if part.is_biased else {})


def settle_outputs(part: LayerPlan, outputs: Ints, rebuilt: NDArray[Any], bias: Float64s) -> None:
    """Output channels that nothing needs become zero; constant ones become their bias."""
    settled = [*((channel, 0.0) for channel in part.empty_outputs), *part.constant_outputs]
    if settled:
        channels, values = zip(*settled, strict=True)
        rows = np.searchsorted(outputs, channels)
        rebuilt[rows] = 0.0
        bias[rows] = values


class _Writer:
    """Writes the kept weights of a layer, block by block, so that each is read from memory once.

    Within a group, input channels are counted from 0, as the weights' second axis does.
    """

    def __init__(self, part: LayerPlan, weight: NDArray[Any], factor: Float64s | None) -> None:
        self._part, self._weight, self._factor = part, weight, factor
        self._groups, self._size = part.layer.groups, weight.shape[1]
        self._each = part.widths[0] // self._groups
        self.outputs = np.asarray(part.outputs, np.int64)
        self._inputs = np.asarray(part.inputs, np.int64)
        self._members = self._inputs_of_groups() if self._groups > 1 and self._size > 1 else None
        kernel = math.prod(weight.shape[2:])
        silent = np.asarray(part.silent_inputs, np.int64)
        self._silent = self._by_group(silent, self._places(silent))
        self._folded = {}
        for group, (members, values) in self._by_group(*_columns(part.folded_inputs, 2)).items():
            whole = np.zeros(self._size)
            whole[members] = values
            self._folded[group] = np.repeat(whole, kernel)
        self._carried = []
        channels, carriers, ratios = _columns(part.carried_inputs, 3)
        for carrier in sorted(set(carriers.tolist())):
            chosen = carriers == carrier
            ((group, (members, given)),) = self._by_group(channels[chosen], ratios[chosen]).items()
            (column,) = self._places(np.array([carrier], np.int64)).tolist()
            self._carried.append((group, column, members, given))

    def write(self, rebuilt: NDArray[Any]) -> Float64s:
        """Writes (kept out, kept in / groups, …).

        Returns:
            What the folded inputs add to each kept output channel.

        Raises:
            CheckpointError: if what is read is not finite.
        """
        weight, wide = self._weight, (-1, *[1] * (self._weight.ndim - 1))
        added = np.zeros(self.outputs.size)
        for places in in_blocks(np.arange(self.outputs.size), math.prod(weight.shape[1:])):
            rows, target = self.outputs[places], rebuilt[places[0] : places[-1] + 1]
            read = weight[rows[0] : rows[-1] + 1] if rows[-1] - rows[0] == rows.size - 1 else weight[rows]
            scale = None if self._factor is None else self._factor[rows]
            if scale is None:
                target[:] = self._picked(read, places)
            else:
                kept = self._picked(read, places)
                np.multiply(kept, scale.reshape(wide), out=target, casting="same_kind")
            if not is_finite(target):
                raise not_finite(self._part.layer.weight)
            self._settle(read, rows, scale, target)
            if self._folded:
                sums = self._fold(read, rows)
                added[places] = sums if scale is None else sums * scale
        return added

    def _picked(self, read: NDArray[Any], places: Ints) -> NDArray[Any]:
        """The kept inputs of some kept output channels: the ``places``-th of these."""
        if self._members is not None:
            return np.take_along_axis(read, self._members[places], axis=1)
        if self._groups == 1 and self._inputs.size < self._size:
            return np.take(read, self._inputs, axis=1)
        return read

    def _settle(self, read: NDArray[Any], rows: Ints, scale: Float64s | None, target: NDArray[Any]) -> None:
        """The weights of constants become zero in ``target``, or go to their carrier."""
        for group, (_, columns) in self._silent.items():
            chosen = self._of_group(group, rows)
            target[chosen if isinstance(chosen, slice) else chosen[:, None], columns] = 0.0
        for group, column, members, ratios in self._carried:
            chosen = self._of_group(group, rows)
            moved = carried(read[chosen], members, ratios)
            if scale is not None:
                moved *= scale[chosen, None]
            target[chosen, column] += moved.reshape(-1, *target.shape[2:])

    def _fold(self, read: NDArray[Any], rows: Ints) -> Float64s:
        """What the folded inputs add to output channels ``rows``, before they are scaled."""
        sums = np.zeros(rows.size)
        for group, values in self._folded.items():
            chosen = self._of_group(group, rows)
            sums[chosen] = read[chosen].reshape(-1, values.size).astype(np.float64) @ values
        return sums

    def _of_group(self, group: int, rows: Ints) -> slice | Ints:
        return slice(None) if self._groups == 1 else np.flatnonzero(rows // self._each == group)

    def _by_group(self, channels: Any, given: NDArray[Any]) -> dict[int, tuple[Ints, NDArray[Any]]]:
        """Input channels sorted into groups: the number of each in its group, and what is ``given`` of it."""
        channels = channels.astype(np.int64)
        if self._groups == 1:
            return {0: (channels, given)} if channels.size else {}
        group, member = np.divmod(channels, self._size)
        return {int(g): (member[group == g], given[group == g]) for g in np.unique(group)}

    def _places(self, channels: Ints) -> Ints:
        """Where kept inputs are in the rebuilt weight."""
        each = max(1, self._inputs.size // self._part.groups)
        return np.asarray(np.searchsorted(self._inputs, channels) % each)

    def _inputs_of_groups(self) -> Ints:
        """Which inputs each kept output channel keeps, by its group: (kept out, kept in of a group, 1, …)."""
        left = np.unique(self._inputs // self._size)
        members = (self._inputs % self._size).reshape(self._part.groups, -1)
        members = members[np.searchsorted(left, self.outputs // self._each)]
        return np.asarray(members.reshape(*members.shape, *[1] * (self._weight.ndim - 2)))


def carried(read: NDArray[Any], members: Ints, ratios: Float64s) -> Float64s:
    """What inputs ``members`` give to their carrier's weights: (rows, kernel)."""
    kernel = math.prod(read.shape[2:])
    taken = np.take(read, members, axis=1).astype(np.float64).reshape(len(read), members.size, kernel)
    return np.asarray(np.vecdot(taken.swapaxes(1, 2), ratios))


def _columns(pairs: Sequence[tuple[float, ...]], count: int) -> list[Float64s]:
    return list(np.array(pairs, np.float64).reshape(-1, count).T)


def _kept_shape(part: LayerPlan, weight: NDArray[Any]) -> tuple[int, ...]:
    """Of the kept weights: (kept out, kept in / groups, …)."""
    into = len(part.inputs) // part.groups if weight.shape[1] > 1 else 1
    return (len(part.outputs), into, *weight.shape[2:])


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
