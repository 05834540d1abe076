"""The reduced network's graph: the architecture with new shapes, and without what is gone."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from shifter.pruning.graph import inline, is_weight, literal, parse_model, replace_node, weightless
from shifter.pruning.parts import ConstantPlan, LayerPlan, PrunePlan, Rewrite

_SPLIT_READS_SIZES = 13
"""The version of ONNX from which the sizes of a Split are an input; before, they are an attribute."""


def rebuild_graph(architecture: bytes, plan: PrunePlan) -> bytes:
    """The reduced network's graph: a weightless ONNX model with the new shapes.

    Batch norms that were folded are gone; every planned layer has a bias, but for a MatMul that needs none.
    """
    serialised: bytes = ir.to_proto(_rebuilt(architecture, plan)).SerializeToString(deterministic=True)
    return serialised


def other_tensors(architecture: bytes, plan: PrunePlan) -> tuple[str, ...]:
    """Checkpoint tensors that the reduced graph still reads as they are (layers that are not followed)."""
    made = {name for part in plan.layers for name in part.made}
    made |= {part.name for part in plan.slices} | {part.name for part in plan.constants}
    weights = _rebuilt(architecture, plan).graph.initializers.items()
    return tuple(name for name, value in weights if is_weight(value) and name not in made)


def _rebuilt(architecture: bytes, plan: PrunePlan) -> ir.Model:
    model = parse_model(architecture)
    nodes: dict[str | None, ir.Node] = {node.outputs[0].name: node for node in model.graph}
    for part in plan.layers:
        _rewrite_layer(model, part)
    for sliced in plan.slices:
        value = model.graph.initializers[sliced.name]
        shape = list(value.shape.numpy()) if value.shape is not None else []
        shape[sliced.axis] = len(sliced.kept)
        _replace_weight(model, value, tuple(int(size) for size in shape))
    for constant in plan.constants:
        _put_constant(model, nodes[constant.node], constant)
    for rewrite in plan.rewrites:
        REWRITES[rewrite.op](model, nodes[rewrite.node], rewrite)
    RemoveUnusedNodesPass()(model)
    for node in model.graph:
        for output in node.outputs:
            if not output.is_graph_output():
                output.shape = None
    return model


def _rewrite_layer(model: ir.Model, part: LayerPlan) -> None:
    layer, out, into = part.layer, len(part.outputs), len(part.inputs) // part.groups
    weight = model.graph.initializers[layer.weight]
    assert weight.shape is not None
    node = _reader(weight)
    if node.op_type == "Transpose":
        node = _reader(node.outputs[0])
    kernel = tuple(int(size) for size in weight.shape.numpy()[2:])
    _replace_weight(model, weight, (into, out) if layer.transposed else (out, into, *kernel))
    if layer.groups > 1:
        node.attributes["group"] = ir.AttrInt64("group", part.groups)
    for norm in layer.norms:
        _skip(model, _reader(model.graph.initializers[norm.scale]), 0)
    if not part.is_biased:
        return
    added = None if layer.op != "MatMul" or layer.bias is None else model.graph.initializers[layer.bias]
    bias = weightless(layer.reduced_bias, (out,), weight.dtype or ir.DataType.FLOAT)
    if layer.op != "MatMul":
        while len(node.inputs) <= 2:
            node.resize_inputs(3)
        node.replace_input_with(2, bias)
    elif added is not None:
        (use,) = added.uses()
        use.node.replace_input_with(use.idx, bias)
    else:
        _add(model, node, bias)
    model.graph.initializers.pop(layer.reduced_bias, None)
    model.graph.initializers.add(bias)


def _reader(value: ir.Value) -> ir.Node:
    """The only operator that reads a value."""
    (use,) = value.uses()
    return use.node


def _skip(model: ir.Model, node: ir.Node, position: int) -> None:
    """Whoever read the operator's output reads its input instead."""
    source, result = node.inputs[position], node.outputs[0]
    assert source is not None
    if result.is_graph_output():  # which keeps its name
        name, result.name = result.name, f"{result.name}.skipped"
        source.name = name
    ir.convenience.replace_all_uses_with(result, source, replace_graph_outputs=True)
    model.graph.remove(node, safe=True)


def _add(model: ir.Model, node: ir.Node, bias: ir.Value) -> None:
    """Adds ``bias`` to what ``node`` gives; whoever read that reads the sum."""
    result = node.outputs[0]
    uses = list(result.uses())
    add = ir.node("Add", [result, bias], name=f"{node.name}.bias")
    model.graph.insert_after(node, add)
    add.outputs[0].name, add.outputs[0].type = f"{result.name}.biased", result.type
    for use in uses:
        use.node.replace_input_with(use.idx, add.outputs[0])
    for position, output in enumerate(model.graph.outputs):
        if output is result:
            name, result.name = result.name, f"{result.name}.unbiased"
            add.outputs[0].name, add.outputs[0].shape = name, result.shape
            model.graph.outputs[position] = add.outputs[0]


def _replace_weight(model: ir.Model, value: ir.Value, shape: tuple[int, ...]) -> None:
    assert value.name is not None
    dtype = value.dtype or ir.DataType.FLOAT
    fresh = weightless(value.name, shape, dtype)
    value.const_value, value.shape = fresh.const_value, fresh.shape


def _put_constant(model: ir.Model, node: ir.Node, part: ConstantPlan) -> None:
    shape = (len(part.values), *[1] * part.trailing)
    constant = weightless(part.name, shape, node.outputs[0].dtype or ir.DataType.FLOAT)
    model.graph.initializers.add(constant)
    if part.position is None:
        _add(model, node, constant)
    else:
        node.replace_input_with(part.position, constant)


def _rewrite_skipped(model: ir.Model, node: ir.Node, rewrite: Rewrite) -> None:
    (position,) = rewrite.values
    _skip(model, node, position)


def _rewrite_concat(model: ir.Model, node: ir.Node, rewrite: Rewrite) -> None:
    left = [node.inputs[i] for i in rewrite.values]
    if len(left) == 1 and left[0] is not None and not node.outputs[0].is_graph_output():
        ir.convenience.replace_all_uses_with(node.outputs[0], left[0])
        model.graph.remove(node, safe=True)
        return
    fresh = ir.node("Concat", left, {"axis": node.attributes["axis"].as_int()}, name=node.name)
    replace_node(model, node, fresh)


def _rewrite_split(model: ir.Model, node: ir.Node, rewrite: Rewrite) -> None:
    if model.opset_imports.get("", _SPLIT_READS_SIZES) < _SPLIT_READS_SIZES:
        node.attributes["split"] = ir.AttrInt64s("split", rewrite.values)
        return
    sizes = inline(model, f"{rewrite.node}.sizes", rewrite.values)
    node.attributes.pop("num_outputs", None)
    node.resize_inputs(2)
    node.replace_input_with(1, sizes)


def _rewrite_gather(model: ir.Model, node: ir.Node, rewrite: Rewrite) -> None:
    node.replace_input_with(1, inline(model, f"{rewrite.node}.kept", rewrite.values))


def _rewrite_slice(model: ir.Model, node: ir.Node, rewrite: Rewrite) -> None:
    """Neighbours stay a Slice; what has gaps becomes a Gather."""
    axes = literal(node.inputs[3]) if len(node.inputs) > 3 else None
    axis = 0 if axes is None else int(axes[0])
    first, last = rewrite.values[0], rewrite.values[-1]
    if rewrite.values == tuple(range(first, last + 1)):
        numbers = {1: (first,), 2: (last + 1,), 3: (axis,), 4: (1,)}
        node.resize_inputs(5)
        for position, values in numbers.items():
            node.replace_input_with(position, inline(model, f"{rewrite.node}.{position}", values))
        return
    indices = inline(model, f"{rewrite.node}.kept", rewrite.values)
    replace_node(model, node, ir.node("Gather", [node.inputs[0], indices], {"axis": axis}, name=node.name))


def _rewrite_pad(model: ir.Model, node: ir.Node, rewrite: Rewrite) -> None:
    axes = literal(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3] is not None else None
    pads = np.array(literal(node.inputs[1]))
    if axes is None:
        (place,) = np.flatnonzero(pads[: pads.size // 2] + pads[pads.size // 2 :]).tolist()
    else:
        (place,) = [i for i in range(len(axes)) if pads[i] or pads[i + len(axes)]]
    pads[place], pads[place + pads.size // 2] = rewrite.values
    node.replace_input_with(1, inline(model, f"{rewrite.node}.pads", pads))


def _rewrite_reshape(model: ir.Model, node: ir.Node, rewrite: Rewrite) -> None:
    axis, width = rewrite.values
    shape = np.array(literal(node.inputs[1]))
    shape[axis] = width
    node.replace_input_with(1, inline(model, f"{rewrite.node}.shape", shape))


REWRITES = {
    "Concat": _rewrite_concat,
    "Gather": _rewrite_gather,
    "Pad": _rewrite_pad,
    "Reshape": _rewrite_reshape,
    "Skip": _rewrite_skipped,
    "Slice": _rewrite_slice,
    "Split": _rewrite_split,
}
"""By what a :class:`Rewrite` says is rewritten."""
