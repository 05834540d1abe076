"""Readers of operators that treat every channel by itself, or join channels of the same number."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from shifter.pruning.functions import COMBINE, FUNCTIONS, OF_ONE
from shifter.pruning.graph import attribute, attribute_ints, literal, name_of
from shifter.pruning.network import (
    Each,
    Float64s,
    Join,
    Node,
    Size,
)
from shifter.pruning.pointwise import (
    ANYTHING,
    DOMAINS,
    RANGES,
    combined,
    is_away_from_zero,
    is_power_defined,
)
from shifter.pruning.reader import Reader, UnfollowedError, slid


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

    def of(x: Float64s) -> Float64s:
        return function(x, get)

    name, _, _ = reader.followed(node.inputs[0])
    given = reader.pointwise.bounds(name)
    is_defined = DOMAINS.get(node.op_type)
    if is_defined is not None and not is_defined(given):
        raise UnfollowedError(f"{node.op_type} of what may be outside its domain")
    bounds = RANGES.get(node.op_type, ANYTHING)
    if node.op_type == "Clip":
        bounds = get("min", -math.inf), get("max", math.inf)
    elif node.op_type == "Neg":
        bounds = -given[1], -given[0]
    reader.pointwise.add(name_of(node.outputs[0]), name, of, bounds)
    return reader.each(node, lambda x, _: of(x))


def cast(reader: Reader, node: ir.Node) -> Each:
    """To a number that is as exact, or to a truth."""
    to = attribute(node, "to", 0)
    if to not in (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.BOOL):
        raise UnfollowedError(f"Cast to numbers of type {to}")
    name, _, _ = reader.followed(node.inputs[0])

    def of(x: Float64s) -> Float64s:
        return np.where(x != 0, 1.0, 0.0) if to == ir.DataType.BOOL else x

    bounds = reader.pointwise.bounds(name) if to != ir.DataType.BOOL else (0.0, 1.0)
    reader.pointwise.add(name_of(node.outputs[0]), name, of, bounds)
    return reader.each(node, lambda x, _: of(x), linear=to != ir.DataType.BOOL)


def of_one(reader: Reader, node: ir.Node) -> Each:
    """Of several functions of one activation, and numbers: altogether one more function of it."""
    active = [v for v in node.inputs if reader.is_activation(v)]
    names = [reader.followed(v)[0] for v in active]
    found = reader.pointwise.common(names)
    if found is None:
        raise UnfollowedError(f"{node.op_type} of activations that are no functions of one")
    source, functions = found
    value = reader.values[source]
    given: list[Callable[[Float64s], Any]] = []
    for v in node.inputs:
        if reader.is_activation(v):
            given.append(functions[name_of(v)])
        else:
            number = reader.scalar(node, v, len(value.sizes))
            given.append(lambda _, number=number: number)  # type: ignore[misc]
    bounds = ANYTHING
    if node.op_type == "Pow":
        if len(active) != 1 or not reader.is_activation(node.inputs[0]):
            raise UnfollowedError("Pow with an exponent that is computed")
        exponent, base = given[1](np.zeros(0)), reader.pointwise.bounds(names[0])
        if not is_power_defined(base, exponent):
            raise UnfollowedError("Pow of what may be outside its domain")
        bounds = (0.0, math.inf) if base[0] >= 0 or exponent % 2 == 0 else ANYTHING
    combine = OF_ONE[node.op_type]

    def of(x: Float64s) -> Float64s:
        return np.asarray(combine(*(function(x) for function in given)), dtype=np.float64)

    assert value.axis is not None
    output = reader.made(node.outputs[0], value.sizes, value.axis)
    reader.pointwise.add(output, source, of, bounds)
    return Each(node.op_type, output, (source,), (output,), lambda x, _: of(x))


def identity(reader: Reader, node: ir.Node) -> Each:
    """What does nothing at inference."""
    if any(v.uses() for v in node.outputs[1:]):
        raise UnfollowedError(f"the mask of {node.op_type} is read")
    name, _, _ = reader.followed(node.inputs[0])
    reader.pointwise.add(name_of(node.outputs[0]), name, lambda x: x, reader.pointwise.bounds(name))
    return reader.each(node, lambda x, _: x, linear=True)


def max_pool(reader: Reader, node: ir.Node) -> Each:
    """A constant stays one: what is padded is below every number."""
    on_images(reader, node)
    if len(node.outputs) > 1 and node.outputs[1].uses():
        raise UnfollowedError("the indices of MaxPool are read")
    return reader.each(node, lambda x, _: x, _pooled(reader, node))


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
    border: Any = "scales" if counts else "keeps"
    return reader.each(node, lambda x, _: x, _pooled(reader, node), border=border, linear=True)


def _pooled(reader: Reader, node: ir.Node) -> list[Size]:
    sizes = reader.value(node.inputs[0]).sizes
    return [*sizes[:2], *slid(node, sizes[2:], attribute(node, "kernel_shape", ()))]


def global_pool(reader: Reader, node: ir.Node) -> Each:
    """Over all positions."""
    on_images(reader, node)
    sizes = reader.value(node.inputs[0]).sizes
    whole = [*sizes[:2], *[1] * len(sizes[2:])]
    return reader.each(node, lambda x, _: x, whole, linear=node.op_type == "GlobalAveragePool")


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
    sizes = [1 if i in axes else size for i, size in enumerate(value.sizes) if keeps or i not in axes]
    axis = axis if keeps else axis - sum(a < axis for a in axes)
    output = reader.made(node.outputs[0], sizes, axis)
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


def binary(reader: Reader, node: ir.Node) -> Node:
    """Of two activations, of one and a parameter per channel, or of one and a number."""
    combine = COMBINE[node.op_type]
    if len(node.inputs) != 2:
        raise UnfollowedError(f"{node.op_type} of {len(node.inputs)} values")
    active = [i for i in (0, 1) if reader.is_activation(node.inputs[i])]
    if node.op_type == "Div" and active != [0]:
        # A channel that was filled up may hold zeros, and dividing by them would spoil its readers.
        divisor, _, _ = reader.followed(node.inputs[1])
        if not is_away_from_zero(reader.pointwise.bounds(divisor)):
            raise UnfollowedError("Div by an activation that may be zero")
    if len(active) == 2:
        return join(reader, node)
    (one,) = active

    def ordered(x: Float64s, y: Any) -> Float64s:
        return combine(x, y) if one == 0 else combine(y, x)

    name, value, axis = reader.followed(node.inputs[one])
    parameter = reader.parameter(node, 1 - one)
    what: dict[str, Any] = {}
    if parameter is not None:
        what = {
            "function": lambda x, given: ordered(x, given[0]),
            "parameters": (parameter,),
            "linear": node.op_type == "Mul",
            "scales": node.op_type == "Mul",
            "fusible": parameter.name if node.op_type == "Add" and parameter.axis == 0 else None,
        }
    else:
        number = reader.scalar(node, node.inputs[1 - one], len(value.sizes))
        linear = node.op_type == "Mul" or (node.op_type == "Div" and one == 0)
        what = {"function": lambda x, _: ordered(x, number), "linear": linear}
        sides = [reader.pointwise.bounds(name), (number, number)]
        bounds = combined(node.op_type, *(sides if one == 0 else sides[::-1]))
        reader.pointwise.add(name_of(node.outputs[0]), name, lambda x: ordered(x, number), bounds)
    output = reader.made(node.outputs[0], value.sizes, axis)
    return Each(node.op_type, name_of(node.outputs[0]), (name,), (output,), **what)


def join(reader: Reader, node: ir.Node) -> Node:
    """Of two activations with the same channels."""
    (left, one, axis), (right, other, second) = (reader.followed(v) for v in node.inputs)
    ranks = len(one.shape), len(other.shape)
    if axis - ranks[0] != second - ranks[1] or one.width != other.width:
        raise UnfollowedError(f"{node.op_type} of different numbers of channels")
    wider = one if ranks[0] >= ranks[1] else other
    sizes = tuple(
        _broadcast(a, b)
        for a, b in zip(_padded(one.sizes, max(ranks)), _padded(other.sizes, max(ranks)), strict=True)
    )
    assert wider.axis is not None
    output = reader.made(node.outputs[0], sizes, wider.axis)
    found = reader.pointwise.common((left, right))
    if found is not None:
        source, functions = found
        combine, sides = COMBINE[node.op_type], [reader.pointwise.bounds(name) for name in (left, right)]
        bounds = combined(node.op_type, sides[0], sides[1])
        if node.op_type == "Mul" and left == right:
            bounds = (0.0, bounds[1])
        reader.pointwise.add(
            output, source, lambda x: combine(functions[left](x), functions[right](x)), bounds
        )
    return Join(node.op_type, name_of(node.outputs[0]), (left, right), (output,))


def _padded(sizes: tuple[Size, ...], rank: int) -> tuple[Size, ...]:
    return (1,) * (rank - len(sizes)) + sizes


def _broadcast(one: Size, other: Size) -> Size:
    """The larger size; of two that are not known to be the same, one may be 1."""
    if one == other or other == 1:
        return one
    if one == 1:
        return other
    return next((size for size in (one, other) if isinstance(size, int)), None)
