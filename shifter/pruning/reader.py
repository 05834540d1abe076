"""What reads a graph, operator by operator; see :mod:`shifter.pruning.read`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from shifter.pruning.graph import STANDARD, attribute, is_weight, literal, name_of, shape_of, sizes_of
from shifter.pruning.network import Each, Legality, Node, Parameter, PerChannel, Size, Stop, Value
from shifter.pruning.pointwise import Pointwise

_WRITTEN = (1 / 6, 11 / 48, 1.6732632423543772848170429916717, 1.0507009873554804934193349852946)
"""Numbers of activation functions that have no short decimal: of hard ones, RReLU's, and SELU's two."""


def _reads(node: ir.Node) -> Iterator[ir.Value]:
    """What an operator reads, by name what the branches of an If or the body of a loop read included."""
    yield from (value for value in node.inputs if value is not None)
    for given in node.attributes.values():
        if given.type == ir.AttributeType.GRAPH:
            for inner in given.as_graph():
                yield from _reads(inner)


def slid(node: ir.Node, sizes: Sequence[Size], kernel: Sequence[int]) -> list[Size]:
    """How often a window fits along each axis of an image."""
    rank = len(sizes)
    strides, dilations = (attribute(node, key, [1] * rank) for key in ("strides", "dilations"))
    pads, ceil = attribute(node, "pads", [0] * 2 * rank), attribute(node, "ceil_mode", 0)
    automatic = attribute(node, "auto_pad", "NOTSET")
    found: list[Size] = []
    for i, size in enumerate(sizes):
        # The first window is one place; the image has so many more for others.
        more = int(pads[i] + pads[rank + i] - (kernel[i] - 1) * dilations[i] - 1)
        step = int(strides[i])
        if not isinstance(size, str):
            found.append(None)
        elif ceil or automatic != "NOTSET":
            found.append(f"slid({size}, {kernel[i]}, {more}, {step}, {pads[i]}, {automatic}, {ceil})")
        elif step > 1:
            found.append(f"(({size}){more:+}) // {step} + 1")
        else:
            found.append(f"({size}){more + 1:+}" if more != -1 else size)
    return found


class UnfollowedError(Exception):
    """Why channels cannot be followed through an operator; empty behind one that said so."""


@dataclass
class Reader:
    """What has been read so far, and what an operator's reader asks of it.

    Args:
        readers: by operator; each returns its node.
        legality: ``torch`` follows only what a torch module's own code survives.
    """

    readers: Mapping[str, Callable[[Reader, ir.Node], Node]]
    legality: Legality
    values: dict[str, Value] = field(default_factory=dict)
    """Activations so far. What is neither here nor a weight nor a literal is a size that was computed."""
    nodes: list[Node] = field(default_factory=list)
    pointwise: Pointwise = field(default_factory=Pointwise)

    def read(self, node: ir.Node) -> None:
        """Reads the next operator."""
        inputs = [v.name for v in _reads(node) if v.name in self.values]
        if not inputs or node.op_type == "Constant":
            return  # weights and sizes: whoever reads the result sees what it is made of
        if node.op_type == "Shape" and node.domain in STANDARD:
            self._read_shape(node)
            return
        try:
            self.nodes.append(self._follow(node))
        except UnfollowedError as unfollowed:
            self.nodes.append(self._stop(node, tuple(dict.fromkeys(inputs)), str(unfollowed)))

    def _follow(self, node: ir.Node) -> Node:
        if node.domain not in STANDARD:
            raise UnfollowedError(f"{node.domain}::{node.op_type} is not an operator that is followed")
        read = self.readers.get(node.op_type)
        if read is None:
            raise UnfollowedError(f"{node.op_type} is not an operator that is followed")
        return read(self, node)

    def _stop(self, node: ir.Node, inputs: tuple[str, ...], reason: str) -> Stop:
        outputs = tuple(name_of(v) for v in node.outputs if v.uses() or v.is_graph_output())
        first = self.values[inputs[0]]
        for value in node.outputs:
            # A norm or a softmax of the same shape has its channels where they were.
            axis = first.axis if shape_of(value) == first.shape else None
            self.values[name_of(value)] = Value(sizes_of(value), axis)
        # The first outputs of an LSTM may be left out, and have no names.
        return Stop(node.op_type, (*outputs, name_of(node.outputs[0]))[0], inputs, outputs, reason)

    def _read_shape(self, node: ir.Node) -> None:
        """A Shape stops nothing unless it asks for the number of channels, which may change."""
        value = self.values[name_of(node.inputs[0])]
        rank = len(value.shape)
        start, end = (attribute(node, key, default) for key, default in (("start", 0), ("end", rank)))
        asked = range(rank)[start:end]
        if value.axis in asked:
            reason = "Shape asks for the number of channels"
            self.nodes.append(Stop("Shape", name_of(node.outputs[0]), (name_of(node.inputs[0]),), (), reason))

    def value(self, value: ir.Value | None) -> Value:
        """An activation."""
        if value is None or value.name not in self.values:
            raise UnfollowedError("")
        return self.values[value.name]

    def followed(self, value: ir.Value | None) -> tuple[str, Value, int]:
        """Name, value and channel axis of an activation whose channels are followed."""
        found = self.value(value)
        if found.axis is None or not found.width:
            raise UnfollowedError("")
        return name_of(value), found, found.axis

    def is_activation(self, value: ir.Value | None) -> bool:
        """True unless it is a weight, a literal or a size."""
        return value is not None and value.name in self.values

    def made(self, value: ir.Value, sizes: Sequence[Size], axis: int) -> str:
        """Notes an output, whose shape the graph may not say."""
        name = name_of(value)
        stated = sizes_of(value)
        known = list(sizes)
        if len(stated) == len(sizes):
            known = [b if isinstance(b, int) or a is None else a for a, b in zip(sizes, stated, strict=True)]
        known[axis] = sizes[axis]
        self.values[name] = Value(tuple(known), axis)
        return name

    def each(
        self, node: ir.Node, function: PerChannel, sizes: Sequence[Size] | None = None, **what: Any
    ) -> Each:
        """An operator that leaves channels where they are; ``sizes`` of its output, if they are others."""
        name, value, axis = self.followed(node.inputs[0])
        output = self.made(node.outputs[0], value.sizes if sizes is None else sizes, axis)
        return Each(node.op_type, output, (name,), (output,), function, **what)

    def number(self, number: Any) -> Any:
        """An attribute as the network computes with it: float32 in ONNX, what was written in a module."""
        if self.legality == "onnx" or not isinstance(number, float):
            return number
        for written in _WRITTEN:
            if np.float32(number) == np.float32(written):
                return written
        return float(str(np.float32(number)))

    def scalar(self, node: ir.Node, value: ir.Value | None, rank: int) -> float:
        """A constant that is one number."""
        content = literal(value)
        if content is None or content.size != 1 or content.ndim > rank:
            raise UnfollowedError(f"{node.op_type} of a constant that is not one number")
        return float(self.number(float(content.ravel()[0])))

    def parameter(self, node: ir.Node, position: int) -> Parameter | None:
        """A weight of one number per channel of the other input, or of one for all; None if it is none."""
        value = node.inputs[position]
        stored, shape = value, shape_of(value)
        producer = None if value is None else value.producer()
        if producer is not None and producer.op_type == "Unsqueeze":
            stored = producer.inputs[0]
        if value is None or stored is None or not is_weight(stored):
            return None
        _, other, axis = self.followed(node.inputs[1 - position])
        own = axis - len(other.shape) + len(shape)
        if len(value.uses()) != 1 or len(stored.uses()) != 1 or len(shape) > len(other.shape):
            raise UnfollowedError("several operators share this parameter")
        if all(size == 1 for size in shape) and other.width != 1:
            return Parameter(name_of(stored), None)
        if own < 0 or any(size != 1 for i, size in enumerate(shape) if i != own) or shape[own] != other.width:
            raise UnfollowedError(f"{node.op_type} of a parameter that is not one number per channel")
        kept = shape_of(stored)
        return Parameter(name_of(stored), own if stored is value else kept.index(other.width))

    def rearranges(self) -> None:
        """Called where channels are cut or counted."""
        if self.legality == "torch":
            raise UnfollowedError("a torch module's own code says where channels are cut")
