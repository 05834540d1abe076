"""What phase 3 reads of ONNX is what the format says, by the ``onnx`` package, which it does without."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from shifter.errors import GraphError
from shifter.onnx_proto import _MESSAGES, DTYPES, EXTERNAL, parse, unknown_bytes

THEIRS = {
    "Model": onnx.ModelProto,
    "OperatorSet": onnx.OperatorSetIdProto,
    "Entry": onnx.StringStringEntryProto,
    "Graph": onnx.GraphProto,
    "Node": onnx.NodeProto,
    "Attribute": onnx.AttributeProto,
    "Tensor": onnx.TensorProto,
    "Value": onnx.ValueInfoProto,
    "Type": onnx.TypeProto,
    "TensorType": onnx.TypeProto.Tensor,
    "Shape": onnx.TensorShapeProto,
    "Dimension": onnx.TensorShapeProto.Dimension,
}
KINDS = {1: "double", 2: "float", 3: "int64", 4: "uint64", 5: "int32", 9: "string", 12: "bytes", 14: "int32"}


@pytest.mark.parametrize("message", _MESSAGES)
def test_every_field_is_the_standards(message: str) -> None:
    theirs = THEIRS[message].DESCRIPTOR.fields_by_name
    names = {proto.DESCRIPTOR.full_name: name for name, proto in THEIRS.items()}
    for name, number, kind in map(str.split, _MESSAGES[message].split(", ")):
        field = theirs[name]
        assert field.number == int(number), name
        assert field.is_repeated == kind.startswith("*"), name
        if field.message_type is None:
            assert kind.removeprefix("*") == KINDS[field.type], name
        else:  # what is only to be refused is not looked into
            assert kind.removeprefix("*") in (names.get(field.message_type.full_name), "bytes"), name


def test_element_types_are_the_standards() -> None:
    for number, name in DTYPES.items():
        assert helper.tensor_dtype_to_np_dtype(number) == np.dtype(name)
    assert EXTERNAL == TensorProto.EXTERNAL


def test_bytes_that_are_no_model_are_refused() -> None:
    for broken in (b"no model", b"\x0a\xff\xff\xff\xff\x0f", b"\x08"):
        with pytest.raises(GraphError, match="no ONNX model"):
            parse(broken)


def test_what_is_not_known_is_counted() -> None:
    graph = helper.make_graph([], "g", [], [])
    assert unknown_bytes(parse(helper.make_model(graph).SerializeToString())) == 0
    graph.quantization_annotation.add(tensor_name="weight")
    assert unknown_bytes(parse(helper.make_model(graph).SerializeToString())) > 0
