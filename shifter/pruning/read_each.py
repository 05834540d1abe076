"""Readers of operators that treat every channel by itself, or join channels of the same number."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import onnx_ir as ir

from shifter.pruning.functions import COMBINE, FUNCTIONS
from shifter.pruning.graph import attribute, attribute_ints, literal, name_of
from shifter.pruning.network import (
    Each,
    Float64s,
    Join,
    Node,
)
from shifter.pruning.read_layers import is_bias
from shifter.pruning.reader import Reader, UnfollowedError


def function(reader: Reader, node: ir.Node) -> Each:
    """An activation function."""
    attributes: dict[str, Any] = {a.name: a.value for a in node.attributes.values()}
    if node.op_type == "Clip":
        if attributes:
            raise UnfollowedError("Clip of an opset before 11")
        for key, bound in zip(("min", "max"), node.inputs[1:3], strict=False):
            if bound is None:
                continue
            content = literal(bound)
            if content is None:
                raise UnfollowedError("Clip with bounds that are computed")
            attributes[key] = float(content)
    function = FUNCTIONS[node.op_type]

    def get(name: str, default: Any) -> Any:
        return reader.number(attributes.get(name, default))

    return reader.each(node, lambda x, _: function(x, get))


def identity(reader: Reader, node: ir.Node) -> Each:
    """What does nothing at inference."""
    if any(v.uses() for v in node.outputs[1:]):
        raise UnfollowedError(f"the mask of {node.op_type} is read")
    return reader.each(node, lambda x, _: x, linear=True)


def max_pool(reader: Reader, node: ir.Node) -> Each:
    """A constant stays one: what is padded is below every number."""
    on_images(reader, node)
    if len(node.outputs) > 1 and node.outputs[1].uses():
        raise UnfollowedError("the indices of MaxPool are read")
    return reader.each(node, lambda x, _: x)


def average_pool(reader: Reader, node: ir.Node) -> Each:
    """A constant stays one unless the padding is counted."""
    on_images(reader, node)
    automatic = attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    pads = any(attribute(node, "pads", ()))
    # Versions of engines disagree on what a window counts that reaches over the edge.
    counts = (
        automatic
        or bool(attribute(node, "ceil_mode", 0))
        or (pads and bool(attribute(node, "count_include_pad", 0)))
    )
    return reader.each(node, lambda x, _: x, border="scales" if counts else "keeps", linear=True)


def global_pool(reader: Reader, node: ir.Node) -> Each:
    """Over all positions."""
    on_images(reader, node)
    return reader.each(node, lambda x, _: x, linear=node.op_type == "GlobalAveragePool")


def on_images(reader: Reader, node: ir.Node) -> None:
    """Refuses what would pool over the channels."""
    _, _, axis = reader.followed(node.inputs[0])
    if axis != 1:
        raise UnfollowedError(f"{node.op_type} over the channels")


def reduce_mean(reader: Reader, node: ir.Node) -> Each:
    """Over positions."""
    name, value, axis = reader.followed(node.inputs[0])
    rank = len(value.shape)
    given = literal(node.inputs[1]) if len(node.inputs) > 1 else attribute_ints(node, "axes")
    if given is None or not len(given):
        raise UnfollowedError("ReduceMean over axes that the graph does not say")
    axes = {int(a) % rank for a in given}
    if axis in axes:
        raise UnfollowedError("ReduceMean over the channels")
    keeps = bool(attribute(node, "keepdims", 1))
    shape = [1 if i in axes else size for i, size in enumerate(value.shape) if keeps or i not in axes]
    axis = axis if keeps else axis - sum(a < axis for a in axes)
    output = reader.made(node.outputs[0], tuple(shape), axis)
    return Each(node.op_type, name_of(node.outputs[0]), (name,), (output,), lambda x, _: x, linear=True)


def prelu(reader: Reader, node: ir.Node) -> Each:
    """With one slope, or one per channel."""
    parameter = reader.parameter(node, 1)
    if parameter is None:
        slope = literal(node.inputs[1])
        if slope is None or slope.size != 1:
            raise UnfollowedError("PRelu with a slope that is no parameter")
        number = float(reader.number(float(slope.ravel()[0])))
        return reader.each(node, lambda x, _: np.where(x < 0, number * x, x))
    return reader.each(node, lambda x, given: np.where(x < 0, given[0] * x, x), parameters=(parameter,))


def binary(reader: Reader, node: ir.Node) -> Node | None:
    """Of two activations, of one and a parameter per channel, or of one and a number."""
    combine = COMBINE[node.op_type]
    if len(node.inputs) != 2:
        raise UnfollowedError(f"{node.op_type} of {len(node.inputs)} values")
    active = [i for i in (0, 1) if reader.is_activation(node.inputs[i])]
    if node.op_type == "Div" and active != [0]:
        # A channel that was filled up holds zeros, and dividing by them would spoil its readers.
        raise UnfollowedError("Div by an activation")
    if len(active) == 2:
        return join(reader, node)
    (one,) = active

    def ordered(x: Float64s, y: Any) -> Float64s:
        return combine(x, y) if one == 0 else combine(y, x)

    name, value, axis = reader.followed(node.inputs[one])
    parameter = reader.parameter(node, 1 - one)
    what: dict[str, Any] = {}
    if parameter is not None:
        if is_bias(reader, node, name, parameter):
            return None
        what = {
            "function": lambda x, given: ordered(x, given[0]),
            "parameters": (parameter,),
            "linear": node.op_type == "Mul",
            "scales": node.op_type == "Mul",
        }
    else:
        content = literal(node.inputs[1 - one])
        if content is None or content.size != 1 or content.ndim > len(value.shape):
            raise UnfollowedError(f"{node.op_type} of a constant that is not one number")
        number = float(reader.number(float(content.ravel()[0])))
        what = {"function": lambda x, _: ordered(x, number), "linear": node.op_type in ("Mul", "Div")}
    output = reader.made(node.outputs[0], value.shape, axis)
    return Each(node.op_type, name_of(node.outputs[0]), (name,), (output,), **what)


def join(reader: Reader, node: ir.Node) -> Node:
    """Of two activations with the same channels."""
    (left, one, axis), (right, other, second) = (reader.followed(v) for v in node.inputs)
    ranks = len(one.shape), len(other.shape)
    if axis - ranks[0] != second - ranks[1] or one.width != other.width:
        raise UnfollowedError(f"{node.op_type} of different numbers of channels")
    wider = one if ranks[0] >= ranks[1] else other
    shape = tuple(
        a if b == 1 else b if a == 1 else a
        for a, b in zip(_padded(one.shape, max(ranks)), _padded(other.shape, max(ranks)), strict=True)
    )
    output = reader.made(node.outputs[0], shape, cast(int, wider.axis))
    return Join(node.op_type, name_of(node.outputs[0]), (left, right), (output,))


def _padded(shape: tuple[int | None, ...], rank: int) -> tuple[int | None, ...]:
    return (1,) * (rank - len(shape)) + shape
