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
    Poolings on whose size ONNX Runtime disagrees with itself are said in another way.

    Raises:
        GraphError: if the bytes are not an ONNX model, or an input's rank is not known.
    """
    try:
        proto = onnx.ModelProto.FromString(architecture)
        stated = (*proto.graph.value_info, *proto.graph.output)
        known = {info.name for info in stated if info.type.tensor_type.HasField("shape")}
        if any(name and name not in known for node in proto.graph.node for name in node.output):
            proto = onnx.shape_inference.infer_shapes(proto)
        model: ir.Model = ir.from_proto(proto)
    except Exception as error:
        raise GraphError(f"the architecture is not an ONNX model: {error}") from error
    if not model.graph.outputs:
        raise GraphError("the architecture has no output: it is empty, or not an ONNX model")
    own = [node for node in model.graph if node.domain in STANDARD]
    for node in own:
        if node.op_type in ("Cast", "CastLike"):
            _fold_cast(model, node)
        elif node.op_type == "Reshape" and is_weight(node.inputs[0]):
            _unsqueeze_weight(model, node)
    for node in own:
        if node.op_type == "Transpose":
            _replace_shuffle(model, node)
    for node in own:
        if node.op_type == "Reshape" and node.outputs[0].uses():
            _simplify_reshape(model, node)
    for node in own:
        if node.op_type in ("AveragePool", "MaxPool") and attribute(node, "ceil_mode", 0):
            _round_down(node)
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


def sizes_of(value: ir.Value | None) -> tuple[int | str | None, ...]:
    """As :func:`shape_of`, with the names of sizes that are not fixed but have one."""
    if value is None or value.shape is None:
        return ()
    return tuple(size if isinstance(size, int) else size.value for size in value.shape)


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


def _fold_cast(model: ir.Model, node: ir.Node) -> None:
    """A literal of another type is a literal."""
    content, dtype = literal(node.inputs[0]), node.outputs[0].dtype
    if content is None or dtype is None or content.dtype.kind not in "fiub":
        return
    result = node.outputs[0]
    folded = inline(model, f"{result.name}.folded", content.astype(dtype.numpy()))
    ir.convenience.replace_all_uses_with(result, folded)


def _unsqueeze_weight(model: ir.Model, node: ir.Node) -> None:
    """A weight that only gets more axes, as PRelu's slopes: said without its sizes, which may change."""
    before, after = shape_of(node.inputs[0]), literal(node.inputs[1])
    if after is None or len(before) != 1 or list(after).count(1) != len(after) - 1:
        return
    (place,) = np.flatnonzero(after != 1).tolist() or [0]
    axes = inline(model, f"{node.name}.axes", [i for i in range(len(after)) if i != place])
    fresh = ir.node("Unsqueeze", [node.inputs[0], axes], name=node.name)
    fresh.outputs[0].shape = ir.Shape([1] * place + list(before) + [1] * (len(after) - place - 1))
    fresh.outputs[0].type = node.outputs[0].type
    replace_node(model, node, fresh)


def _round_down(pool: ir.Node) -> None:
    """Says the size of a pooling that rounds up by its padding, where a Flatten counts on it.

    No window starts in the padding behind the image: ONNX Runtime computes so, but its shape inference
    counts such a window, and refuses the layer behind the Flatten unless every shape between is stated.
    What is flattened has one size, so the padding may be that of this size.
    """
    sizes, result = (shape_of(value)[2:] for value in (pool.inputs[0], pool.outputs[0]))
    rank = len(sizes)
    plain = [1] * rank
    kernel, strides, dilations, pads = (
        [int(n) for n in attribute(pool, key, default)]
        for key, default in (
            ("kernel_shape", ()),
            ("strides", plain),
            ("dilations", plain),
            ("pads", 2 * plain),
        )
    )
    if "pads" not in pool.attributes:
        pads = [0] * 2 * rank
    if not rank or None in (*sizes, *result) or not _is_flattened(pool.outputs[0]):
        return
    reaches = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    free = [
        int(n or 0) + pads[i] + pads[rank + i] - reach
        for i, (n, reach) in enumerate(zip(sizes, reaches, strict=True))
    ]
    if all(-(-f // s) + 1 == out for f, s, out in zip(free, strides, result, strict=True)):
        return
    more = [max(0, (int(out or 0) - 1) * s - f) for f, s, out in zip(free, strides, result, strict=True)]
    if any(more):
        if pool.op_type == "AveragePool" and attribute(pool, "count_include_pad", 0):
            return  # what only rounding up reaches is not counted, and padding would be
        pads[rank:] = [before + after for before, after in zip(pads[rank:], more, strict=True)]
        pool.attributes["pads"] = ir.AttrInt64s("pads", pads)
    pool.attributes["ceil_mode"] = ir.AttrInt64("ceil_mode", 0)


def _is_flattened(value: ir.Value) -> bool:
    """True if somewhere behind ``value`` several positions become channels."""
    seen: set[ir.Value] = set()
    left = [value]
    while left:
        for use in left.pop().uses():
            sizes = shape_of(use.node.inputs[0])[2:]
            if use.node.op_type == "Flatten" and any(size != 1 for size in sizes):
                return True
            left += [result for result in use.node.outputs if result not in seen]
            seen.update(use.node.outputs)
    return False


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
