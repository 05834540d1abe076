"""Triton's own HTTP client, as it is published, against the application under uvicorn."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
import uvicorn
from PIL import Image
from tritonclient.utils import InferenceServerException

from serve_app.app import create_app
from serve_app.service import EdgeService
from serve_app.settings import Settings
from shifter.portfolio import Portfolio
from shifter.switching.engine import OnnxEngine

PIXELS = np.random.default_rng(0).integers(0, 17, (3, 1, 8, 8)).astype(np.uint8)


@pytest.fixture(scope="module")
def portfolio(portfolio_bytes: bytes) -> Portfolio:
    return Portfolio.open(portfolio_bytes)


@pytest.fixture(scope="module")
def address(portfolio: Portfolio) -> Iterator[str]:
    """Of a service that holds the variant 4x."""
    settings = Settings(portfolio="made-up.zip", policy="fixed", variant="4x", max_images=16)
    app = create_app(EdgeService(portfolio, settings))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
        thread.start()
        end = time.monotonic() + 30
        while not server.started and time.monotonic() < end:
            time.sleep(0.01)
        assert server.started
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture
def client(address: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(address) as client:
        yield client


@pytest.fixture(scope="module")
def expected(portfolio: Portfolio) -> np.ndarray:
    inflated = portfolio.inflate("4x")
    return OnnxEngine(inflated.graph, inflated.tensors).run(portfolio.input_spec.normalise(PIXELS))


def sent(array: np.ndarray, datatype: str, binary: bool = True, name: str = "images") -> list[Any]:
    one = triton.InferInput(name, list(array.shape), datatype)
    return [one.set_data_from_numpy(array, binary_data=binary)]


def test_the_server_and_its_model_are_described(
    client: triton.InferenceServerClient, portfolio: Portfolio
) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny")
    assert client.is_model_ready("tiny", portfolio.digest)
    assert not client.is_model_ready("tiny", "1")
    assert not client.is_model_ready("other")
    assert client.get_server_metadata()["name"] == "shifter"
    described = client.get_model_metadata("tiny")
    assert described["inputs"] == [{"name": "images", "datatype": "FP32", "shape": [-1, 1, 8, 8]}]
    assert client.get_model_config("tiny")["max_batch_size"] == 16
    assert client.get_model_repository_index()[0]["state"] == "READY"


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
@pytest.mark.parametrize("datatype", ["UINT8", "INT64", "FP16", "FP32"])
def test_inference(
    client: triton.InferenceServerClient,
    expected: np.ndarray,
    datatype: str,
    binary_in: bool,
    binary_out: bool,
) -> None:
    dtype = {"UINT8": np.uint8, "INT64": np.int64, "FP16": np.float16, "FP32": np.float32}[datatype]
    names = ("logits", "classes", "labels", "probabilities")
    outputs = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in names]
    result = client.infer(
        "tiny", sent(PIXELS.astype(dtype), datatype, binary_in), outputs=outputs, request_id="42"
    )
    assert result.get_response()["id"] == "42"
    assert result.get_response()["parameters"]["variant"] == "4x"
    assert np.allclose(result.as_numpy("logits"), expected, rtol=1e-4, atol=1e-4)
    assert result.as_numpy("classes").dtype == np.int64
    assert result.as_numpy("classes").tolist() == expected.argmax(axis=1).tolist()
    labels = [one.decode() if isinstance(one, bytes) else one for one in result.as_numpy("labels")]
    assert labels == [("zero", "one", "two")[index] for index in expected.argmax(axis=1)]
    assert result.as_numpy("probabilities").sum(axis=1) == pytest.approx(1)


def test_without_a_list_of_outputs_logits_and_classes_come_as_binary_data(
    client: triton.InferenceServerClient, portfolio: Portfolio, expected: np.ndarray
) -> None:
    result = client.infer("tiny", sent(PIXELS, "UINT8"), model_version=portfolio.digest)
    assert np.allclose(result.as_numpy("logits"), expected, rtol=1e-4, atol=1e-4)
    assert "binary_data_size" in result.get_output("classes")["parameters"]
    assert result.as_numpy("labels") is None


def test_one_image_without_the_dimension_of_a_batch(
    client: triton.InferenceServerClient, expected: np.ndarray
) -> None:
    result = client.infer("tiny", sent(PIXELS[0], "UINT8"))
    assert np.allclose(result.as_numpy("logits"), expected[:1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("binary", [True, False])
def test_a_classification(client: triton.InferenceServerClient, expected: np.ndarray, binary: bool) -> None:
    output = triton.InferRequestedOutput("logits", binary_data=binary, class_count=2)
    highest = client.infer("tiny", sent(PIXELS, "UINT8"), outputs=[output]).as_numpy("logits")
    assert highest.shape == (3, 2)
    text = highest[0, 0].decode() if binary else highest[0, 0]
    value, index, label = text.split(":")
    assert float(value) == pytest.approx(expected[0].max(), abs=1e-4)
    assert (int(index), label) == (expected[0].argmax(), ("zero", "one", "two")[expected[0].argmax()])


def test_encoded_images(client: triton.InferenceServerClient, portfolio: Portfolio) -> None:
    files = []
    for image in PIXELS[:, 0]:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "PNG")
        files.append(stream.getvalue())
    result = client.infer("tiny", sent(np.array(files, object), "BYTES", name="encoded"))
    same = client.infer("tiny", sent(PIXELS.astype(np.float32) * (16 / 255), "FP32"))
    assert np.allclose(result.as_numpy("logits"), same.as_numpy("logits"), atol=1e-4)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
def test_compression(
    client: triton.InferenceServerClient, expected: np.ndarray, algorithm: str, binary: bool
) -> None:
    result = client.infer(
        "tiny",
        sent(PIXELS, "UINT8", binary),
        request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,
    )
    assert np.allclose(result.as_numpy("logits"), expected, rtol=1e-4, atol=1e-4)


def test_several_at_once(address: str, expected: np.ndarray) -> None:
    with triton.InferenceServerClient(address, concurrency=4) as client:
        waiting = [client.async_infer("tiny", sent(PIXELS[i % 3], "UINT8")) for i in range(12)]
        for i, one in enumerate(waiting):
            logits = one.get_result().as_numpy("logits")
            assert np.allclose(logits, expected[i % 3], rtol=1e-4, atol=1e-4)


def test_statistics_count_what_was_answered(client: triton.InferenceServerClient) -> None:
    before = client.get_inference_statistics()["model_stats"][0]["inference_count"]
    client.infer("tiny", sent(PIXELS, "UINT8"))
    assert client.get_inference_statistics("tiny")["model_stats"][0]["inference_count"] == before + 3


def shared_memory() -> list[Any]:
    one = triton.InferInput("images", [1, 1, 8, 8], "UINT8")
    one.set_shared_memory("region", 64)
    return [one]


Ask = Callable[[triton.InferenceServerClient], object]


@pytest.mark.parametrize(
    ("ask", "status", "says"),
    [
        (lambda c: c.infer("other", sent(PIXELS, "UINT8")), "404", "unknown model 'other': 'tiny' serves"),
        (lambda c: c.infer("tiny", sent(PIXELS, "UINT8"), model_version="1"), "404", "unknown version '1'"),
        (lambda c: c.infer("tiny", sent(PIXELS, "UINT8", name="input0")), "400", '"images", pixels'),
        (lambda c: c.infer("tiny", sent(PIXELS > 3, "BOOL")), "400", "there are UINT8"),
        (lambda c: c.infer("tiny", sent(PIXELS[:, :, 1:], "UINT8")), "400", "['n', 1, 8, 8]"),
        (lambda c: c.infer("tiny", sent(PIXELS + 10, "UINT8")), "400", "between 0 and 16"),
        (lambda c: c.infer("tiny", sent(PIXELS, "UINT8") * 2), "400", "a list of one tensor"),
        (lambda c: c.infer("tiny", sent(np.repeat(PIXELS, 6, 0), "UINT8")), "413", "at most 16"),
        (
            lambda c: c.infer("tiny", sent(PIXELS, "UINT8"), outputs=[triton.InferRequestedOutput("x")]),
            "400",
            "there are logits, classes, labels, probabilities",
        ),
        (lambda c: c.infer("tiny", sent(PIXELS, "UINT8"), priority=1), "400", "priority"),
        (lambda c: c.infer("tiny", sent(PIXELS, "UINT8"), timeout=1000), "400", "timeout"),
        (lambda c: c.infer("tiny", sent(PIXELS, "UINT8"), sequence_id=7), "400", "sequence_id"),
        (lambda c: c.infer("tiny", sent(PIXELS, "UINT8"), parameters={"mine": 1}), "400", "'mine'"),
        (lambda c: c.infer("tiny", shared_memory()), "400", "shared memory"),
        (lambda c: c.get_system_shared_memory_status(), "404", "shared memory"),
        (lambda c: c.register_system_shared_memory("x", "/x", 64), "404", "shared memory"),
        (lambda c: c.unregister_cuda_shared_memory(), "404", "shared memory"),
        (lambda c: c.get_trace_settings("tiny"), "404", "tracing"),
        (lambda c: c.update_log_settings({"log_info": True}), "404", "where the service is started"),
        (lambda c: c.load_model("tiny"), "404", "where the service is started"),
        (lambda c: c.unload_model("tiny"), "404", "where the service is started"),
        (lambda c: c.get_model_config("other"), "404", "unknown model"),
    ],
)
def test_errors_are_those_of_the_client(
    client: triton.InferenceServerClient, ask: Ask, status: str, says: str
) -> None:
    with pytest.raises(InferenceServerException) as caught:
        ask(client)
    assert caught.value.status() == status
    assert says in caught.value.message()


def test_the_asynchronous_client(address: str, expected: np.ndarray) -> None:
    async def ask() -> None:
        async with triton_aio.InferenceServerClient(address) as client:
            assert await client.is_server_ready()
            assert (await client.get_model_metadata("tiny"))["platform"] == "onnxruntime_onnx"
            results = await asyncio.gather(*(client.infer("tiny", sent(PIXELS, "UINT8")) for _ in range(5)))
            for result in results:
                assert np.allclose(result.as_numpy("logits"), expected, rtol=1e-4, atol=1e-4)
            with pytest.raises(InferenceServerException, match="unknown model"):
                await client.infer("other", sent(PIXELS, "UINT8"))

    asyncio.run(ask())


def test_the_examples_of_the_documentation(address: str, tmp_path: Path) -> None:
    """In their order, in one folder, but for the one that installs the client."""
    markdown = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", markdown, re.MULTILINE | re.DOTALL)
    assert [language for language, _ in blocks] == ["bash", "python", "bash"]
    said = []
    for language, text in blocks[1:]:
        for there, here in (("127.0.0.1:8000", address), ('"vgg"', '"tiny"'), ("/vgg", "/tiny")):
            text = text.replace(there, here)
        command = [sys.executable, "-c"] if language == "python" else ["bash", "-euo", "pipefail", "-c"]
        environment = {
            name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")
        }
        done = subprocess.run(
            [*command, text], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert "'variant': '4x'" in said[0]
    assert "error" not in said[1]
    documents = [json.loads(line) for line in re.sub(r"\}\{", "}\n{", said[1]).splitlines()]
    assert [
        document.get("variant") or document.get("id") or document.get("name") for document in documents
    ] == [
        "4x",
        "tiny",
        "42",
    ]
    assert b'"binary_data_size":12' in (tmp_path / "answer.bin").read_bytes()
