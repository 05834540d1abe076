"""Module 4, the model pruner: each layer's new tensors from its old ones and its part of the plan.

:func:`rebuild_layer` is a pure function of one layer, so layers of all rounds rebuild side by
side, each reading only its own bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import DTypeLike, NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from shifter.pruning.fuse import Float64s, fuse_layer
from shifter.pruning.graph import is_weight, parse_model, read_network
from shifter.pruning.plan import LayerPlan, PrunePlan
from shifter.values import Tensors


def rebuild_layer(
    part: LayerPlan, tensors: Tensors, dtype: DTypeLike = np.float32
) -> dict[str, NDArray[Any]]:
    """The layer's reduced tensors, computed in float64 and rounded once.

    Args:
        tensors: must hold ``part.layer.tensors``.

    Returns:
        Weight (kept out, kept in, …) and bias (kept out,), C-contiguous.

    Raises:
        CheckpointError: if a tensor is missing, misshapen or not finite.
    """
    weight, bias = fuse_layer(part.layer, tensors)
    weight, bias = settle_outputs(part, weight, bias)
    weight, bias = settle_constants(part, weight, bias)
    kept = np.ix_(part.outputs, part.inputs)
    return {
        part.layer.reduced_weight: np.ascontiguousarray(weight[kept], dtype=dtype),
        part.layer.reduced_bias: np.ascontiguousarray(bias[list(part.outputs)], dtype=dtype),
    }


def settle_outputs(part: LayerPlan, weight: Float64s, bias: Float64s) -> tuple[Float64s, Float64s]:
    """Output channels that nothing needs become zero; constant ones become their bias."""
    weight, bias = weight.copy(), bias.copy()
    empty = list(part.empty_outputs)
    weight[empty] = 0.0
    bias[empty] = 0.0
    for channel, value in part.constant_outputs:
        weight[channel] = 0.0
        bias[channel] = value
    return weight, bias


def settle_constants(part: LayerPlan, weight: Float64s, bias: Float64s) -> tuple[Float64s, Float64s]:
    """What the constant inputs contribute moves into the bias, or to the carrier's weights."""
    kernel = tuple(range(2, weight.ndim))
    settled, bias = weight.copy(), bias.copy()
    settled[:, list(part.silent_inputs)] = 0.0
    live = np.ones(bias.size, np.bool_)
    live[[channel for channel, _ in part.constant_outputs]] = False
    live[list(part.empty_outputs)] = False
    if part.folded_inputs:
        channels = [channel for channel, _ in part.folded_inputs]
        values = np.array([value for _, value in part.folded_inputs])
        bias[live] += weight[live][:, channels].sum(axis=kernel) @ values
    for carrier in sorted({carrier for _, carrier, _ in part.carried_inputs}):
        carried = [(channel, ratio) for channel, via, ratio in part.carried_inputs if via == carrier]
        ratios = np.array([ratio for _, ratio in carried])
        settled[:, carrier] += np.einsum(
            "oihw,i->ohw", weight[:, [channel for channel, _ in carried]], ratios
        )
    return settled, bias


def rebuild_graph(architecture: bytes, plan: PrunePlan) -> bytes:
    """The reduced network's graph: a weightless ONNX model with the new shapes.

    Batch norms that were folded are gone; every planned layer has a bias.
    """
    model = parse_model(architecture)
    parts = {part.layer.name: part for part in plan.layers}
    nodes = {node.name: node for node in model.graph}
    for read in read_network(model).nodes:
        if read.layer is not None:
            _rewrite_layer(model, nodes[read.name], read.output, parts[read.layer.name])
    RemoveUnusedNodesPass()(model)
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
    serialised: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
    return serialised


def other_tensors(architecture: bytes, plan: PrunePlan) -> tuple[str, ...]:
    """Checkpoint tensors that the reduced graph still reads as they are (layers that are not followed)."""
    model = parse_model(architecture)
    planned = {name for part in plan.layers for name in part.layer.tensors}
    return tuple(
        name for name, value in model.graph.initializers.items() if is_weight(value) and name not in planned
    )


def _rewrite_layer(model: ir.Model, node: ir.Node, output: str, part: LayerPlan) -> None:
    shapes = _reduced_shapes(node, part)
    for name, position in ((part.layer.reduced_weight, 1), (part.layer.reduced_bias, 2)):
        model.graph.initializers.pop(name, None)
        value = weightless(name, shapes[name])
        model.graph.initializers.add(value)
        while len(node.inputs) <= position:
            node.resize_inputs(position + 1)
        node.replace_input_with(position, value)
    norm = node.outputs[0]
    if norm.name != output:  # the batch normalisation, now folded: whoever read it reads the layer
        (use,) = norm.uses()
        ir.convenience.replace_all_uses_with(use.node.outputs[0], norm, replace_graph_outputs=True)
        model.graph.remove(use.node, safe=True)


def _reduced_shapes(node: ir.Node, part: LayerPlan) -> Mapping[str, tuple[int, ...]]:
    weight = node.inputs[1]
    assert weight is not None
    assert weight.shape is not None
    kernel = tuple(int(size) for size in weight.shape.numpy()[2:])
    out, into = len(part.outputs), len(part.inputs)
    return {part.layer.reduced_weight: (out, into, *kernel), part.layer.reduced_bias: (out,)}


def weightless(name: str, shape: tuple[int, ...], dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
    """An initializer whose content is elsewhere: external, its location being its own name."""
    length = int(np.prod(shape)) * dtype.bitwidth // 8
    tensor = ir.ExternalTensor(name, 0, length, dtype, shape=ir.Shape(shape), name=name)
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype), const_value=tensor)
