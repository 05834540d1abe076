"""A graph from a package may compute with its variant's tensors, and nothing else."""

import gc
import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import AttributeProto, TensorProto, helper

from shifter import graph_check
from shifter.errors import GraphError
from shifter.graph_check import OPERATORS, check_graph
from shifter.values import Variant

from . import mutants

REFUSED = """
Bernoulli BitCast BlackmanWindow CausalConvWithState ConcatFromSequence CumProd DFT HammingWindow HannWindow
If ImageDecoder LinearAttention Loop MelWeightMatrix Multinomial NegativeLogLikelihoodLoss Optional
OptionalGetElement OptionalHasElement RandomNormal RandomNormalLike RandomUniform RandomUniformLike
RegexFullMatch STFT Scan SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert
SequenceLength SequenceMap SoftmaxCrossEntropyLoss SplitToSequence StringConcat StringNormalizer StringSplit
TensorScatter TfIdfVectorizer
""".split()  # noqa: SIM905
"""Standard operators that no classifier of images needs: what may be is a list, and so is what may not."""


@pytest.fixture
def one(variants: dict[str, Variant]) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    variant = variants["v0"]
    return onnx.ModelProto.FromString(variant.graph), dict(variant.tensors)


def refuse(model: onnx.ModelProto, tensors: dict[str, np.ndarray], why: str) -> None:
    with pytest.raises(GraphError, match=why):
        check_graph(model.SerializeToString(), tensors)


def test_a_variants_own_graph_passes(variants: dict[str, Variant]) -> None:
    for variant in variants.values():
        check_graph(variant.graph, variant.tensors)


def test_each_standard_operator_is_known_to_be_allowed_or_not() -> None:
    standard = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    assert standard <= OPERATORS | set(REFUSED)
    assert OPERATORS.isdisjoint(REFUSED)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("location", "/etc/passwd"),
        ("location", "../classifier.bias"),
        ("location", "features.0.bias"),
        ("location", "*/_ORT_MEM_ADDR_/*"),
        ("offset", "4"),
        ("length", "1"),
        ("length", "012"),
        ("checksum", "0"),
    ],
)
def test_external_data_is_the_tensor_of_its_name(one: Any, key: str, value: str) -> None:
    model, tensors = one
    initializer = next(t for t in model.graph.initializer if t.name == "classifier.bias")
    entry = next((e for e in initializer.external_data if e.key == key), None)
    (entry or initializer.external_data.add(key=key)).value = value
    refuse(model, tensors, r"initializer 'classifier\.bias' is to be read from")


def test_external_data_said_twice_is_refused(one: Any) -> None:
    model, tensors = one
    model.graph.initializer[0].external_data.add(key="location", value="/etc/passwd")
    refuse(model, tensors, "is to be read from")


def test_an_address_in_memory_is_no_name(one: Any) -> None:
    """ONNX Runtime's own mark for a tensor that is there already: its offset would be a pointer."""
    model, tensors = one
    name = "*/_ORT_MEM_ADDR_/*"
    initializer = next(t for t in model.graph.initializer if t.name == "classifier.bias")
    initializer.name = initializer.external_data[0].value = name
    model.graph.node[-1].input[2] = name
    refuse(model, tensors | {name: tensors["classifier.bias"]}, "cannot name a tensor")


def test_tensors_that_are_missing_or_others_are_named(one: Any) -> None:
    model, tensors = one
    bias = tensors.pop("classifier.bias")
    refuse(model, tensors, r"tensor 'classifier\.bias', which the variant does not have")
    refuse(model, tensors | {"classifier.bias": bias[:2]}, r"'classifier\.bias' for float32 of shape \(3,\)")
    refuse(model, tensors | {"classifier.bias": bias.view(np.int32)}, "the variant's is int32")


def constant(**external: str) -> onnx.NodeProto:
    tensor = TensorProto(dims=[1], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    for key, value in external.items():
        tensor.external_data.add(key=key, value=value)
    return helper.make_node("Constant", [], ["hidden"], value=tensor)


def a_branch() -> onnx.GraphProto:
    return helper.make_graph(
        [constant(location="/etc/passwd")],
        "branch",
        [],
        [helper.make_tensor_value_info("hidden", TensorProto.FLOAT, [1])],
    )


def foreign(domain: str) -> onnx.NodeProto:
    return helper.make_node("Relu", ["images"], ["x"], domain=domain)


HIDDEN = {
    "external-constant": (constant(location="/etc/passwd"), "only initializers are external"),
    "if": (helper.make_node("If", ["c"], ["x"], then_branch=a_branch(), else_branch=a_branch()), "is If"),
    "body-of-relu": (helper.make_node("Relu", ["images"], ["x"], body=a_branch()), "graphs in graphs"),
    "microsoft": (foreign("com.microsoft"), "com.microsoft::Relu"),
    "function": (foreign("own"), "own::Relu"),
    "unheard": (helper.make_node("Unheard", ["images"], ["x"]), "is Unheard"),
    "decoder": (helper.make_node("ImageDecoder", ["images"], ["x"]), "is ImageDecoder"),
    "sparse": (
        helper.make_node("Constant", [], ["x"], sparse_value=onnx.SparseTensorProto()),
        "of type 11",
    ),
    "nameless-end": (helper.make_node("Clip", ["images", ""], ["x"]), "ends with an input that has no name"),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_operators_that_hide_something_are_refused(one: Any, name: str) -> None:
    model, tensors = one
    node, why = HIDDEN[name]
    model.graph.node.append(node)
    refuse(model, tensors, why)


def test_an_attribute_holds_what_its_type_says(one: Any) -> None:
    """Or one reader would see a number where another sees a graph that reads a file."""
    model, tensors = one
    attribute = AttributeProto(name="alpha", type=AttributeProto.FLOAT, f=1.0)
    attribute.t.CopyFrom(constant(location="/etc/passwd").attribute[0].t)
    model.graph.node[1].attribute.append(attribute)
    refuse(model, tensors, r"is of type 1, but holds \['f', 't'\]")


def test_models_with_more_than_a_graph_are_refused(one: Any) -> None:
    model, tensors = one
    for change, why in (
        (lambda m: m.functions.append(helper.make_function("own", "f", ["x"], ["y"], [], [])), "functions"),
        (lambda m: m.training_info.add(), "training_info"),
        (lambda m: m.opset_import.add(domain="own", version=1), "imports operators of 'own'"),
        (lambda m: m.graph.sparse_initializer.add(), "sparse initializers"),
        (lambda m: m.graph.quantization_annotation.add(tensor_name="x"), "bytes of fields that no variant"),
        (lambda m: m.graph.initializer.append(m.graph.initializer[0]), "two initializers"),
        (lambda m: m.ClearField("graph"), "no graph"),
    ):
        changed = onnx.ModelProto()
        changed.CopyFrom(model)
        change(changed)
        refuse(changed, tensors, why)


def test_content_in_the_graph_is_as_long_as_it_says(one: Any) -> None:
    model, tensors = one
    for tensor in (
        TensorProto(name="x", dims=[2**40], data_type=TensorProto.FLOAT, raw_data=b"\0" * 4),
        TensorProto(name="x", dims=[2], data_type=TensorProto.FLOAT, float_data=[1.0]),
        TensorProto(name="x", dims=[1], data_type=TensorProto.FLOAT, int64_data=[1]),
        TensorProto(name="x", dims=[-1], data_type=TensorProto.FLOAT),
        TensorProto(name="x", dims=[1], data_type=TensorProto.STRING, string_data=[b"x"]),
    ):
        changed = onnx.ModelProto()
        changed.CopyFrom(model)
        changed.graph.initializer.append(tensor)
        refuse(changed, tensors, "initializer 'x'")


def all_tensors(message: Any) -> Iterator[onnx.TensorProto]:
    """Every tensor of a message, however deep, by the ``onnx`` package's own account."""
    if isinstance(message, TensorProto):
        yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in value if field.is_repeated else [value]:
                yield from all_tensors(inner)


@settings(max_examples=400, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_no_mutant_that_passes_reads_anything_but_the_tensors(
    variants: dict[str, Variant], seed: int
) -> None:
    variant = variants["v1"]
    graph = mutants.mutant(variant.graph, seed)
    try:
        check_graph(graph, variant.tensors)
    except GraphError:
        return
    model = onnx.ModelProto.FromString(graph)
    assert not model.functions
    assert not model.training_info
    for node in model.graph.node:
        assert node.domain in ("", "ai.onnx")
        assert not any(a.HasField("g") or a.graphs for a in node.attribute)
    for tensor in all_tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            mine = variant.tensors[tensor.name]
            said = {entry.key: entry.value for entry in tensor.external_data}
            assert said == {"location": tensor.name, "offset": "0", "length": str(mine.nbytes)}
            assert tuple(tensor.dims) == mine.shape


def test_no_mutant_kills_the_process_that_builds_its_engine(
    variants: dict[str, Variant], tmp_path: Path
) -> None:
    path = tmp_path / "variant.pickle"
    path.write_bytes(pickle.dumps(variants["v0"]))
    command = [sys.executable, str(Path(mutants.__file__)), str(path), "0", "1500"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    ends = json.loads(done.stdout.splitlines()[-1].replace("'", '"'))
    assert sum(ends.values()) == 1500
    assert min(ends["checked"], ends["refused"], ends["answered"]) > 50, ends


def test_what_is_remembered_of_a_graph_is_not_the_graph(variants: dict[str, Variant]) -> None:
    graph = variants["v0"].graph
    declared = graph_check.external_tensors(graph)
    assert graph_check.external_tensors(bytes(bytearray(graph))) is declared
    assert graph not in gc.get_referents(graph_check._found_right)
    for number in range(2 * graph_check._REMEMBERED):
        model = onnx.ModelProto.FromString(graph)
        model.graph.name = str(number)
        graph_check.external_tensors(model.SerializeToString())
    assert len(graph_check._found_right) == graph_check._REMEMBERED
