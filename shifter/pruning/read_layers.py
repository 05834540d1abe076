"""Readers of layers, and of the batch norms that follow them."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import onnx_ir as ir

from shifter.pruning.functions import float32
from shifter.pruning.graph import attribute, is_weight, literal, name_of, shape_of
from shifter.pruning.network import (
    Each,
    Float64s,
    Layer,
    LayerNode,
    Node,
    Norm,
    Parameter,
)
from shifter.pruning.reader import Reader, UnfollowedError, slid


def layer(reader: Reader, node: ir.Node) -> LayerNode | Node:
    """A convolution or linear layer whose weights are in the checkpoint."""
    weight, transposed = _weight(reader, node)
    shape = shape_of(weight)
    bias = _bias(node, shape[1] if transposed else shape[0])
    if attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise UnfollowedError(f"convolution with auto_pad={attribute(node, 'auto_pad', '')}")
    layer = Layer(
        name=name_of(weight).removesuffix(".weight"),
        op=node.op_type,
        weight=name_of(weight),
        bias=None if bias is None else name_of(bias),
        norms=(),
        padded=any(attribute(node, "pads", ())),
        groups=int(attribute(node, "group", 1)),
        transposed=transposed,
        rank=len(shape),
    )
    source = reader.value(node.inputs[0])
    rank = len(source.shape)
    reads = rank - 1 if node.op_type == "MatMul" else 1
    out = shape[1] if transposed else shape[0]
    into = (shape[0] if transposed else shape[1] or 0) or 0
    if not out or not rank:
        raise UnfollowedError(f"{node.op_type} of a shape that is not known")
    made = list(source.sizes)
    made[reads] = out
    if node.op_type == "Conv":
        made[2:] = slid(node, source.sizes[2:], [size or 0 for size in shape[2:]])
    follows = source.axis == reads and source.width == into * layer.groups
    if source.axis is None and source.shape[reads] is None:
        follows = False
    output = reader.made(node.outputs[0], made, reads)
    return LayerNode(
        node.op_type, name_of(node.outputs[0]), (name_of(node.inputs[0]),), (output,), layer, follows
    )


def _weight(reader: Reader, node: ir.Node) -> tuple[ir.Value, bool]:
    """The layer's weight, and whether it is stored as (in, out)."""
    weight, transposed = node.inputs[1], False
    if node.op_type == "MatMul":
        transposed = True
        producer = weight.producer() if weight is not None else None
        if producer is not None and producer.op_type == "Transpose":
            if len(cast(ir.Value, weight).uses()) != 1 or len(shape_of(producer.inputs[0])) != 2:
                raise UnfollowedError("several operators share this weight")
            weight, transposed = producer.inputs[0], False
    if weight is None or not is_weight(weight):
        if reader.is_activation(weight):
            raise UnfollowedError(f"{node.op_type} of two activations")
        raise UnfollowedError(f"the weight of this {node.op_type} is not in the checkpoint")
    if len(weight.uses()) > 1:
        raise UnfollowedError("several operators share this weight")
    if node.op_type == "MatMul" and len(shape_of(weight)) != 2:
        raise UnfollowedError("MatMul of a weight that is no matrix")
    if node.op_type == "Gemm":
        form = tuple(
            attribute(node, key, default) for key, default in (("transA", 0), ("alpha", 1.0), ("beta", 1.0))
        )
        if form != (0, 1.0, 1.0):
            raise UnfollowedError("Gemm that is not a plain linear layer")
        transposed = not attribute(node, "transB", 0)
    return weight, transposed


def _bias(node: ir.Node, width: int | None) -> ir.Value | None:
    """The layer's bias, if it has one."""
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None:
        return None
    if not is_weight(bias):
        content = literal(bias)
        if content is None or content.any():
            raise UnfollowedError(f"the bias of this {node.op_type} is not in the checkpoint")
        return None  # the exporter writes the zeros of an absent bias into the graph
    if len(bias.uses()) > 1:
        raise UnfollowedError("several operators share this bias")
    if shape_of(bias) != (width,):
        raise UnfollowedError(f"the bias of this {node.op_type} is not one number per channel")
    return bias


def norm(reader: Reader, node: ir.Node) -> Each:
    """An affine map, which the layer before it may take over."""
    _, _, axis = reader.followed(node.inputs[0])
    if axis != 1 or any(v.uses() for v in node.outputs[1:]) or attribute(node, "training_mode", 0):
        raise UnfollowedError("BatchNormalization as in training, or not over channels")
    if not all(is_weight(v) for v in node.inputs[1:5]):
        raise UnfollowedError("the statistics of this BatchNormalization are not in the checkpoint")
    scale, shift, mean, var = names = [name_of(v) for v in node.inputs[1:5]]
    epsilon = float(reader.number(attribute(node, "epsilon", float32(1e-5))))
    if any(len(cast(ir.Value, v).uses()) != 1 for v in node.inputs[1:5]):
        raise UnfollowedError("several operators share the tensors of this BatchNormalization")

    def normalise(x: Float64s, given: Any) -> Float64s:
        scale, shift, mean, var = given
        return np.asarray((x - mean) / np.sqrt(var + epsilon) * scale + shift)

    return reader.each(
        node,
        normalise,
        parameters=tuple(Parameter(n, 0) for n in names),
        scales=True,
        fusible=Norm(scale, shift, mean, var, epsilon),
    )
