"""ONNX models read with protobuf alone: what phase 3 needs of the format, and not a field more.

The ``onnx`` package would cost an edge node 31 MB on disk and a quarter of a second at each start;
protobuf comes with ONNX Runtime and is there in 20 ms. Only the fields of :data:`_MESSAGES` are known.
Whoever reads a graph that others wrote asks :func:`unknown_bytes`, so that what is not known here is
refused and not overlooked.

Numbers and types are those of onnx.proto (IR version 14).
"""

from __future__ import annotations

from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError, Message

from shifter.errors import GraphError

# Types: those of protobuf, or another message's name; ``*`` repeated. Of what is known only so that it can
# be refused by name, the content is ``bytes``.
_MESSAGES: Final = {
    "Model": "ir_version 1 int64, producer_name 2 string, producer_version 3 string, domain 4 string, "
    "model_version 5 int64, doc_string 6 string, graph 7 Graph, opset_import 8 *OperatorSet, "
    "metadata_props 14 *Entry, training_info 20 *bytes, functions 25 *bytes",
    "OperatorSet": "domain 1 string, version 2 int64",
    "Entry": "key 1 string, value 2 string",
    "Graph": "node 1 *Node, name 2 string, initializer 5 *Tensor, doc_string 10 string, input 11 *Value, "
    "output 12 *Value, value_info 13 *Value, sparse_initializer 15 *bytes, metadata_props 16 *Entry",
    "Node": "input 1 *string, output 2 *string, name 3 string, op_type 4 string, attribute 5 *Attribute, "
    "doc_string 6 string, domain 7 string, overload 8 string, metadata_props 9 *Entry",
    "Attribute": "name 1 string, f 2 float, i 3 int64, s 4 bytes, t 5 Tensor, g 6 bytes, floats 7 *float, "
    "ints 8 *int64, strings 9 *bytes, doc_string 13 string, type 20 int32",
    "Tensor": "dims 1 *int64, data_type 2 int32, float_data 4 *float, int32_data 5 *int32, "
    "int64_data 7 *int64, name 8 string, raw_data 9 bytes, double_data 10 *double, uint64_data 11 *uint64, "
    "doc_string 12 string, external_data 13 *Entry, data_location 14 int32, metadata_props 16 *Entry",
    "Value": "name 1 string, type 2 Type, doc_string 3 string, metadata_props 4 *Entry",
    "Type": "tensor_type 1 TensorType, denotation 6 string",
    "TensorType": "elem_type 1 int32, shape 2 Shape",
    "Shape": "dim 1 *Dimension",
    "Dimension": "dim_value 1 int64, dim_param 2 string, denotation 3 string",
}

EXTERNAL: Final = 1
"""``data_location`` of a tensor whose content is not in the model."""

DTYPES: Final = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64",
    9: "bool", 10: "float16", 11: "float64", 12: "uint32", 13: "uint64",
}  # fmt: skip
"""Element types by their number, named as numpy names them; others are not read."""


def parse(model: bytes) -> Any:
    """The message of a serialised model; fields as in onnx.proto.

    Raises:
        GraphError: if the bytes are none.
    """
    message = _Model()
    try:
        message.ParseFromString(model)
    except DecodeError as problem:
        raise GraphError(f"these {len(model)} bytes are no ONNX model: {problem}") from problem
    return message


def unknown_bytes(message: Message) -> int:
    """How many bytes of a parsed message belong to fields that are not known here; they are dropped."""
    before: int = message.ByteSize()
    message.DiscardUnknownFields()
    return before - int(message.ByteSize())


def _build() -> type[Any]:
    """The classes, in a pool of their own, so that the ``onnx`` package may be loaded beside them.

    As proto3, whose strings have to be text; onnx.proto's are what they like.
    """
    file = descriptor_pb2.FileDescriptorProto(name="shifter.proto", package="shifter", syntax="proto3")
    kinds = descriptor_pb2.FieldDescriptorProto
    for message, fields in _MESSAGES.items():
        described = file.message_type.add(name=message)
        for name, number, kind in map(str.split, fields.split(", ")):
            field = described.field.add(name=name, number=int(number), label=kinds.LABEL_OPTIONAL)
            if kind.startswith("*"):
                field.label = kinds.LABEL_REPEATED
            kind = kind.removeprefix("*")
            if kind in _MESSAGES:
                field.type, field.type_name = kinds.TYPE_MESSAGE, f".shifter.{kind}"
            else:
                field.type = kinds.Type.Value(f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    model: type[Any] = message_factory.GetMessageClass(pool.FindMessageTypeByName("shifter.Model"))
    return model


_Model = _build()
