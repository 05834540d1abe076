"""A network's graph as it is stored: an ONNX model whose weights are elsewhere.

The architecture's external initializers are named as the checkpoint's tensors. Parsing it also
rewrites what would stand in the way of reduction; what its operators do to channels is for
:mod:`shifter.pruning.read`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from shifter.errors import GraphError

STANDARD = ("", "ai.onnx")
"""Domains of the operators that ONNX defines."""


def parse_model(architecture: bytes) -> ir.Model:
    """Reads a weightless ONNX model and rewrites what stands in the way of reduction.

    A Reshape carries literal sizes, the number of channels among them. One that flattens everything
    but the batch becomes a Flatten, which carries none; one that with its neighbours shuffles
    channels becomes a Gather of channels; others get a literal shape instead of a computed one.

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
    own = [node for node in model.graph if node.domain in STANDARD]
    for node in own:
        if node.op_type == "Transpose":
            _replace_shuffle(model, node)
    for node in own:
        if node.op_type == "Reshape" and node.outputs[0].uses():
            _simplify_reshape(model, node)
    RemoveUnusedNodesPass()(model)
    return model


def is_weight(value: ir.Value | None) -> bool:
    """True if the value is an initializer whose content stands in the checkpoint."""
    return value is not None and isinstance(value.const_value, ir.ExternalTensor)


def literal(value: ir.Value | None) -> NDArray[Any] | None:
    """The content of a constant that the graph itself holds; None for anything else."""
    if value is None or is_weight(value):
        return None
    if value.const_value is not None:
        return value.const_value.numpy()
    node = value.producer()
    if node is None or node.op_type != "Constant":
        return None
    (given,) = node.attributes.values()
    if given.type == ir.AttributeType.TENSOR:
        return given.as_tensor().numpy()
    return np.asarray(given.value)


def shape_of(value: ir.Value | None) -> tuple[int | None, ...]:
    """Sizes of an activation, None where one is not fixed; empty if even the rank is not known."""
    if value is None or value.shape is None:
        return ()
    return tuple(size if isinstance(size, int) else None for size in value.shape)


def name_of(value: ir.Value | None) -> str:
    """The name of a value.

    Raises:
        GraphError: if it has none.
    """
    if value is None or value.name is None:
        raise GraphError("an operator's input has no name: export the model again")
    return value.name


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """The content of an attribute, or its default."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def attribute_ints(node: ir.Node, name: str) -> NDArray[np.int64] | None:
    """A list of numbers that is an attribute; None if it is not there."""
    found = node.attributes.get(name)
    return None if found is None else np.asarray(found.as_ints(), np.int64)


def weightless(name: str, shape: tuple[int, ...], dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
    """An initializer whose content is elsewhere: external, its location being its own name."""
    length = math.prod(shape) * dtype.bitwidth // 8
    tensor = ir.ExternalTensor(name, 0, length, dtype, shape=ir.Shape(shape), name=name)
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype), const_value=tensor)


def inline(model: ir.Model, name: str, content: Sequence[int] | NDArray[Any]) -> ir.Value:
    """Adds an initializer that the graph itself holds."""
    array = np.asarray(content, dtype=np.int64) if not isinstance(content, np.ndarray) else content
    tensor = ir.tensor(array, name=name)
    value = ir.Value(
        name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    model.graph.initializers.add(value)
    return value


def replace_node(model: ir.Model, old: ir.Node, new: ir.Node) -> None:
    """Puts ``new`` where ``old`` was; whoever read the old output reads the new one, of the same name."""
    ir.convenience.replace_nodes_and_values(model.graph, old, [old], [new], old.outputs, new.outputs)


def _simplify_reshape(model: ir.Model, node: ir.Node) -> None:
    source, result = shape_of(node.inputs[0]), shape_of(node.outputs[0])
    if _flattens(source, result):
        replace_node(model, node, ir.node("Flatten", [node.inputs[0]], {"axis": 1}, name=node.name))
    elif result and result.count(None) <= 1 and 0 not in result:
        shape = inline(model, f"{node.name}.shape", [-1 if size is None else size for size in result])
        node.replace_input_with(1, shape)


def _flattens(source: tuple[int | None, ...], result: tuple[int | None, ...]) -> bool:
    if len(source) < 3 or len(result) != 2 or source[0] != result[0]:
        return False
    return None not in source[1:] and result[1] == math.prod(size or 0 for size in source[1:])


def _replace_shuffle(model: ir.Model, transpose: ir.Node) -> None:
    """Reshape, Transpose, Reshape that only permute axis 1 become one Gather along it."""
    before = transpose.inputs[0].producer() if transpose.inputs[0] is not None else None
    uses = tuple(transpose.outputs[0].uses())
    if (
        before is None
        or before.op_type != "Reshape"
        or before.domain not in STANDARD
        or len(before.outputs[0].uses()) != 1
        or len(uses) != 1
    ):
        return
    after = uses[0].node
    source, split, result = (shape_of(v) for v in (before.inputs[0], before.outputs[0], after.outputs[0]))
    if (
        after.op_type != "Reshape"
        or after.domain not in STANDARD
        or source != result
        or len(split) != len(source) + 1
        or len(source) < 2
    ):
        return
    perm = tuple(transpose.attributes["perm"].as_ints()) if "perm" in transpose.attributes else ()
    swapped = (0, 2, 1, *range(3, len(split)))
    if perm != swapped or source[0] != split[0] or source[2:] != split[3:]:
        return
    groups, each = split[1], split[2]
    if groups is None or each is None or source[1] != groups * each:
        return
    order = np.arange(groups * each).reshape(groups, each).T.ravel()
    indices = inline(model, f"{after.name}.order", order)
    shuffle = ir.node("Gather", [before.inputs[0], indices], {"axis": 1}, name=after.name)
    shuffle.outputs[0].shape, shuffle.outputs[0].type = after.outputs[0].shape, after.outputs[0].type
    replace_node(model, after, shuffle)
