"""What a variant's graph may hold, checked before an engine sees it: a package may be hostile.

A graph names files for its external tensors, and can hide them in attributes and bodies of loops; it can
bring functions, operators of other makers, scripts of training. A variant's needs none of it: one list of
operators that ONNX defines, each of them arithmetic on tensors, and its variant's tensors by their names.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import numpy as np

from shifter.errors import GraphError
from shifter.onnx_proto import DTYPES, EXTERNAL, parse, unknown_bytes
from shifter.values import Tensors

DOMAINS: Final = ("", "ai.onnx")

_OPERATORS = """
    Abs Acos Acosh Add AffineGrid And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool
    BatchNormalization BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil Celu
    CenterCropPad Clip Col2Im Compress Concat Constant ConstantOfShape Conv ConvInteger ConvTranspose Cos
    Cosh CumSum DeformConv DepthToSpace DequantizeLinear Det Div Dropout DynamicQuantizeLinear Einsum Elu
    Equal Erf Exp Expand EyeLike Flatten Floor GRU Gather GatherElements GatherND Gelu Gemm
    GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization
    HardSigmoid HardSwish Hardmax Identity InstanceNormalization IsInf IsNaN LRN LSTM LayerNormalization
    LeakyRelu Less LessOrEqual Log LogSoftmax LpNormalization LpPool MatMul MatMulInteger Max MaxPool
    MaxRoiPool MaxUnpool Mean MeanVarianceNormalization Min Mish Mod Mul Neg NonMaxSuppression NonZero Not
    OneHot Or PRelu Pad Pow QLinearConv QLinearMatMul QuantizeLinear RMSNormalization RNN Range Reciprocal
    ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
    ReduceSumSquare Relu Reshape Resize ReverseSequence RoiAlign RotaryEmbedding Round Scatter
    ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign
    SpaceToDepth Split Sqrt Squeeze Sub Sum SwiGLU Swish Tan Tanh ThresholdedRelu Tile TopK Transpose Trilu
    Unique Unsqueeze Upsample Where Xor
"""
OPERATORS: Final = frozenset(_OPERATORS.split())
"""Of the standard's operators all but control flow, sequences and optional values, text, random numbers,
signals, losses, and the decoder of image files."""

# AttributeProto.type: float, int, string, tensor, and lists of the first three. Graphs, sparse tensors,
# types and lists of tensors are no arithmetic.
_ATTRIBUTES: Final = {1: "f", 2: "i", 3: "s", 4: "t", 6: "floats", 7: "ints", 8: "strings"}
# Where a tensor in the graph itself may keep its elements, besides ``raw_data``.
_TYPED: Final = {
    "float32": "float_data", "float64": "double_data", "int64": "int64_data",
    "uint32": "uint64_data", "uint64": "uint64_data",
}  # fmt: skip
_CONTENT: Final = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data")
_REMEMBERED = 64


class Declared(NamedTuple):
    """What a graph says of a tensor that it reads."""

    dtype: str
    shape: tuple[int, ...]


def check_graph(graph: bytes, tensors: Tensors) -> None:
    """Refuses a graph that is more than arithmetic on ``tensors``, or that says something else of them.

    Raises:
        GraphError: as `check_against`.
    """
    check_against(graph, {name: Declared(array.dtype.name, array.shape) for name, array in tensors.items()})


def check_against(graph: bytes, tensors: Mapping[str, Declared]) -> None:
    """The same, of tensors of which only dtypes and shapes are at hand.

    External are initializers only, each the tensor of its name, whole: ``location`` is the name,
    ``offset`` 0, ``length`` the tensor's bytes. Whether the graph makes sense is for the engine to say.

    Raises:
        GraphError: with the name of what is wrong.
    """
    for name, declared in external_tensors(graph).items():
        if name not in tensors:
            raise GraphError(f"the graph reads a tensor {name!r}, which the variant does not have")
        found = tensors[name]
        if found != declared:
            raise GraphError(
                f"the graph takes {name!r} for {declared.dtype} of shape {declared.shape}; "
                f"the variant's is {found.dtype} of shape {found.shape}"
            )


def external_tensors(graph: bytes) -> Mapping[str, Declared]:
    """The tensors that a graph reads from elsewhere, by name, once all else about it is found to be right.

    Raises:
        GraphError: as `check_graph`.
    """
    digest = hashlib.sha256(graph).digest()
    found = _found_right.pop(digest, None)
    if found is None:
        found = MappingProxyType(_check_model(parse(graph)))
        if len(_found_right) >= _REMEMBERED:
            _found_right.pop(next(iter(_found_right)), None)
    _found_right[digest] = found
    return found


# By sha256, since a graph may be large: the last ones that were asked for, oldest first.
_found_right: dict[bytes, Mapping[str, Declared]] = {}


def _check_model(model: Any) -> dict[str, Declared]:
    for kind in ("functions", "training_info"):
        if getattr(model, kind):
            raise GraphError(f"the model has {kind}: a variant's is a graph of standard operators alone")
    for imported in model.opset_import:
        if imported.domain not in DOMAINS:
            raise GraphError(f"the model imports operators of {imported.domain!r}: only those of ONNX may be")
    if not model.HasField("graph") or not model.graph.node:
        raise GraphError("the model has no graph: it is empty, or no ONNX model")
    if model.graph.sparse_initializer:
        raise GraphError("the graph has sparse initializers: a package codes its tensors by itself")
    for node in model.graph.node:
        _check_node(node)
    external: dict[str, Declared] = {}
    seen: set[str] = set()
    for tensor in model.graph.initializer:
        if not tensor.name or tensor.name in seen:
            raise GraphError(f"two initializers, or one without a name: {tensor.name!r}")
        if tensor.name.startswith("*"):  # ONNX Runtime's mark for an address in memory
            raise GraphError(f"{tensor.name!r} cannot name a tensor: it begins with '*'")
        seen.add(tensor.name)
        if tensor.data_location == EXTERNAL or tensor.external_data:
            external[tensor.name] = _check_external(tensor)
        else:
            _check_inline(tensor, f"initializer {tensor.name!r}")
    # Last, since it drops what it counts: by name above, whatever is left here.
    if unknown := unknown_bytes(model):
        raise GraphError(f"the model has {unknown} bytes of fields that no variant's has")
    return external


def _check_node(node: Any) -> None:
    place = f"operator {node.name or node.op_type!r}"
    if node.domain not in DOMAINS or node.op_type not in OPERATORS or node.overload:
        known = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        raise GraphError(f"{place} is {known}, which no variant's graph may hold")
    # What is left out at the end needs no name, and ONNX Runtime 1.31 crashes on one.
    if node.input and not node.input[-1]:
        raise GraphError(f"{place} ends with an input that has no name")
    seen: set[str] = set()
    for attribute in node.attribute:
        what = f"attribute {attribute.name!r} of {place}"
        if attribute.name in seen:
            raise GraphError(f"{what} is there twice")
        seen.add(attribute.name)
        kind = _ATTRIBUTES.get(attribute.type)
        if kind is None or attribute.g:
            raise GraphError(
                f"{what} is of type {attribute.type}: graphs in graphs, and the like, may not be"
            )
        # A tensor behind an attribute of another type would be read by some, and overlooked by others.
        held = {field.name for field, _ in attribute.ListFields()} & set(_ATTRIBUTES.values())
        if held - {kind}:
            raise GraphError(f"{what} is of type {attribute.type}, but holds {sorted(held)}")
        if kind == "t":
            _check_inline(attribute.t, what)
        if not all(text.isascii() for text in (attribute.s, *attribute.strings)):
            raise GraphError(f"{what} is no text: {attribute.s or list(attribute.strings)!r}")


def _check_external(tensor: Any) -> Declared:
    name = tensor.name
    declared = _declared(tensor, f"initializer {name!r}")
    size = math.prod(declared.shape) * np.dtype(declared.dtype).itemsize
    said = [(entry.key, entry.value) for entry in tensor.external_data]
    right = [("length", str(size)), ("location", name), ("offset", "0")]
    if tensor.data_location != EXTERNAL or sorted(said) != right:
        raise GraphError(f"initializer {name!r} is to be read from {dict(said)}: it should be {dict(right)}")
    if any(field.name in _CONTENT for field, _ in tensor.ListFields()):
        raise GraphError(f"initializer {name!r} is external, and has a content besides")
    return declared


def _check_inline(tensor: Any, what: str) -> None:
    if tensor.data_location == EXTERNAL or tensor.external_data:
        places = {entry.key: entry.value for entry in tensor.external_data}
        raise GraphError(f"{what} is to be read from {places}: only initializers are external")
    dtype, shape = _declared(tensor, what)
    size = math.prod(shape)
    typed = _TYPED.get(dtype, "int32_data")
    held = {field.name for field, _ in tensor.ListFields()} & set(_CONTENT)
    right = (
        len(tensor.raw_data) == size * np.dtype(dtype).itemsize
        if held == {"raw_data"}
        else held <= {typed} and len(getattr(tensor, typed)) == size
    )
    if not right:
        raise GraphError(f"{what} does not hold the {size} elements of {dtype} that it declares")


def _declared(tensor: Any, what: str) -> Declared:
    dtype, shape = DTYPES.get(tensor.data_type), tuple(tensor.dims)
    if dtype is None:
        known = ", ".join(DTYPES.values())
        raise GraphError(f"{what} has the element type {tensor.data_type}: known are {known}")
    if min(shape, default=0) < 0:
        raise GraphError(f"{what} has the shape {shape}")
    return Declared(dtype, shape)
