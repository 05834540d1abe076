"""Logits to answers of the Open Inference Protocol."""

from __future__ import annotations

import io
import json
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

from serve_app.observer import Answered
from serve_app.protocol import Limits
from serve_app.service import Inferred
from serve_app.v2_images import images
from serve_app.v2_model import configuration, metadata
from serve_app.v2_request import InferRequest, Tensor, Wanted, byte_elements
from serve_app.v2_response import Answer
from serve_app.v2_statistics import Statistics
from shifter.errors import RequestError
from shifter.values import InputSpec

SPEC = InputSpec(3, 2, 4, 255.0, (0.25, 0.5, 0.75), (0.5, 0.25, 1.0), ("apple", "pickle", "grün", "x:y"))
LIMITS = Limits(body_bytes=1 << 16, images=4, image_pixels=4000)
LOGITS = np.array([[1, 5, 10, 4], [2, 2, -1, 0.5]], np.float32)


def answered(*wanted: Wanted, identity: str | None = None) -> tuple[dict[str, Any], bytes]:
    request = InferRequest(Tensor("images", "FP32", None, memoryview(b"")), wanted, identity)
    answer = Answer("m", request)
    inferred = Inferred(answer.outputs("4x", LOGITS, SPEC), "4x", "digest")
    whole = answer.completed(inferred).content
    return json.loads(whole[: answer.json_bytes]), whole[answer.json_bytes :]


def test_an_answer_names_who_computed_it() -> None:
    document, binary = answered(Wanted("classes"), identity="42")
    assert document == {
        "id": "42",
        "model_name": "m",
        "model_version": "digest",
        "parameters": {"variant": "4x", "portfolio": "digest"},
        "outputs": [{"name": "classes", "datatype": "INT64", "shape": [2], "data": [2, 0]}],
    }
    assert binary == b""
    assert "id" not in answered(Wanted("classes"))[0]


def test_outputs_are_those_that_are_asked_for_in_their_order() -> None:
    document, _ = answered(Wanted("labels"), Wanted("logits"), Wanted("probabilities"))
    labels, logits, probabilities = document["outputs"]
    assert labels == {"name": "labels", "datatype": "BYTES", "shape": [2], "data": ["grün", "apple"]}
    assert logits["shape"] == [2, 4]
    assert np.array_equal(np.array(logits["data"], np.float32), LOGITS.ravel())
    exponentials = np.exp(LOGITS.astype(np.float64))
    expected = exponentials / exponentials.sum(axis=1, keepdims=True)
    assert np.allclose(np.reshape(probabilities["data"], (2, 4)), expected, rtol=1e-5)


def test_binary_outputs_follow_in_order_and_say_their_size() -> None:
    document, binary = answered(
        Wanted("labels", binary=True),
        Wanted("logits"),
        Wanted("classes", binary=True),
        Wanted("probabilities", True),
    )
    sizes = [one.get("parameters", {}).get("binary_data_size", 0) for one in document["outputs"]]
    assert ["data" in one for one in document["outputs"]] == [False, True, False, False]
    assert sum(sizes) == len(binary)
    labels, rest = memoryview(binary)[: sizes[0]], binary[sizes[0] :]
    assert [bytes(one).decode() for one in byte_elements(labels, 2)] == ["grün", "apple"]
    assert np.frombuffer(rest[:16], "<i8").tolist() == [2, 0]
    assert np.frombuffer(rest[16:], "<f4").reshape(2, 4).sum(axis=1) == pytest.approx([1, 1])


def test_a_classification_is_the_highest_values_falling() -> None:
    document, _ = answered(Wanted("logits", classification=2))
    assert document["outputs"][0] == {
        "name": "logits",
        "datatype": "BYTES",
        "shape": [2, 2],
        "data": ["10.000000:2:grün", "5.000000:1:pickle", "2.000000:0:apple", "2.000000:1:pickle"],
    }
    document, binary = answered(Wanted("probabilities", True, 9))
    assert document["outputs"][0]["shape"] == [2, 4]
    texts = [bytes(one).decode() for one in byte_elements(memoryview(binary), 8)]
    assert texts[0].endswith(":2:grün")
    assert texts[3].endswith(":0:apple")


def encoded(colour: str, size: tuple[int, int] = (4, 2)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "PNG")
    return stream.getvalue()


def elements(*each: bytes) -> memoryview:
    return memoryview(b"".join(struct.pack("<I", len(one)) + one for one in each))


def test_encoded_images_are_read_in_order() -> None:
    white, black = encoded("white"), encoded("black")
    for shape in ((2,), (2, 1)):
        read = images(Tensor("encoded", "BYTES", shape, elements(white, black)), SPEC, LIMITS)
        pixels = np.stack([np.full((3, 2, 4), 255), np.zeros((3, 2, 4))])
        assert np.array_equal(read, SPEC.normalise(pixels))


@pytest.mark.parametrize(
    ("shape", "data", "status", "says"),
    [
        ((0,), elements(), 400, "at least one"),
        ((5,), elements(*[b""] * 5), 413, "at most 4"),
        ((2, 2), elements(*[b""] * 4), 400, r"\[n\] or \[n, 1\]"),
        (
            (2,),
            elements(encoded("white"), b"GIF89a"),
            400,
            "element 1 of encoded: the body is not a PNG or JPEG",
        ),
        ((2,), elements(encoded("white")), 400, "end before element 1"),
        ((1,), elements(encoded("white", (64, 63))), 413, "element 0 of encoded: the image has 64x63"),
        ((2,), elements(*[encoded("white", (50, 50))] * 2), 413, "at most 2000"),
    ],
)
def test_encoded_images_that_are_none_are_told(
    shape: tuple[int, ...], data: memoryview, status: int, says: str
) -> None:
    with pytest.raises(RequestError, match=says) as caught:
        images(Tensor("encoded", "BYTES", shape, data), SPEC, LIMITS)
    assert caught.value.status == status


def test_metadata_and_configuration_describe_the_same_tensors() -> None:
    told = metadata("m", "digest", "onnxruntime", SPEC)
    assert told["inputs"] == [{"name": "images", "datatype": "FP32", "shape": [-1, 3, 2, 4]}]
    shapes = {one["name"]: one["shape"] for one in told["outputs"]}
    assert shapes == {"logits": [-1, 4], "classes": [-1], "labels": [-1], "probabilities": [-1, 4]}
    set_up = configuration("m", "onnxruntime", SPEC, 256)
    assert set_up["max_batch_size"] == 256
    assert [one["name"] for one in set_up["output"]] == list(shapes)
    assert {one["data_type"] for one in set_up["output"]} == {"TYPE_FP32", "TYPE_INT64", "TYPE_STRING"}


def test_statistics_count_calls_by_the_shares_in_them() -> None:
    statistics = Statistics()
    assert statistics.to_json("m")["last_inference"] == 0
    statistics.answered(Answered("1x", images=1, seconds=0.2, engine_s=0.1, batch=4))
    statistics.answered(Answered("1x", images=3, seconds=0.3, engine_s=0.1, batch=4))
    statistics.answered(Answered("4x", images=1, seconds=0.1, engine_s=0.05, batch=1))
    statistics.refused("queue", "")
    told = statistics.to_json("m")
    assert (told["inference_count"], told["execution_count"]) == (5, 2)
    assert told["inference_stats"]["success"] == {"count": 3, "ns": 600_000_000}
    assert told["inference_stats"]["fail"] == {"count": 1}
    assert told["batch_stats"] == [
        {"batch_size": 1, "compute_infer": {"count": 1, "ns": 50_000_000}},
        {"batch_size": 4, "compute_infer": {"count": 1, "ns": 100_000_000}},
    ]
