"""What each layer costs for one image: multiply-accumulates and bytes, from graph and shapes alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from shifter.values import LayerCost

_MULTIPLYING = frozenset({"Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"})
_RANDOM = frozenset({"RandomNormal", "RandomUniform"})
_MOST_SIZES = 64
"""Numbers in a constant that can still be a list of sizes."""

Shape = tuple[int, ...]


def layer_costs(graph: bytes, image_shape: Shape) -> tuple[LayerCost, ...]:
    """One entry per convolution, linear layer and matrix product, in the order of the graph.

    Args:
        graph: an ONNX model with one input (batch, channels, height, width); weights may be absent.
        image_shape: (channels, height, width) of the image that it is to answer.
    """
    model = onnx.ModelProto.FromString(graph)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:  # a weight that is turned round first is its layer's all the same
        if node.op_type in ("Transpose", "Identity") and node.input[0] in weights:
            weights[node.output[0]] = weights[node.input[0]]
    shapes = _shapes(model, (1, *image_shape))
    return tuple(_cost(node, shapes, weights) for node in model.graph.node if node.op_type in _MULTIPLYING)


def _cost(node: onnx.NodeProto, shapes: dict[str, Shape], weights: dict[str, onnx.TensorProto]) -> LayerCost:
    output = shapes.get(node.output[0])
    owned = [weights[name] for name in node.input if name in weights]
    return LayerCost(
        name=owned[0].name.removesuffix(".weight") if owned else node.name,
        op=node.op_type,
        macs=_macs(node, shapes),
        weight_bytes=sum(math.prod(tensor.dims) * _itemsize(tensor) for tensor in owned),
        # Activations are float32, whatever runs the graph.
        output_bytes=None if output is None else 4 * math.prod(output),
    )


def _macs(node: onnx.NodeProto, shapes: dict[str, Shape]) -> int | None:
    """Each output number is a sum of as many products as its weight has numbers behind one channel."""
    if node.op_type == "Einsum":
        return _einsum_macs(node, shapes)
    first, second = (shapes.get(name) for name in node.input[:2])
    output = shapes.get(node.output[0])
    if first is None or second is None or output is None:
        return None
    if node.op_type == "Conv":  # weight: (out, in / groups, *kernel)
        return math.prod(output) * math.prod(second[1:])
    if node.op_type == "ConvTranspose":  # weight: (in, out / groups, *kernel); each input is spread
        return math.prod(first) * math.prod(second[1:])
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    return math.prod(output) * first[-2 if transposed else -1]


def _einsum_macs(node: onnx.NodeProto, shapes: dict[str, Shape]) -> int | None:
    """Of two operands: one for each combination of the positions on all of their axes."""
    (equation,) = (attribute.s.decode() for attribute in node.attribute if attribute.name == "equation")
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, name in zip(terms, node.input, strict=True):
        if "." in term or name not in shapes:
            return None
        sizes |= zip(term, shapes[name], strict=True)
    return math.prod(sizes.values()) if len(terms) == 2 else None


def _shapes(model: onnx.ModelProto, images: Shape) -> dict[str, Shape]:
    """Of every value whose shape follows from the images' alone."""
    owned = {tensor.name for tensor in model.graph.initializer}
    (given,) = (value for value in model.graph.input if value.name not in owned)
    for size, dim in zip(images, given.type.tensor_type.shape.dim, strict=True):
        dim.Clear()
        dim.dim_value = size
    # What the export noted down may hold for another size, or for a batch of any size.
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    known = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.data_location != TensorProto.EXTERNAL and math.prod(tensor.dims) <= _MOST_SIZES
    }
    while True:
        shapes = _inferred(model)
        if not _fold_sizes(model.graph, shapes, known):
            return shapes


def _inferred(model: onnx.ModelProto) -> dict[str, Shape]:
    inferred = shape_inference.infer_shapes(model, data_prop=True).graph
    found: dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in inferred.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
            found[value.name] = tuple(dim.dim_value for dim in dims)
    return found


def _fold_sizes(graph: onnx.GraphProto, shapes: dict[str, Shape], known: dict[str, NDArray[Any]]) -> bool:
    """Puts numbers in place of the nodes that compute sizes from known shapes; False if there are none.

    The shape of a Reshape to computed sizes follows from these numbers alone.
    """
    left, folded = [], []
    for node in graph.node:
        if node.op_type == "Shape" and node.input[0] in shapes:
            given: list[NDArray[Any]] = [np.empty(shapes[node.input[0]], np.bool_)]
        elif node.op_type not in _RANDOM and all(name in known for name in node.input):
            given = [known[name] for name in node.input]
        else:
            left.append(node)
            continue
        values = ReferenceEvaluator(node).run(None, dict(zip(node.input, given, strict=True)))
        for name, value in zip(node.output, values, strict=True):
            known[name] = np.asarray(value)
            folded.append(numpy_helper.from_array(known[name], name))
    del graph.node[:]
    graph.node.extend(left)
    graph.initializer.extend(folded)
    return bool(folded)


def _itemsize(tensor: onnx.TensorProto) -> int:
    return int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
