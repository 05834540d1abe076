"""Bodies of the Open Inference Protocol to requests: exactly, or a 4xx that says what is right."""

from __future__ import annotations

import gzip
import json
import struct
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from serve_app.protocol import Limits
from serve_app.v2_images import images
from serve_app.v2_request import DTYPES, OUTPUTS, InferRequest, Wanted, byte_elements, inflate, parse
from shifter.errors import RequestError
from shifter.values import InputSpec

SPEC = InputSpec(3, 2, 4, 255.0, (0.25, 0.5, 0.75), (0.5, 0.25, 1.0), ("a", "b"))
LIMITS = Limits(body_bytes=1 << 16, images=4, image_pixels=10_000)
COUNT = 24

SHAPES = st.one_of(st.just((3, 2, 4)), st.tuples(st.integers(1, 4), st.just(3), st.just(2), st.just(4)))


@st.composite
def pixels(draw: st.DrawFn) -> tuple[str, np.ndarray]:
    datatype = draw(st.sampled_from(sorted(DTYPES)))
    dtype = DTYPES[datatype]
    if dtype.kind == "f":
        elements = st.floats(0, 255, width=8 * dtype.itemsize, allow_subnormal=False)
        return datatype, draw(hnp.arrays(dtype, SHAPES, elements=elements))
    return datatype, draw(hnp.arrays(dtype, SHAPES, elements=st.integers(0, min(255, np.iinfo(dtype).max))))


def described(array: np.ndarray, datatype: str, **more: Any) -> dict[str, Any]:
    return {"name": "images", "shape": list(array.shape), "datatype": datatype, **more}


def as_binary(array: np.ndarray, datatype: str, **more: Any) -> tuple[bytes, str]:
    data = array.tobytes()
    tensor = described(array, datatype, parameters={"binary_data_size": len(data)})
    text = json.dumps({"inputs": [tensor], **more}).encode()
    return text + data, str(len(text))


def as_json(document: object) -> bytes:
    return json.dumps(document).encode()


def read(body: bytes, header_length: str | None = None) -> np.ndarray:
    return images(parse(body, header_length, "m").input, SPEC, LIMITS)


def refused(body: bytes, header_length: str | None = None, status: int = 400) -> str:
    with pytest.raises(RequestError) as caught:
        read(body, header_length)
    assert caught.value.status == status
    assert len(str(caught.value)) < 500
    return str(caught.value)


@given(pixels())
def test_pixels_arrive_bitwise_as_binary_data_and_as_json(sent: tuple[str, np.ndarray]) -> None:
    datatype, array = sent
    expected = SPEC.normalise(array.reshape(-1, 3, 2, 4))
    assert np.array_equal(read(*as_binary(array, datatype)), expected)
    for data in (array.tolist(), array.ravel().tolist()):
        body = as_json({"inputs": [described(array, datatype, data=data)]})
        assert np.array_equal(read(body), expected)


def test_binary_data_are_not_copied() -> None:
    body, length = as_binary(np.zeros((1, 3, 2, 4), np.uint8), "UINT8")
    data = parse(body, length, "m").input.data
    assert isinstance(data, memoryview)
    assert data.obj is body


def test_a_body_without_json_is_one_image() -> None:
    array = np.arange(24, dtype=np.float32)
    request = parse(array.tobytes(), "0", "m")
    assert [one.binary for one in request.outputs] == [True, True]
    assert np.array_equal(images(request.input, SPEC, LIMITS), SPEC.normalise(array.reshape(1, 3, 2, 4)))


def test_what_is_asked_for_is_read() -> None:
    tensor = {"name": "images", "shape": [3, 2, 4], "datatype": "UINT8", "data": [0] * COUNT}
    outputs = [
        {"name": "logits", "parameters": {"classification": 2}},
        {"name": "labels", "parameters": {"binary_data": False}},
        {"name": "classes"},
    ]
    parameters = {"binary_data_output": True, "variant": "4x"}
    body = as_json(
        {"id": "42", "model_name": "m", "inputs": [tensor], "outputs": outputs, "parameters": parameters}
    )
    request = parse(body, None, "m")
    assert request.id == "42"
    assert request.parameters == {"variant": "4x"}
    assert request.outputs == (
        Wanted("logits", True, 2),
        Wanted("labels", False),
        Wanted("classes", True),
    )
    for nothing in ({}, {"outputs": []}, {"outputs": None, "id": None, "parameters": None}):
        request = parse(as_json({"inputs": [tensor], **nothing}), None, "m")
        assert request.outputs == (Wanted("logits"), Wanted("classes"))
        assert request.id is None


def tensor(**changed: Any) -> dict[str, Any]:
    whole = {"name": "images", "shape": [1, 3, 2, 4], "datatype": "UINT8", "data": [0] * COUNT, **changed}
    return {key: value for key, value in whole.items() if value is not None}


ROW = [0] * 4


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ([], "the request is []"),
        ({}, "inputs is a list of one tensor"),
        ({"inputs": []}, 'either "images" or "encoded"; here it is 0'),
        ({"inputs": [tensor(), tensor()]}, "here it is 2"),
        ({"inputs": [tensor()], "input": 1}, "the request holds 'input'"),
        ({"inputs": [tensor()], "id": 1}, "id is 1"),
        ({"inputs": [tensor()], "model_name": "other"}, "model_name is 'other'"),
        ({"inputs": [7]}, "inputs[0] is 7"),
        ({"inputs": [tensor(name="input0")]}, "there is no input 'input0'"),
        ({"inputs": [tensor(name=None)]}, "there is no input None"),
        ({"inputs": [tensor(datatype="BOOL")]}, "UINT8, UINT16"),
        ({"inputs": [tensor(datatype="BYTES")]}, "the datatype of images is 'BYTES'"),
        ({"inputs": [tensor(datatype=["UINT8"])]}, "the datatype of images is ['UINT8']"),
        ({"inputs": [tensor(name="encoded")]}, "it has to be BYTES"),
        ({"inputs": [tensor(name="encoded", datatype="BYTES")]}, "send them as binary data"),
        ({"inputs": [tensor(shape=None)]}, "the shape of images is None"),
        ({"inputs": [tensor(shape=[-1, 3, 2, 4])]}, "none negative"),
        ({"inputs": [tensor(shape=[1.0, 3, 2, 4])]}, "whole numbers"),
        ({"inputs": [tensor(shape=[True, 3, 2, 4])]}, "whole numbers"),
        ({"inputs": [tensor(shape=[0, 3, 2, 4], data=[])]}, "send at least one"),
        ({"inputs": [tensor(shape=[1, 2, 3, 4])]}, "this model reads ['n', 3, 2, 4]"),
        ({"inputs": [tensor(shape=[1, 1, 3, 2, 4])]}, "or [3, 2, 4] for one image"),
        ({"inputs": [tensor(shape=[24])]}, "the shape of images is [24]"),
        ({"inputs": [tensor(shape=[1] * 1000)]}, "the shape of images"),
        ({"inputs": [tensor(shape=[2**63, 2**63, 2**63, 4])]}, "send them flat or nested"),
        ({"inputs": [{**tensor(), "data": None}]}, "neither data nor binary_data_size"),
        ({"inputs": [tensor(data=7)]}, "a list of numbers"),
        ({"inputs": [tensor(data=[0] * 23)]}, "23 numbers"),
        ({"inputs": [tensor(data=[[[ROW] * 3] * 2])]}, "1 x 2 x 3 x 4 numbers"),
        ({"inputs": [tensor(data=[[0] * 12, [0] * 12])]}, "2 x 12 numbers"),
        ({"inputs": [tensor(data=[[0] * 12, [0] * 11])]}, "nested otherwise"),
        ({"inputs": [tensor(data=[[[[[0]] * 4] * 2] * 3])]}, "nested otherwise"),
        ({"inputs": [tensor(data=[*ROW, [0]])]}, "not a number"),
        ({"inputs": [tensor(data=[True] * COUNT)]}, "not a number"),
        ({"inputs": [tensor(data=["0"] * COUNT)]}, "not a number"),
        ({"inputs": [tensor(data=[None] * COUNT)]}, "not a number"),
        ({"inputs": [tensor(data=[0.5] * COUNT)]}, "whole numbers"),
        ({"inputs": [tensor(data=[256] * COUNT)]}, "no UINT8"),
        ({"inputs": [tensor(data=[-1] * COUNT, datatype="INT8")]}, "holds the pixel -1"),
        ({"inputs": [tensor(data=[256] * COUNT, datatype="INT16")]}, "between 0 and 255"),
        ({"inputs": [tensor(data=[7e4] * COUNT, datatype="FP16")]}, "holds the pixel inf"),
        ({"inputs": [tensor(data=[1e300] * COUNT, datatype="FP32")]}, "holds the pixel inf"),
        ({"inputs": [tensor(parameters={"binary_data_size": 24})]}, "both data and binary_data_size"),
        (
            {"inputs": [tensor(data=None, parameters={"binary_data_size": 24})]},
            "Inference-Header-Content-Length",
        ),
        ({"inputs": [tensor(parameters={"shared_memory_region": "x"})]}, "shared memory is not served"),
        ({"inputs": [tensor(parameters={"content_type": "x"})]}, "there are binary_data_size"),
        ({"inputs": [tensor(parameters=[])]}, "parameters of images is []"),
        ({"inputs": [tensor(dtype="x")]}, "inputs[0] holds 'dtype'"),
        ({"inputs": [tensor()], "outputs": {}}, "outputs is {}"),
        ({"inputs": [tensor()], "outputs": ["logits"]}, "outputs[0] is 'logits'"),
        (
            {"inputs": [tensor()], "outputs": [{"name": "x"}]},
            "there are logits, classes, labels, probabilities",
        ),
        ({"inputs": [tensor()], "outputs": [{"name": ["x"]}]}, "there is no output ['x']"),
        ({"inputs": [tensor()], "outputs": [{"name": "logits"}] * 2}, "'logits' is asked for twice"),
        *(
            ({"inputs": [tensor()], "outputs": [{"name": name, "parameters": parameters}]}, says)
            for name, parameters, says in (
                ("logits", {"binary_data": 1}, "true or false"),
                ("logits", {"classification": -1}, "not negative"),
                ("logits", {"classification": True}, "whole number"),
                ("classes", {"classification": 1}, "logits and probabilities can"),
                ("logits", {"shared_memory_region": "x"}, "shared memory is not served"),
                ("logits", {"top": 1}, "there are binary_data, classification"),
            )
        ),
        *(
            ({"inputs": [tensor()], "parameters": parameters}, says)
            for parameters, says in (
                ({"priority": 1}, "in the order of their arrival"),
                ({"timeout": 1000}, "the operator"),
                ({"sequence_id": 1, "sequence_start": True}, "no request depends on another"),
                ({"sequence_end": True}, "no request depends on another"),
                ({"binary_data_output": "yes"}, "true or false"),
                ({"my_parameter": 42}, "there are binary_data_output, variant, min_accuracy"),
                ("none", "the parameters of the request is 'none'"),
            )
        ),
    ],
)
def test_what_is_wrong_is_told_with_what_is_right(document: object, says: str) -> None:
    assert says in refused(as_json(document))


def test_there_are_limits_to_images() -> None:
    many = np.zeros((5, 3, 2, 4), np.uint8)
    assert "at most 4" in refused(*as_binary(many, "UINT8"), status=413)
    text = as_json(
        {"inputs": [tensor(shape=[2**80, 3, 2, 4], data=None, parameters={"binary_data_size": 0})]}
    )
    refused(text, str(len(text)), status=400)  # no JSON has so large a whole number
    text = as_json(
        {"inputs": [tensor(shape=[2**60, 3, 2, 4], data=None, parameters={"binary_data_size": 0})]}
    )
    assert "at most 4" in refused(text, str(len(text)), status=413)


@pytest.mark.parametrize("header_length", ["", "-1", "1e2", "+5", "٣", "9" * 5000, "100000", " 5", "0x5"])
def test_a_header_length_that_is_none_is_refused(header_length: str) -> None:
    body, _ = as_binary(np.zeros((1, 3, 2, 4), np.uint8), "UINT8")
    assert "at most all" in refused(body, header_length)


@pytest.mark.parametrize(("datatype", "number"), [("UINT64", 2**64 - 1), ("INT64", 2**63 - 1), ("INT8", 127)])
def test_the_largest_whole_numbers_stay_what_they_are(datatype: str, number: int) -> None:
    """As floats those of 64 bits would be rounded up, and wrap to another pixel."""
    document = {
        "inputs": [{"name": "images", "shape": [1, 1, 1, 2], "datatype": datatype, "data": [0, number]}]
    }
    found = parse(as_json(document), None, "tiny").input.data
    assert found.tolist() == [0, number]
    document["inputs"][0]["data"] = [0, number + 1]
    with pytest.raises(RequestError):
        parse(as_json(document), None, "tiny")


def test_sizes_that_lie_are_told() -> None:
    array = np.zeros((2, 3, 2, 4), np.float32)
    body, length = as_binary(array, "FP32")
    assert "191 bytes follow the JSON" in refused(body[:-1], length)
    assert "193 bytes follow the JSON" in refused(body + b"x", length)
    assert "not JSON" in refused(body, str(int(length) - 1))
    assert "not JSON" in refused(body, str(int(length) + 1))
    assert "not JSON" in refused(body)
    half = array[:1].tobytes()
    text = as_json({"inputs": [described(array, "FP32", parameters={"binary_data_size": len(half)})]})
    assert "96 bytes: FP32 of the shape [2, 3, 2, 4] has 192" in refused(text + half, str(len(text)))
    for size in (-96, 96.0, True, "96", 2**64):
        text = as_json({"inputs": [described(array, "FP32", parameters={"binary_data_size": size})]})
        assert "binary_data_size of images is" in refused(text + half, str(len(text)))
    text = as_json({"inputs": [tensor()]})
    assert "1 bytes follow the JSON, and no input" in refused(text + b"x", str(len(text)))
    assert "images has 3 bytes" in refused(b"abc", "0")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -1e-3, 255.1])
@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64"])
def test_what_is_no_pixel_is_refused_wherever_it_is(datatype: str, value: float) -> None:
    for index in (0, 30, 47):
        array = np.full((2, 3, 2, 4), 5, DTYPES[datatype])
        array.reshape(-1)[index] = value
        assert f"image {index // 24} of images holds the pixel" in refused(*as_binary(array, datatype))


def test_pixels_above_the_range_of_the_data_set_are_refused_of_whole_numbers_too() -> None:
    digits = InputSpec(1, 2, 2, 16.0, (0.5,), (0.5,), ("a", "b"))
    for value, right in ((16, True), (17, False)):
        body, length = as_binary(np.full((1, 1, 2, 2), value, np.uint8), "UINT8")
        request = parse(body, length, "m")
        if right:
            assert images(request.input, digits, LIMITS).max() == np.float32(1)
        else:
            with pytest.raises(RequestError, match="the pixel 17: pixels of this model lie between 0 and 16"):
                images(request.input, digits, LIMITS)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", " GZIP "])
def test_a_compressed_body_is_inflated_up_to_the_limit(encoding: str) -> None:
    compress = gzip.compress if "gz" in encoding.lower() else zlib.compress
    assert inflate(compress(b"x" * 100), encoding, 100) == b"x" * 100
    with pytest.raises(RequestError, match="more than 99 bytes") as caught:
        inflate(compress(b"x" * 100), encoding, 99)
    assert caught.value.status == 413
    for damaged, says in (
        (compress(b"x" * 100)[:-1], "end too early"),
        (compress(b"x" * 100) + b"y", "1 bytes follow"),
        (b"no such data", "is not"),
        (b"", "end too early"),
    ):
        with pytest.raises(RequestError, match=says) as caught:
            inflate(damaged, encoding, 1000)
        assert caught.value.status == 400


def test_other_encodings_are_refused() -> None:
    for encoding in ("br", "gzip, gzip", "x" * 5000):
        with pytest.raises(RequestError, match="gzip, deflate") as caught:
            inflate(b"", encoding, 10)
        assert caught.value.status == 415


def test_a_body_without_an_encoding_is_itself() -> None:
    for encoding in ("", "identity"):
        assert inflate(b"x" * 100, encoding, 10) == b"x" * 100


def test_a_bomb_is_given_up_at_the_limit() -> None:
    bomb = zlib.compress(bytes(200 << 20), 9)
    tracemalloc.start()
    try:
        with pytest.raises(RequestError):
            inflate(bomb, "deflate", 1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@given(st.lists(st.binary(max_size=9)))
def test_elements_of_bytes_are_those_that_were_sent(elements: list[bytes]) -> None:
    data = b"".join(struct.pack("<I", len(one)) + one for one in elements)
    assert [bytes(one) for one in byte_elements(memoryview(data), len(elements))] == elements
    with pytest.raises(RequestError, match="bytes follow the last"):
        byte_elements(memoryview(data + b"x"), len(elements))
    with pytest.raises(RequestError, match=r"end before element|are left"):
        byte_elements(memoryview(data + b"\xff\xff\xff\xffx"), len(elements) + 1)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
NEAR = st.fixed_dictionaries(
    {
        "inputs": st.lists(
            st.fixed_dictionaries(
                {
                    "name": st.sampled_from(["images", "encoded"]) | JSON,
                    "shape": st.just([1, 3, 2, 4])
                    | st.just([1])
                    | st.lists(st.integers(-1, 9), max_size=5)
                    | JSON,
                    "datatype": st.sampled_from([*DTYPES, "BYTES"]) | JSON,
                },
                optional={
                    "data": st.lists(st.integers(-1, 300) | st.floats(0, 255), min_size=24, max_size=24)
                    | JSON,
                    "parameters": st.fixed_dictionaries({"binary_data_size": st.integers(0, 100)}) | JSON,
                },
            )
            | JSON,
            min_size=1,
            max_size=2,
        )
        | JSON
    },
    optional={
        "id": JSON,
        "outputs": st.lists(
            st.fixed_dictionaries({"name": st.sampled_from(OUTPUTS) | JSON}, optional={"parameters": JSON})
        ),
        "parameters": JSON,
    },
)


def answered_or_refused(body: bytes, header_length: str | None) -> None:
    try:
        request = parse(body, header_length, "m")
        read = images(request.input, SPEC, LIMITS)
    except RequestError as error:
        refusal = error
    else:
        assert isinstance(request, InferRequest)
        assert read.dtype == np.float32
        assert read.shape[1:] == SPEC.shape
        assert np.isfinite(read).all()
        return
    assert 400 <= refusal.status < 500
    assert len(str(refusal)) < 500


@given(st.binary(max_size=200), st.none() | st.integers(-1, 250).map(str) | st.text(max_size=4))
def test_any_bytes_are_a_request_or_refused(body: bytes, header_length: str | None) -> None:
    answered_or_refused(body, header_length)


@given(NEAR | JSON, st.none() | st.binary(max_size=120), st.integers(-1, 1))
def test_anything_near_a_request_is_one_or_refused(document: Any, data: bytes | None, off: int) -> None:
    text = json.dumps(document).encode()
    answered_or_refused(text + (data or b""), None if data is None else str(len(text) + off))


@given(
    st.binary(max_size=120), st.integers(0, 120), st.sampled_from(["UINT8", "FP16", "FP32", "FP64", "BYTES"])
)
def test_any_tensor_bytes_are_images_or_refused(data: bytes, size: int, datatype: str) -> None:
    name, shape = ("encoded", [1]) if datatype == "BYTES" else ("images", [1, 3, 2, 4])
    data = (data * 120)[:size]
    one = {"name": name, "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": size}}
    text = json.dumps({"inputs": [one]}).encode()
    answered_or_refused(text + data, str(len(text)))


@pytest.mark.parametrize("depth", [100, 2000, 20_000])
def test_deep_nesting_is_refused(depth: int) -> None:
    data = b"[" * depth + b"]" * depth
    refused(data)
    refused(b'{"inputs":[{"name":"images","shape":[1,3,2,4],"datatype":"UINT8","data":' + data + b"}]}")
    refused(b'{"inputs":[{"name":' + data + b',"shape":[],"datatype":"UINT8","data":[]}]}')
