"""What each layer costs for one image: multiply-accumulates and bytes, from graph and shapes alone."""

from __future__ import annotations

import math

import onnx
from onnx import shape_inference

from shifter.values import LayerCost

_MULTIPLYING = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

Shape = tuple[int, ...]


def layer_costs(graph: bytes, image_shape: Shape) -> tuple[LayerCost, ...]:
    """One entry per convolution, linear layer and matrix product, in the order of the graph.

    Args:
        graph: an ONNX model with one input (batch, channels, height, width); weights may be absent.
        image_shape: (channels, height, width) of the image that it is to answer.
    """
    model = onnx.ModelProto.FromString(graph)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
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
    inferred = shape_inference.infer_shapes(model, data_prop=True).graph
    found: dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in inferred.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
            found[value.name] = tuple(dim.dim_value for dim in dims)
    return found


def _itemsize(tensor: onnx.TensorProto) -> int:
    return int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
