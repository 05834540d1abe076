"""Reads an ONNX graph as a :class:`~shifter.pruning.network.Network`: one reader per operator.

A reader says what its operator does to channels, or raises :class:`Unfollowed` with the reason why
that cannot be said; the region then stops there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import onnx_ir as ir

from shifter.pruning.functions import COMBINE, FUNCTIONS
from shifter.pruning.graph import is_weight, literal, name_of, shape_of
from shifter.pruning.network import (
    Arrange,
    Each,
    Float64s,
    Ints,
    Join,
    Layer,
    LayerNode,
    Legality,
    Network,
    Node,
    Norm,
    Parameter,
    Stop,
    Value,
)


class Unfollowed(Exception):
    """Why channels cannot be followed through an operator; empty behind one that said so."""


def read_network(model: ir.Model, legality: Legality = "onnx") -> Network:
    """What every operator does to channels; batch norms join the convolution before them.

    Args:
        legality: ``torch`` follows only what a torch module's own code survives.
    """
    reader = _Reader(legality)
    for value in model.graph.inputs:
        shape = shape_of(value)
        reader.values[name_of(value)] = Value(shape, 1 if len(shape) > 1 and shape[1] else None)
    for node in model.graph:
        reader.read(node)
    return Network(
        inputs=tuple(name_of(v) for v in model.graph.inputs),
        outputs=tuple(name_of(v) for v in model.graph.outputs),
        nodes=tuple(reader.nodes),
        values=reader.values,
    )


@dataclass
class _Reader:
    legality: Legality
    values: dict[str, Value] = field(default_factory=dict)
    """Activations so far. What is neither here nor a weight nor a literal is a size that was computed."""
    nodes: list[Node] = field(default_factory=list)
    _by_output: dict[str, int] = field(default_factory=dict)

    def read(self, node: ir.Node) -> None:
        inputs = [v.name for v in node.inputs if v is not None and v.name in self.values]
        if not inputs or node.op_type == "Constant":
            return  # weights and sizes: whoever reads the result sees what it is made of
        if self._is_size(node):
            return
        try:
            read = self._follow(node)
        except Unfollowed as unfollowed:
            read = self._stop(node, tuple(dict.fromkeys(inputs)), str(unfollowed))
        if read is not None:
            for name in read.outputs:
                self._by_output[name] = len(self.nodes)
            self.nodes.append(read)

    def _follow(self, node: ir.Node) -> Node | None:
        if node.domain not in ("", "ai.onnx"):
            raise Unfollowed(f"{node.domain}::{node.op_type} is not an operator that is followed")
        if node.op_type in FUNCTIONS:
            return self._function(node)
        reader = _READERS.get(node.op_type)
        if reader is None:
            raise Unfollowed(f"{node.op_type} is not an operator that is followed")
        return reader(self, node)

    def _stop(self, node: ir.Node, inputs: tuple[str, ...], reason: str) -> Stop:
        outputs = tuple(name_of(v) for v in node.outputs if v.uses() or v.is_graph_output())
        first = self.values[inputs[0]]
        for value in node.outputs:
            shape = shape_of(value)
            # A norm or a softmax of the same shape has its channels where they were.
            self.values[name_of(value)] = Value(shape, first.axis if shape == first.shape else None)
        return Stop(node.op_type, name_of(node.outputs[0]), inputs, outputs, reason)

    def _is_size(self, node: ir.Node) -> bool:
        """True for a Shape that does not ask for the number of channels that may change."""
        if node.op_type != "Shape":
            return False
        value = self.values[name_of(node.inputs[0])]
        rank = len(value.shape)
        start, end = (_get(node, key, default) for key, default in (("start", 0), ("end", rank)))
        asked = range(rank)[start:end]
        if value.axis in asked:
            reason = "Shape asks for the number of channels"
            self.nodes.append(Stop("Shape", name_of(node.outputs[0]), (name_of(node.inputs[0]),), (), reason))
        return True

    # What an input is.

    def _value(self, value: ir.Value | None) -> Value:
        if value is None or value.name not in self.values:
            raise Unfollowed("")
        return self.values[value.name]

    def _followed(self, value: ir.Value | None) -> tuple[str, Value, int]:
        found = self._value(value)
        if found.axis is None or not found.width:
            raise Unfollowed("")
        return name_of(value), found, found.axis

    def _is_activation(self, value: ir.Value | None) -> bool:
        return value is not None and value.name in self.values

    def _made(self, value: ir.Value, shape: tuple[int | None, ...], axis: int) -> str:
        """Notes an output, whose shape the graph may not say."""
        name = name_of(value)
        stated = shape_of(value)
        known = list(stated) if len(stated) == len(shape) else list(shape)
        known[axis] = shape[axis]
        self.values[name] = Value(tuple(known), axis)
        return name

    def _each(self, node: ir.Node, function: Callable[..., Float64s], **what: Any) -> Each:
        name, value, axis = self._followed(node.inputs[0])
        return Each(node.op_type, name_of(node.outputs[0]), (name,), (self._made(node.outputs[0], value.shape, axis),),
                    function, **what)  # fmt: skip

    # One reader per kind of operator.

    def _function(self, node: ir.Node) -> Each:
        attributes = {a.name: a.value for a in node.attributes.values()}
        if node.op_type == "Clip":
            if attributes:
                raise Unfollowed("Clip of an opset before 11")
            for key, bound in zip(("min", "max"), node.inputs[1:3], strict=False):
                if bound is None:
                    continue
                content = literal(bound)
                if content is None:
                    raise Unfollowed("Clip with bounds that are computed")
                attributes[key] = float(content)
        function = FUNCTIONS[node.op_type]
        return self._each(node, lambda x, _: function(x, attributes.get))

    def _identity(self, node: ir.Node) -> Each:
        if any(v.uses() for v in node.outputs[1:]):
            raise Unfollowed(f"the mask of {node.op_type} is read")
        return self._each(node, lambda x, _: x, linear=True)

    def _max_pool(self, node: ir.Node) -> Each:
        self._on_images(node)
        if len(node.outputs) > 1 and node.outputs[1].uses():
            raise Unfollowed("the indices of MaxPool are read")
        return self._each(node, lambda x, _: x)

    def _average_pool(self, node: ir.Node) -> Each:
        self._on_images(node)
        automatic = _get(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID")
        pads = any(_get(node, "pads", ()))
        # Versions of engines disagree on what a window counts that reaches over the edge.
        counts = (
            automatic
            or bool(_get(node, "ceil_mode", 0))
            or (pads and bool(_get(node, "count_include_pad", 0)))
        )
        return self._each(node, lambda x, _: x, border="scales" if counts else "keeps", linear=True)

    def _global_pool(self, node: ir.Node) -> Each:
        self._on_images(node)
        return self._each(node, lambda x, _: x, linear=node.op_type == "GlobalAveragePool")

    def _on_images(self, node: ir.Node) -> None:
        _, _, axis = self._followed(node.inputs[0])
        if axis != 1:
            raise Unfollowed(f"{node.op_type} over the channels")

    def _reduce_mean(self, node: ir.Node) -> Each:
        name, value, axis = self._followed(node.inputs[0])
        rank = len(value.shape)
        given = (
            literal(node.inputs[1])
            if len(node.inputs) > 1
            else node.attributes.get("axes") and np.asarray(node.attributes["axes"].as_ints())
        )
        if given is None or not len(given):
            raise Unfollowed("ReduceMean over axes that the graph does not say")
        axes = {int(a) % rank for a in given}
        if axis in axes:
            raise Unfollowed("ReduceMean over the channels")
        keeps = bool(_get(node, "keepdims", 1))
        shape = [1 if i in axes else size for i, size in enumerate(value.shape) if keeps or i not in axes]
        axis = axis if keeps else axis - sum(a < axis for a in axes)
        output = self._made(node.outputs[0], tuple(shape), axis)
        return Each(node.op_type, name_of(node.outputs[0]), (name,), (output,), lambda x, _: x, linear=True)

    def _norm(self, node: ir.Node) -> Node | None:
        """Joins the convolution before it, or is an affine map of its own."""
        name, _, axis = self._followed(node.inputs[0])
        if axis != 1 or any(v.uses() for v in node.outputs[1:]) or _get(node, "training_mode", 0):
            raise Unfollowed("BatchNormalization as in training, or not over channels")
        if not all(is_weight(v) for v in node.inputs[1:5]):
            raise Unfollowed("the statistics of this BatchNormalization are not in the checkpoint")
        names = [name_of(v) for v in node.inputs[1:5]]
        epsilon = float(_get(node, "epsilon", 1e-5))
        alone = all(v is not None and len(v.uses()) == 1 for v in node.inputs[1:5])
        source = node.inputs[0]
        before = self._by_output.get(name)
        if (
            before is not None
            and alone
            and source is not None
            and len(source.uses()) == 1
            and not source.is_graph_output()
        ):
            layer = self.nodes[before]
            if isinstance(layer, LayerNode) and layer.layer.norm is None:
                self.nodes[before] = replace(
                    layer,
                    layer=replace(layer.layer, norm=Norm(*names, epsilon)),
                    outputs=(self._made(node.outputs[0], self.values[name].shape, axis),),
                )
                self._by_output[self.nodes[before].output] = before
                return None
        if not alone:
            raise Unfollowed("several operators share the tensors of this BatchNormalization")

        def normalise(x: Float64s, given: Any) -> Float64s:
            scale, shift, mean, var = given
            return np.asarray((x - mean) / np.sqrt(var + epsilon) * scale + shift)

        return self._each(node, normalise, parameters=tuple(Parameter(n, 0) for n in names))

    def _prelu(self, node: ir.Node) -> Each:
        parameter = self._parameter(node, 1)
        if parameter is None:
            slope = literal(node.inputs[1])
            if slope is None or slope.size != 1:
                raise Unfollowed("PRelu with a slope that is no parameter")
            number = float(slope.ravel()[0])
            return self._each(node, lambda x, _: np.where(x < 0, number * x, x))
        return self._each(node, lambda x, given: np.where(x < 0, given[0] * x, x), parameters=(parameter,))

    def _parameter(self, node: ir.Node, position: int) -> Parameter | None:
        """A weight of one number per channel of the other input, or None if it is no weight."""
        value = node.inputs[position]
        if not is_weight(value):
            return None
        assert value is not None
        _, other, axis = self._followed(node.inputs[1 - position])
        shape = shape_of(value)
        own = axis - len(other.shape) + len(shape)
        if len(value.uses()) != 1 or len(shape) > len(other.shape):
            raise Unfollowed("several operators share this parameter")
        if own < 0 or any(size != 1 for i, size in enumerate(shape) if i != own) or shape[own] != other.width:
            raise Unfollowed(f"{node.op_type} of a parameter that is not one number per channel")
        return Parameter(name_of(value), own)

    def _binary(self, node: ir.Node) -> Node | None:
        combine = COMBINE[node.op_type]
        if len(node.inputs) != 2:
            raise Unfollowed(f"{node.op_type} of {len(node.inputs)} values")
        active = [i for i in (0, 1) if self._is_activation(node.inputs[i])]
        if len(active) == 2:
            return self._join(node)
        (one,) = active
        # fmt: off
        ordered = (lambda x, y: combine(x, y)) if one == 0 else (lambda x, y: combine(y, x))
        # fmt: on
        name, value, axis = self._followed(node.inputs[one])
        parameter = self._parameter(node, 1 - one)
        what: dict[str, Any] = {}
        if parameter is not None:
            if self._is_bias(node, name, parameter):
                return None
            function = lambda x, given: ordered(x, given[0])  # noqa: E731
            what = {"parameters": (parameter,), "linear": node.op_type == "Mul"}
        else:
            content = literal(node.inputs[1 - one])
            if content is None or content.size != 1 or content.ndim > len(value.shape):
                raise Unfollowed(f"{node.op_type} of a constant that is not one number")
            number = float(content.ravel()[0])
            function = lambda x, _: ordered(x, number)  # noqa: E731
            what = {"linear": node.op_type == "Mul" or (node.op_type == "Div" and one == 0)}
        output = self._made(node.outputs[0], value.shape, axis)
        return Each(node.op_type, name_of(node.outputs[0]), (name,), (output,), function, **what)

    def _join(self, node: ir.Node) -> Node:
        (left, one, axis), (right, other, second) = (self._followed(v) for v in node.inputs)
        ranks = len(one.shape), len(other.shape)
        if axis - ranks[0] != second - ranks[1] or one.width != other.width:
            raise Unfollowed(f"{node.op_type} of different numbers of channels")
        wider = one if ranks[0] >= ranks[1] else other
        shape = tuple(
            a if b == 1 else b if a == 1 else a
            for a, b in zip(_padded(one.shape, max(ranks)), _padded(other.shape, max(ranks)), strict=True)
        )
        output = self._made(node.outputs[0], shape, cast(int, wider.axis))
        return Join(node.op_type, name_of(node.outputs[0]), (left, right), (output,))

    def _is_bias(self, node: ir.Node, name: str, parameter: Parameter) -> bool:
        """Notes this Add as the bias of the MatMul before it, if it is that."""
        before = self._by_output.get(name)
        layer = None if before is None else self.nodes[before]
        source = next(v for v in node.inputs if v is not None and v.name == name)
        alone = len(source.uses()) == 1 and not source.is_graph_output()
        if before is None or not isinstance(layer, LayerNode) or not alone or node.op_type != "Add":
            return False
        if layer.op != "MatMul" or layer.layer.bias is not None:
            return False
        value = self.values[name]
        output = self._made(node.outputs[0], value.shape, cast(int, value.axis))
        self.nodes[before] = replace(
            layer, layer=replace(layer.layer, bias=parameter.name), outputs=(output,)
        )
        self._by_output[output] = before
        return True

    def _layer(self, node: ir.Node) -> LayerNode | Node:
        weight, transposed = node.inputs[1], False
        if node.op_type == "MatMul":
            transposed = True
            producer = weight.producer() if weight is not None else None
            if producer is not None and producer.op_type == "Transpose":
                if len(cast(ir.Value, weight).uses()) != 1 or len(shape_of(producer.inputs[0])) != 2:
                    raise Unfollowed("several operators share this weight")
                weight, transposed = producer.inputs[0], False
        if weight is None or not is_weight(weight):
            if self._is_activation(weight):
                raise Unfollowed(f"{node.op_type} of two activations")
            raise Unfollowed(f"the weight of this {node.op_type} is not in the checkpoint")
        if len(weight.uses()) > 1:
            raise Unfollowed("several operators share this weight")
        shape = shape_of(weight)
        if node.op_type == "MatMul" and len(shape) != 2:
            raise Unfollowed("MatMul of a weight that is no matrix")
        if node.op_type == "Gemm":
            form = tuple(
                _get(node, key, default) for key, default in (("transA", 0), ("alpha", 1.0), ("beta", 1.0))
            )
            if form != (0, 1.0, 1.0):
                raise Unfollowed("Gemm that is not a plain linear layer")
            transposed = not _get(node, "transB", 0)
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None and not is_weight(bias):
            content = literal(bias)
            if content is None or content.any():
                raise Unfollowed(f"the bias of this {node.op_type} is not in the checkpoint")
            bias = None  # the exporter writes the zeros of an absent bias into the graph
        if bias is not None and (len(bias.uses()) > 1 or len(shape_of(bias)) != 1):
            raise Unfollowed("several operators share this bias")
        if _get(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
            raise Unfollowed(f"convolution with auto_pad={_get(node, 'auto_pad', '')}")
        layer = Layer(
            name=name_of(weight).removesuffix(".weight"),
            op=node.op_type,
            weight=name_of(weight),
            bias=None if bias is None else name_of(bias),
            norm=None,
            padded=any(_get(node, "pads", ())),
            groups=int(_get(node, "group", 1)),
            transposed=transposed,
            rank=len(shape),
        )
        source = self._value(node.inputs[0])
        rank = len(source.shape)
        reads = rank - 1 if node.op_type == "MatMul" else 1
        out = shape[1] if transposed else shape[0]
        into = (shape[0] if transposed else shape[1] or 0) or 0
        if not out or not rank:
            raise Unfollowed(f"{node.op_type} of a shape that is not known")
        made = list(source.shape)
        made[reads] = out
        stated = shape_of(node.outputs[0])
        if node.op_type == "Conv":
            made = [made[0], out, *(stated[2:] if len(stated) == rank else [None] * (rank - 2))]
        follows = source.axis == reads and source.width == into * layer.groups
        if source.axis is None and source.shape[reads] is None:
            follows = False
        output = self._made(node.outputs[0], tuple(made), reads)
        return LayerNode(
            node.op_type, name_of(node.outputs[0]), (name_of(node.inputs[0]),), (output,), layer, follows
        )

    # Operators that move channels.

    def _rearranges(self) -> None:
        if self.legality == "torch":
            raise Unfollowed("a torch module's own code says where channels are cut")

    def _concat(self, node: ir.Node) -> Node:
        found = [self._followed(v) for v in node.inputs]
        axis = found[0][2]
        rank = len(found[0][1].shape)
        if any(other[2] != axis or len(other[1].shape) != rank for other in found):
            raise Unfollowed("Concat of channels that lie on different axes")
        names = tuple(name for name, _, _ in found)
        along = int(_get(node, "axis", 0)) % rank
        if along != axis:
            if len({value.width for _, value, _ in found}) != 1:
                raise Unfollowed("Concat of different numbers of channels")
            raise Unfollowed("Concat of positions")
        widths = [value.width for _, value, _ in found]
        which = np.repeat(np.arange(len(found)), widths)
        channel = np.concatenate([np.arange(width) for width in widths])
        shape = list(found[0][1].shape)
        shape[axis] = sum(widths)
        output = self._made(node.outputs[0], tuple(shape), axis)
        return Arrange(
            node.op_type, name_of(node.outputs[0]), names, (output,), (np.stack([which, channel]),)
        )

    def _arranged(self, node: ir.Node, channels: list[Ints], **what: Any) -> Arrange:
        """Of one input: for each output, which of its channels (-1 for new ones of zeros)."""
        name, value, axis = self._followed(node.inputs[0])
        outputs, sources = [], []
        for result, picked in zip(node.outputs, channels, strict=True):
            shape = list(value.shape)
            shape[axis] = len(picked)
            outputs.append(self._made(result, tuple(shape), axis))
            sources.append(np.stack([np.where(picked < 0, -1, 0), picked]))
        return Arrange(
            node.op_type, name_of(node.outputs[0]), (name,), tuple(outputs), tuple(sources), **what
        )

    def _split(self, node: ir.Node) -> Node:
        _, value, axis = self._followed(node.inputs[0])
        if int(_get(node, "axis", 0)) % len(value.shape) != axis:
            raise Unfollowed("Split of positions")
        self._rearranges()
        sizes = literal(node.inputs[1]) if len(node.inputs) > 1 else _attribute_ints(node, "split")
        if sizes is None:
            count = len(node.outputs)
            each = math.ceil(value.width / count)
            sizes = np.diff(np.minimum(np.arange(count + 1) * each, value.width))
        bounds = np.cumsum(sizes)
        if bounds[-1] != value.width:
            raise Unfollowed("Split into parts that are not the whole")
        return self._arranged(node, np.split(np.arange(value.width), bounds[:-1]))

    def _slice(self, node: ir.Node) -> Node:
        name, value, axis = self._followed(node.inputs[0])
        rank = len(value.shape)
        given = [literal(v) if v is not None else None for v in node.inputs[1:]]
        if len(given) < 2 or given[0] is None or given[1] is None:
            raise Unfollowed("Slice with bounds that are computed")
        starts, ends = given[0], given[1]
        axes = given[2] if len(given) > 2 and given[2] is not None else np.arange(len(starts))
        steps = given[3] if len(given) > 3 and given[3] is not None else np.ones(len(starts), np.int64)
        cut = {int(a) % rank: i for i, a in enumerate(axes)}
        if axis not in cut:
            shape = shape_of(node.outputs[0])
            output = self._made(
                node.outputs[0],
                shape
                if len(shape) == rank
                else (None,) * axis + (value.width,) + (None,) * (rank - axis - 1),
                axis,
            )
            return Each(node.op_type, name_of(node.outputs[0]), (name,), (output,), lambda x, _: x)
        if len(cut) > 1:
            raise Unfollowed("Slice of channels and positions at once")
        self._rearranges()
        i = cut[axis]
        picked = np.arange(value.width)[int(starts[i]) : _end(int(ends[i])) : int(steps[i])]
        if not picked.size:
            raise Unfollowed("Slice of nothing")
        return self._arranged(node, [picked])

    def _gather(self, node: ir.Node) -> Node:
        _, value, axis = self._followed(node.inputs[0])
        indices = literal(node.inputs[1])
        if int(_get(node, "axis", 0)) % len(value.shape) != axis or indices is None or indices.ndim != 1:
            raise Unfollowed("Gather of positions")
        self._rearranges()
        return self._arranged(node, [np.asarray(indices, np.int64) % value.width])

    def _pad(self, node: ir.Node) -> Node:
        name, value, axis = self._followed(node.inputs[0])
        rank = len(value.shape)
        pads = literal(node.inputs[1]) if len(node.inputs) > 1 else None
        fill = (
            literal(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else np.zeros(())
        )
        if pads is None or fill is None or _get(node, "mode", "constant") != "constant" or fill.any():
            raise Unfollowed("Pad with anything but zeros")
        axes = np.arange(rank) if len(node.inputs) < 4 or node.inputs[3] is None else literal(node.inputs[3])
        if axes is None:
            raise Unfollowed("Pad of axes that the graph does not say")
        around = {
            int(a) % rank: (int(low), int(high))
            for a, low, high in zip(axes, *np.split(pads, 2), strict=True)
        }
        before, after = around.pop(axis, (0, 0))
        elsewhere = any(low or high for low, high in around.values())
        if (before or after) and elsewhere:
            raise Unfollowed("Pad of channels and positions at once")
        if elsewhere:
            shape = shape_of(node.outputs[0])
            output = self._made(
                node.outputs[0],
                shape
                if len(shape) == rank
                else (None,) * axis + (value.width,) + (None,) * (rank - axis - 1),
                axis,
            )
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
            raise Unfollowed("Pad that cuts channels off")
        self._rearranges()
        empty = np.full(1, -1)
        return self._arranged(
            node,
            [np.concatenate([np.repeat(empty, before), np.arange(value.width), np.repeat(empty, after)])],
        )

    def _flatten(self, node: ir.Node) -> Node:
        name, value, axis = self._followed(node.inputs[0])
        if _get(node, "axis", 1) != 1 or axis != 1 or None in value.shape[1:]:
            raise Unfollowed("Flatten of an unknown size, or of the batch")
        positions = math.prod(cast(int, size) for size in value.shape[2:])
        channel = np.repeat(np.arange(value.width), positions)
        output = self._made(node.outputs[0], (value.shape[0], channel.size), 1)
        source = np.stack([np.zeros_like(channel), channel])
        return Arrange(
            node.op_type, name_of(node.outputs[0]), (name,), (output,), (source,), flattens=positions > 1
        )

    def _moved(self, node: ir.Node, axis_of: Callable[[int, tuple[int | None, ...]], int | None]) -> Each:
        """Axes change places; channels stay together."""
        name, value, axis = self._followed(node.inputs[0])
        shape = shape_of(node.outputs[0])
        new = axis_of(axis, value.shape)
        if new is None or not shape:
            raise Unfollowed(f"{node.op_type} that takes channels apart")
        made = list(shape)
        made[new] = value.width
        output = self._made(node.outputs[0], tuple(made), new)
        return Each(node.op_type, name_of(node.outputs[0]), (name,), (output,), lambda x, _: x, linear=True)

    def _transpose(self, node: ir.Node) -> Each:
        def axis_of(axis: int, shape: tuple[int | None, ...]) -> int:
            perm = _attribute_ints(node, "perm")
            return int(list(range(len(shape))[::-1] if perm is None else perm).index(axis))

        return self._moved(node, axis_of)

    def _unsqueeze(self, node: ir.Node) -> Each:
        axes = literal(node.inputs[1]) if len(node.inputs) > 1 else _attribute_ints(node, "axes")

        def axis_of(axis: int, shape: tuple[int | None, ...]) -> int | None:
            if axes is None:
                return None
            rank = len(shape) + len(axes)
            new = {int(a) % rank for a in axes}
            return [i for i in range(rank) if i not in new][axis]

        return self._moved(node, axis_of)

    def _squeeze(self, node: ir.Node) -> Each:
        axes = literal(node.inputs[1]) if len(node.inputs) > 1 else _attribute_ints(node, "axes")

        def axis_of(axis: int, shape: tuple[int | None, ...]) -> int | None:
            gone = None if axes is None else {int(a) % len(shape) for a in axes}
            return None if gone is None or axis in gone else axis - sum(a < axis for a in gone)

        return self._moved(node, axis_of)

    def _reshape(self, node: ir.Node) -> Each:
        self._rearranges()
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

        return self._moved(node, axis_of)


def _padded(shape: tuple[int | None, ...], rank: int) -> tuple[int | None, ...]:
    return (1,) * (rank - len(shape)) + shape


def _end(bound: int) -> int | None:
    return None if abs(bound) > 2**31 else bound


def _get(node: ir.Node, name: str, default: Any) -> Any:
    found = node.attributes.get(name)
    return default if found is None else found.value


def _attribute_ints(node: ir.Node, name: str) -> Ints | None:
    found = node.attributes.get(name)
    return None if found is None else np.asarray(found.as_ints(), np.int64)


_READERS: dict[str, Callable[[_Reader, ir.Node], Node | None]] = {
    **dict.fromkeys(COMBINE, _Reader._binary),
    **dict.fromkeys(("Conv", "Gemm", "MatMul"), _Reader._layer),
    **dict.fromkeys(("Identity", "Dropout"), _Reader._identity),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), _Reader._global_pool),
    "AveragePool": _Reader._average_pool,
    "BatchNormalization": _Reader._norm,
    "Concat": _Reader._concat,
    "Flatten": _Reader._flatten,
    "Gather": _Reader._gather,
    "MaxPool": _Reader._max_pool,
    "PRelu": _Reader._prelu,
    "Pad": _Reader._pad,
    "ReduceMean": _Reader._reduce_mean,
    "Reshape": _Reader._reshape,
    "Slice": _Reader._slice,
    "Split": _Reader._split,
    "Squeeze": _Reader._squeeze,
    "Transpose": _Reader._transpose,
    "Unsqueeze": _Reader._unsqueeze,
}
