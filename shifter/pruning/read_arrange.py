"""Readers of operators that move channels, or the axis that they are on."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import onnx_ir as ir

from shifter.pruning.graph import attribute, attribute_ints, literal, name_of, shape_of, sizes_of
from shifter.pruning.network import (
    Arrange,
    Each,
    Ints,
    Node,
)
from shifter.pruning.reader import Reader, UnfollowedError


def concat(reader: Reader, node: ir.Node) -> Node:
    """Of channels; of positions only where nothing is followed."""
    found = [reader.followed(v) for v in node.inputs]
    axis = found[0][2]
    rank = len(found[0][1].shape)
    if any(other[2] != axis or len(other[1].shape) != rank for other in found):
        raise UnfollowedError("Concat of channels that lie on different axes")
    names = tuple(name for name, _, _ in found)
    along = int(attribute(node, "axis", 0)) % rank
    if along != axis:
        if len({value.width for _, value, _ in found}) != 1:
            raise UnfollowedError("Concat of different numbers of channels")
        raise UnfollowedError("Concat of positions")
    widths = [value.width for _, value, _ in found]
    which = np.repeat(np.arange(len(found)), widths)
    channel = np.concatenate([np.arange(width) for width in widths])
    sizes = list(found[0][1].sizes)
    sizes[axis] = sum(widths)
    output = reader.made(node.outputs[0], sizes, axis)
    return Arrange(node.op_type, name_of(node.outputs[0]), names, (output,), (np.stack([which, channel]),))


def arranged(reader: Reader, node: ir.Node, channels: list[Ints], **what: Any) -> Arrange:
    """Of one input: for each output, which of its channels (-1 for new ones of zeros)."""
    name, value, axis = reader.followed(node.inputs[0])
    outputs, sources = [], []
    for result, picked in zip(node.outputs, channels, strict=True):
        sizes = list(value.sizes)
        sizes[axis] = len(picked)
        outputs.append(reader.made(result, sizes, axis))
        sources.append(np.stack([np.where(picked < 0, -1, 0), picked]))
    return Arrange(node.op_type, name_of(node.outputs[0]), (name,), tuple(outputs), tuple(sources), **what)


def split(reader: Reader, node: ir.Node) -> Node:
    """Into parts of the channels."""
    _, value, axis = reader.followed(node.inputs[0])
    if int(attribute(node, "axis", 0)) % len(value.shape) != axis:
        raise UnfollowedError("Split of positions")
    reader.rearranges()
    sizes = literal(node.inputs[1]) if len(node.inputs) > 1 else attribute_ints(node, "split")
    if sizes is None:
        count = len(node.outputs)
        each = math.ceil(value.width / count)
        sizes = np.diff(np.minimum(np.arange(count + 1) * each, value.width))
    bounds = np.cumsum(sizes)
    if bounds[-1] != value.width:
        raise UnfollowedError("Split into parts that are not the whole")
    return arranged(reader, node, np.split(np.arange(value.width), bounds[:-1]))


def slice(reader: Reader, node: ir.Node) -> Node:
    """Of positions, or of channels."""
    name, value, axis = reader.followed(node.inputs[0])
    rank = len(value.shape)
    given = [literal(v) if v is not None else None for v in node.inputs[1:]]
    if len(given) < 2 or given[0] is None or given[1] is None:
        raise UnfollowedError("Slice with bounds that are computed")
    starts, ends = given[0], given[1]
    axes = given[2] if len(given) > 2 and given[2] is not None else np.arange(len(starts))
    steps = given[3] if len(given) > 3 and given[3] is not None else np.ones(len(starts), np.int64)
    cut = {int(a) % rank: i for i, a in enumerate(axes)}
    if axis not in cut:
        sizes = [None if i in cut else size for i, size in enumerate(value.sizes)]
        output = reader.made(node.outputs[0], sizes, axis)
        return Each(node.op_type, name_of(node.outputs[0]), (name,), (output,), lambda x, _: x)
    if len(cut) > 1:
        raise UnfollowedError("Slice of channels and positions at once")
    reader.rearranges()
    i = cut[axis]
    picked = np.arange(value.width)[int(starts[i]) : _end(int(ends[i])) : int(steps[i])]
    if not picked.size:
        raise UnfollowedError("Slice of nothing")
    return arranged(reader, node, [picked])


def gather(reader: Reader, node: ir.Node) -> Node:
    """Channels picked and put in order by number."""
    _, value, axis = reader.followed(node.inputs[0])
    indices = literal(node.inputs[1])
    if int(attribute(node, "axis", 0)) % len(value.shape) != axis or indices is None or indices.ndim != 1:
        raise UnfollowedError("Gather of positions")
    reader.rearranges()
    return arranged(reader, node, [np.asarray(indices, np.int64) % value.width])


def pad(reader: Reader, node: ir.Node) -> Node:
    """With zeros: around the image, or channels of them."""
    name, value, axis = reader.followed(node.inputs[0])
    rank = len(value.shape)
    pads = literal(node.inputs[1]) if len(node.inputs) > 1 else None
    fill = literal(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else np.zeros(())
    if pads is None or fill is None or attribute(node, "mode", "constant") != "constant" or fill.any():
        raise UnfollowedError("Pad with anything but zeros")
    axes = np.arange(rank) if len(node.inputs) < 4 or node.inputs[3] is None else literal(node.inputs[3])
    if axes is None:
        raise UnfollowedError("Pad of axes that the graph does not say")
    around = {
        int(a) % rank: (int(low), int(high)) for a, low, high in zip(axes, *np.split(pads, 2), strict=True)
    }
    before, after = around.pop(axis, (0, 0))
    elsewhere = any(low or high for low, high in around.values())
    if not (before or after or elsewhere):
        return reader.each(node, lambda x, _: x, linear=True)
    if (before or after) and elsewhere:
        raise UnfollowedError("Pad of channels and positions at once")
    if elsewhere:
        sizes = [None if any(around.get(i, ())) else size for i, size in enumerate(value.sizes)]
        output = reader.made(node.outputs[0], sizes, axis)
        return Each(
            node.op_type,
            name_of(node.outputs[0]),
            (name,),
            (output,),
            lambda x, _: x,
            border="scales",
            linear=True,
        )
    if min(before, after) < 0:
        raise UnfollowedError("Pad that cuts channels off")
    reader.rearranges()
    empty = np.full(1, -1)
    return arranged(
        reader,
        node,
        [np.concatenate([np.repeat(empty, before), np.arange(value.width), np.repeat(empty, after)])],
    )


def flatten(reader: Reader, node: ir.Node) -> Node:
    """Positions become channels."""
    name, value, axis = reader.followed(node.inputs[0])
    rank = len(value.shape)
    if int(attribute(node, "axis", 1)) % rank != 1 or axis < 1 or None in value.shape[1:]:
        raise UnfollowedError("Flatten of an unknown size, or of the batch")
    before, after = (
        math.prod(cast(int, size) for size in sizes)
        for sizes in (value.shape[1:axis], value.shape[axis + 1 :])
    )
    channel = np.tile(np.repeat(np.arange(value.width), after), before)
    output = reader.made(node.outputs[0], (value.sizes[0], channel.size), 1)
    source = np.stack([np.zeros_like(channel), channel])
    return Arrange(
        node.op_type, name_of(node.outputs[0]), (name,), (output,), (source,), flattens=before * after > 1
    )


def moved(
    reader: Reader, node: ir.Node, axis_of: Callable[[int, tuple[int | None, ...]], int | None]
) -> Each:
    """Axes change places; channels stay together."""
    name, value, axis = reader.followed(node.inputs[0])
    made = list(sizes_of(node.outputs[0]))
    new = axis_of(axis, value.shape)
    if new is None or not made:
        raise UnfollowedError(f"{node.op_type} that takes channels apart")
    made[new] = value.width
    output = reader.made(node.outputs[0], made, new)
    return Each(node.op_type, name_of(node.outputs[0]), (name,), (output,), lambda x, _: x, linear=True)


def transpose(reader: Reader, node: ir.Node) -> Each:
    """The channel axis moves."""

    def axis_of(axis: int, shape: tuple[int | None, ...]) -> int:
        perm = attribute_ints(node, "perm")
        return int(list(range(len(shape))[::-1] if perm is None else perm).index(axis))

    return moved(reader, node, axis_of)


def unsqueeze(reader: Reader, node: ir.Node) -> Each:
    """Axes of one are added."""
    axes = literal(node.inputs[1]) if len(node.inputs) > 1 else attribute_ints(node, "axes")

    def axis_of(axis: int, shape: tuple[int | None, ...]) -> int | None:
        if axes is None:
            return None
        rank = len(shape) + len(axes)
        new = {int(a) % rank for a in axes}
        return [i for i in range(rank) if i not in new][axis]

    return moved(reader, node, axis_of)


def squeeze(reader: Reader, node: ir.Node) -> Each:
    """Axes of one go."""
    axes = literal(node.inputs[1]) if len(node.inputs) > 1 else attribute_ints(node, "axes")

    def axis_of(axis: int, shape: tuple[int | None, ...]) -> int | None:
        gone = None if axes is None else {int(a) % len(shape) for a in axes}
        return None if gone is None or axis in gone else axis - sum(a < axis for a in gone)

    return moved(reader, node, axis_of)


def reshape(reader: Reader, node: ir.Node) -> Each:
    """Axes other than the channels' are cut or joined."""
    reader.rearranges()
    result = shape_of(node.outputs[0])

    def axis_of(axis: int, shape: tuple[int | None, ...]) -> int | None:
        if None in shape[axis + 1 :] or literal(node.inputs[1]) is None:
            return None
        behind = math.prod(cast(int, size) for size in shape[axis + 1 :])
        for new in range(len(result)):
            tail = result[new + 1 :]
            if (
                None not in tail
                and math.prod(cast(int, s) for s in tail) == behind
                and result[new] == shape[axis]
            ):
                return new
        return None

    return moved(reader, node, axis_of)


def _end(bound: int) -> int | None:
    return None if abs(bound) > 2**31 else bound
