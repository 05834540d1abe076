"""A network's graph as phase 2 reads it: operators in order, and the layers that own weights.

The architecture is an ONNX model without weights, whose external initializers are named as the
checkpoint's tensors. Nothing here needs the weights themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from shifter.errors import GraphError


@dataclass(frozen=True)
class Norm:
    """A batch normalisation that follows a convolution: names of its tensors, and its epsilon."""

    scale: str
    bias: str
    mean: str
    var: str
    epsilon: float


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer, with the batch normalisation that follows it.

    Args:
        name: the weight's name without ``.weight``.
        op: ``Conv`` (weight: out, in, height, width) or ``Gemm`` (weight: out, in).
        padded: True if the border of its input is padded, so that a constant input channel gives
            no constant output channel.
    """

    name: str
    op: str
    weight: str
    bias: str | None
    norm: Norm | None
    padded: bool

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of every checkpoint tensor that the layer reads."""
        names = [self.weight]
        if self.bias is not None:
            names.append(self.bias)
        if self.norm is not None:
            names += [self.norm.scale, self.norm.bias, self.norm.mean, self.norm.var]
        return tuple(names)

    @property
    def reduced_weight(self) -> str:
        """Name of the weight after fusion and reduction."""
        return self.weight

    @property
    def reduced_bias(self) -> str:
        """Name of the bias after fusion and reduction; every reduced layer has one."""
        return f"{self.name}.bias"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Layer:
        fields = dict(data)
        if fields["norm"] is not None:
            fields["norm"] = Norm(**fields["norm"])
        return cls(**fields)


@dataclass(frozen=True)
class Node:
    """One operator. ``layer`` is set where it owns weights; ``inputs`` are then activations only."""

    op: str
    name: str
    inputs: tuple[str, ...]
    output: str
    attributes: dict[str, Any]
    layer: Layer | None = None
    trouble: str | None = None
    """Why channels cannot be followed through it, or None if they can."""


@dataclass(frozen=True)
class Network:
    """The operators of a network in an order in which they can run, batch norm already folded in."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    shapes: dict[str, tuple[int | None, ...]]
    """Of each activation; None where a size is not fixed (the batch)."""

    @property
    def layers(self) -> Iterator[Layer]:
        return (node.layer for node in self.nodes if node.layer is not None)


PLAIN = (
    *("Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Identity"),
    *("MaxPool", "AveragePool", "GlobalAveragePool"),
)
"""Operators of one activation that treat every channel alike and are followed as they are."""


def parse_model(architecture: bytes) -> ir.Model:
    """Reads a weightless ONNX model and rewrites what stands in the way of reduction.

    A Reshape that flattens everything but the batch carries a literal channel count: it becomes a
    Flatten, which carries none.

    Raises:
        GraphError: if the bytes are not an ONNX model, or an input's rank is not known.
    """
    try:
        proto = onnx.ModelProto.FromString(architecture)
        known = {info.name for info in (*proto.graph.value_info, *proto.graph.output)}
        if any(name and name not in known for node in proto.graph.node for name in node.output):
            proto = onnx.shape_inference.infer_shapes(proto)
        model: ir.Model = ir.from_proto(proto)
    except Exception as error:
        raise GraphError(f"the architecture is not an ONNX model: {error}") from error
    if not model.graph.outputs:
        raise GraphError("the architecture has no output: it is empty, or not an ONNX model")
    for node in list(model.graph):
        if node.op_type == "Reshape" and _flattens(node):
            flatten = ir.node("Flatten", [node.inputs[0]], {"axis": 1}, name=node.name)
            ir.convenience.replace_nodes_and_values(
                model.graph, node, [node], [flatten], node.outputs, flatten.outputs
            )
    RemoveUnusedNodesPass()(model)
    return model


def read_network(model: ir.Model) -> Network:
    """Turns a parsed model into operators and layers; batch norms join the layer before them."""
    graph = model.graph
    values = [*graph.inputs, *(value for node in graph for value in node.outputs)]
    nodes: list[Node] = []
    constants: set[str] = set()
    for node in graph:
        if node.op_type == "Constant":
            constants.add(_name(node.outputs[0]))
            continue
        if node.op_type == "BatchNormalization" and (before := _layer_before(node, nodes)) is not None:
            layer = nodes[before].layer
            assert layer is not None
            scale, bias, mean, var = (_name(value) for value in node.inputs[1:5])
            norm = Norm(scale, bias, mean, var, _attribute(node, "epsilon", 1e-5))
            output = _name(node.outputs[0])
            nodes[before] = replace(nodes[before], layer=replace(layer, norm=norm), output=output)
            continue
        read = _read_node(node, constants)
        nodes.append(read)
        nodes += [replace(read, output=_name(other)) for other in node.outputs[1:] if other.uses()]
    return Network(
        inputs=tuple(_name(v) for v in graph.inputs),
        outputs=tuple(_name(v) for v in graph.outputs),
        nodes=tuple(nodes),
        shapes={_name(value): _shape(value) for value in values},
    )


def is_weight(value: ir.Value | None) -> bool:
    """True if the value is an initializer whose content stands in the checkpoint."""
    return value is not None and isinstance(value.const_value, ir.ExternalTensor)


def _read_node(node: ir.Node, constants: set[str]) -> Node:
    activations = tuple(
        _name(v) for v in node.inputs if v is not None and v.const_value is None and v.name not in constants
    )
    attributes = {a.name: a.value for a in node.attributes.values()}
    read = Node(node.op_type, node.name or "", activations, _name(node.outputs[0]), attributes)
    if len(node.outputs) == 1 and node.domain in ("", "ai.onnx"):
        if node.op_type in _READERS:
            return _READERS[node.op_type](node, read)
        if node.op_type in PLAIN:
            return read
    return replace(read, trouble=f"{node.op_type} is not an operator that is followed")


def _read_reduce_mean(node: ir.Node, read: Node) -> Node:
    axes = _axes(node)
    if axes is not None and {axis % 4 for axis in axes} == {2, 3} and len(_shape(node.inputs[0])) == 4:
        return read
    return replace(read, trouble="ReduceMean over other axes than the image's")


def _read_flatten(node: ir.Node, read: Node) -> Node:
    if read.attributes.get("axis", 1) == 1 and _width(node.inputs[0]) and _width(node.outputs[0]):
        return read
    return replace(read, trouble="Flatten of an unknown size, or of the batch")


def _read_add(node: ir.Node, read: Node) -> Node:
    left, right = (_shape(value) for value in node.inputs)
    if len(read.inputs) == 2 and left == right and _width(node.inputs[0]):
        return read
    return replace(read, trouble="Add of different shapes, or of a constant")


def _read_clip(node: ir.Node, read: Node) -> Node:
    if "min" in read.attributes or "max" in read.attributes:
        return replace(read, trouble="Clip of an opset before 11")
    bounds: dict[str, float] = {}
    for name, value in zip(("low", "high"), node.inputs[1:3], strict=False):
        if value is None:
            continue
        if value.const_value is None or is_weight(value):
            return replace(read, trouble="Clip with bounds that are computed")
        bounds[name] = float(value.const_value.numpy())
    return replace(read, attributes=read.attributes | bounds)


def _read_layer(node: ir.Node, read: Node) -> Node:
    weight = node.inputs[1]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if weight is None or not is_weight(weight):
        return replace(read, trouble=f"the weight of this {node.op_type} is not in the checkpoint")
    if len(weight.uses()) > 1:
        return replace(read, trouble="several operators share this weight")
    if bias is not None and not is_weight(bias):
        if bias.const_value is None or bias.const_value.numpy().any():
            return replace(read, trouble=f"the bias of this {node.op_type} is not in the checkpoint")
        bias = None  # the exporter writes the zeros of an absent bias into the graph
    get = read.attributes.get
    form = (get("transA", 0), get("transB", 0), get("alpha", 1.0), get("beta", 1.0))
    if node.op_type == "Gemm" and form != (0, 1, 1.0, 1.0):
        return replace(read, trouble="Gemm that is not a plain linear layer")
    if get("group", 1) != 1:
        return replace(read, trouble="grouped convolution")
    if get("auto_pad", "NOTSET") != "NOTSET":
        return replace(read, trouble=f"convolution with auto_pad={get('auto_pad')}")
    name = _name(weight)
    layer = Layer(
        name=name.removesuffix(".weight"),
        op=node.op_type,
        weight=name,
        bias=None if bias is None else _name(bias),
        norm=None,
        padded=any(get("pads", ())),
    )
    return replace(read, layer=layer)


def _layer_before(node: ir.Node, nodes: list[Node]) -> int | None:
    """Index of the layer whose output only this batch normalisation reads, if there is one."""
    source = node.inputs[0]
    if source is None or len(source.uses()) != 1 or source.is_graph_output():
        return None
    own = all(v is not None and is_weight(v) and len(v.uses()) == 1 for v in node.inputs[1:5])
    if not own or len(node.outputs) != 1:
        return None
    for index, read in enumerate(nodes):
        if read.output == source.name and read.layer is not None and read.op == "Conv":
            return index if read.layer.norm is None else None
    return None


def _flattens(node: ir.Node) -> bool:
    source, result = (_shape(v) for v in (node.inputs[0], node.outputs[0]))
    if len(source) < 3 or len(result) != 2 or source[0] != result[0]:
        return False
    sizes = [size for size in source[1:] if size is not None]
    return len(sizes) == len(source) - 1 and result[1] == math.prod(sizes)


def _axes(node: ir.Node) -> list[int] | None:
    value = node.inputs[1] if len(node.inputs) > 1 else None
    if value is not None and value.const_value is not None:
        return [int(a) for a in value.const_value.numpy()]
    given = node.attributes.get("axes")
    return None if given is None else [int(a) for a in given.as_ints()]


def _attribute(node: ir.Node, name: str, default: float) -> float:
    found = node.attributes.get(name)
    return default if found is None else found.as_float()


def _width(value: ir.Value | None) -> int | None:
    """Channels (axis 1), where they are known."""
    shape = _shape(value)
    return shape[1] if len(shape) > 1 else None


def _shape(value: ir.Value | None) -> tuple[int | None, ...]:
    if value is None or value.shape is None:
        return ()
    return tuple(size if isinstance(size, int) else None for size in value.shape)


def _name(value: ir.Value | None) -> str:
    if value is None or value.name is None:
        raise GraphError("an operator's input has no name: export the model again")
    return value.name


_READERS: dict[str, Callable[[ir.Node, Node], Node]] = {
    "Add": _read_add,
    "Clip": _read_clip,
    "Conv": _read_layer,
    "Flatten": _read_flatten,
    "Gemm": _read_layer,
    "ReduceMean": _read_reduce_mean,
}
