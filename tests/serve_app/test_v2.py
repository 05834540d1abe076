"""The Open Inference Protocol in process: the specification's own requests, errors, and the schema."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from jobs.protocols import encode
from serve_app.app import create_app
from serve_app.service import EdgeService, Inferred
from serve_app.settings import Settings
from shifter.portfolio import Portfolio
from shifter.switching.engine import OnnxEngine

INFER = "/v2/models/tiny/infer"
PIXELS = np.random.default_rng(0).integers(0, 17, (3, 1, 8, 8)).astype(np.uint8)
TENSOR = {"name": "images", "shape": [3, 1, 8, 8], "datatype": "UINT8", "data": PIXELS.ravel().tolist()}


class Client:
    """Requests to the application in process, one after another."""

    def __init__(self, runner: asyncio.Runner, client: httpx.AsyncClient, service: EdgeService) -> None:
        self.runner, self.client, self.service = runner, client, service

    def get(self, path: str) -> httpx.Response:
        return self.runner.run(self.client.get(path))

    def post(self, path: str, **content: Any) -> httpx.Response:
        return self.runner.run(self.client.post(path, **content))


@pytest.fixture
def portfolio(portfolio_bytes: bytes) -> Portfolio:
    return Portfolio.open(portfolio_bytes)


@pytest.fixture
def client(portfolio: Portfolio) -> Iterator[Client]:
    service = EdgeService(portfolio, Settings(portfolio="made-up.zip", max_body_bytes=1 << 16))
    with asyncio.Runner() as runner:
        runner.run(service.__aenter__())
        client = httpx.AsyncClient(transport=httpx.ASGITransport(create_app(service)), base_url="http://edge")
        yield Client(runner, client, service)
        runner.run(client.aclose())
        runner.run(service.__aexit__(None, None, None))


def expected(portfolio: Portfolio, variant: str) -> np.ndarray:
    inflated = portfolio.inflate(variant)
    return OnnxEngine(inflated.graph, inflated.tensors).run(portfolio.input_spec.normalise(PIXELS))


def binary(array: np.ndarray, datatype: str, **more: Any) -> dict[str, Any]:
    size = {"binary_data_size": array.nbytes}
    one = {"name": "images", "shape": list(array.shape), "datatype": datatype, "parameters": size}
    text = json.dumps({"inputs": [one], **more}).encode()
    return {"content": text + array.tobytes(), "headers": {"Inference-Header-Content-Length": str(len(text))}}


def test_the_server_and_its_model_are_described(client: Client, portfolio: Portfolio) -> None:
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    server = client.get("/v2").json()
    assert server.keys() == {"name", "version", "extensions"}
    assert "binary_tensor_data" in server["extensions"]
    for path in ("/v2/models/tiny", f"/v2/models/tiny/versions/{portfolio.digest}"):
        model = client.get(path).json()
        assert model.keys() == {"name", "versions", "platform", "inputs", "outputs"}
        assert model["versions"] == [portfolio.digest]
        assert client.get(f"{path}/ready").json() == {"name": "tiny", "ready": True}
        assert client.get(f"{path}/config").json()["max_batch_size"] == 256
        assert client.get(f"{path}/stats").json()["model_stats"][0]["inference_count"] == 0
    index = client.post("/v2/repository/index", json={"ready": True}).json()
    assert index == [{"name": "tiny", "version": portfolio.digest, "state": "READY", "reason": ""}]


def test_a_request_as_the_specification_shows_it(client: Client, portfolio: Portfolio) -> None:
    body = {"id": "42", "inputs": [TENSOR], "outputs": [{"name": "logits"}]}
    answer = client.post(INFER, json=body)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert "inference-header-content-length" not in answer.headers
    document = answer.json()
    variant = answer.headers["X-Shifter-Variant"]
    assert document["id"] == "42"
    assert document["model_name"] == "tiny"
    assert document["parameters"] == {"variant": variant, "portfolio": portfolio.digest}
    (logits,) = document["outputs"]
    assert (logits["name"], logits["datatype"], logits["shape"]) == ("logits", "FP32", [3, 3])
    assert np.allclose(np.reshape(logits["data"], (3, 3)), expected(portfolio, variant), atol=1e-4)


def test_a_request_as_the_binary_extension_shows_it(client: Client, portfolio: Portfolio) -> None:
    outputs = [{"name": "logits", "parameters": {"binary_data": True}}]
    answer = client.post(INFER, **binary(PIXELS, "UINT8", model_name="tiny", outputs=outputs))
    assert answer.headers["content-type"] == "application/octet-stream"
    length = int(answer.headers["inference-header-content-length"])
    assert json.loads(answer.content[:length])["outputs"] == [
        {"name": "logits", "datatype": "FP32", "shape": [3, 3], "parameters": {"binary_data_size": 36}}
    ]
    logits = np.frombuffer(answer.content[length:], "<f4").reshape(3, 3)
    assert np.allclose(logits, expected(portfolio, answer.headers["X-Shifter-Variant"]), atol=1e-4)


def test_a_raw_body_is_one_image(client: Client) -> None:
    one = PIXELS[:1].astype(np.float32)
    answer = client.post(INFER, content=one.tobytes(), headers={"Inference-Header-Content-Length": "0"})
    length = int(answer.headers["inference-header-content-length"])
    described = json.loads(answer.content[:length])["outputs"]
    assert [(one["name"], one["shape"]) for one in described] == [("logits", [1, 3]), ("classes", [1])]
    assert len(answer.content) == length + 12 + 8


def test_all_ways_to_send_pixels_give_the_same_answer(client: Client) -> None:
    sent = [
        {"json": {"inputs": [TENSOR]}},
        {"json": {"inputs": [{**TENSOR, "data": PIXELS.tolist(), "datatype": "FP32"}]}},
        {"content": json.dumps({"inputs": [TENSOR]}, indent=40).encode()},  # not light any more
        binary(PIXELS, "UINT8"),
        binary(PIXELS.astype(np.float64), "FP64"),
    ]
    zipped = binary(PIXELS, "UINT8")
    zipped["content"] = gzip.compress(zipped["content"])
    zipped["headers"]["Content-Encoding"] = "gzip"
    sent.append(zipped)
    assert len(sent[2]["content"]) > 16_384
    answers = [client.post(INFER, **one) for one in sent]
    assert [answer.status_code for answer in answers] == [200] * len(sent)
    classes = [answer.json()["outputs"][1]["data"] for answer in answers]
    theirs = client.post("/predict", content=encode(PIXELS), headers={"content-type": "application/json"})
    assert classes == [[one["index"] for one in theirs.json()["predictions"]]] * len(sent)
    counted = client.get("/v2/models/stats").json()["model_stats"][0]
    assert counted["inference_count"] == 3 * len(sent) + 3


@pytest.mark.parametrize(
    ("method", "path", "says"),
    [
        ("GET", "/v2/models/other", "unknown model 'other': 'tiny' serves"),
        ("GET", "/v2/models/tiny/versions/1", "unknown version '1'"),
        ("GET", "/v2/models/tiny/versions/1/ready", "unknown version '1'"),
        ("POST", "/v2/models/other/infer", "unknown model"),
        ("POST", "/v2/models/tiny/versions/1/infer", "unknown version"),
        ("GET", "/v2/systemsharedmemory/status", "send tensors in the body"),
        ("POST", "/v2/cudasharedmemory/region/x/register", "send tensors in the body"),
        ("GET", "/v2/trace/setting", "no tracing"),
        ("POST", "/v2/models/tiny/trace/setting", "no tracing"),
        ("GET", "/v2/logging", "where the service is started"),
        ("POST", "/v2/repository/models/tiny/load", "where the service is started"),
        ("GET", "/v2/nothing", "not found; there are"),
    ],
)
def test_what_is_not_there_is_an_error_of_the_protocol(
    client: Client, method: str, path: str, says: str
) -> None:
    answer = client.runner.run(client.client.request(method, path, json={"inputs": [TENSOR]}))
    assert answer.status_code == 404
    assert answer.json().keys() == {"error"}
    assert says in answer.json()["error"]


@pytest.mark.parametrize(
    ("sent", "status", "says"),
    [
        ({"content": b"{"}, 400, "not JSON"),
        ({"content": b" " * 70_000}, 413, "65536 bytes"),
        ({"content": b"", "headers": {"Content-Encoding": "br"}}, 415, "gzip, deflate"),
        ({"content": gzip.compress(bytes(70_000)), "headers": {"Content-Encoding": "gzip"}}, 413, "inflates"),
        ({"json": {"inputs": [{**TENSOR, "shape": [3, 1, 8, 7]}]}}, 400, "its shape is [3, 1, 8, 7]"),
        ({"json": {"inputs": [{**TENSOR, "data": [17] * 192}]}}, 400, "between 0 and 16"),
        (binary(np.full((1, 1, 8, 8), np.nan, np.float32), "FP32"), 400, "the pixel nan"),
        ({"json": {"inputs": [TENSOR], "parameters": {"variant": "5x"}}}, 422, "'5x'"),
        ({"json": {"inputs": [TENSOR], "parameters": {"min_accuracy": 95}}}, 400, "a number from 0 to 1"),
        ({"json": {"inputs": [TENSOR]}, "headers": {"X-Shifter-Min-Accuracy": "1"}}, 422, "accuracy"),
    ],
)
def test_a_bad_request_is_told_what_is_right_and_changes_nothing(
    client: Client, sent: dict[str, Any], status: int, says: str
) -> None:
    answer = client.post(INFER, **sent)
    assert answer.status_code == status
    assert answer.json().keys() == {"error"}
    assert says in answer.json()["error"]
    assert "X-Shifter-Variant" not in answer.headers
    state = client.get("/status").json()
    assert state["answered"] == {}
    assert state["load"]["queue"] == 0


@pytest.mark.parametrize("body", [b"[", b"[]", b'{"ready": 1}', b'{"x": true}', b"\xff"])
def test_an_index_request_is_checked(client: Client, body: bytes) -> None:
    answer = client.post("/v2/repository/index", content=body)
    assert answer.status_code == 400
    assert answer.json().keys() == {"error"}
    assert client.post("/v2/repository/index").status_code == 200


def test_an_index_request_is_short(client: Client) -> None:
    answer = client.post("/v2/repository/index", content=b"[" + b"[]," * 2_000 + b"[]]")
    assert answer.status_code == 413
    assert "4096 bytes" in answer.json()["error"]


def test_few_wait_for_their_large_bodies_to_be_read(client: Client) -> None:
    """Each takes many times its bytes, and nobody else's deadline knows of it."""
    large: dict[str, Any] = {"json": {"inputs": [TENSOR], "id": "x" * 20_000}}
    assert client.post(INFER, **large).status_code == 200
    admission = client.service._admission
    with contextlib.ExitStack() as others:
        for _ in range(4):
            others.enter_context(admission.reading_large())
        refused = client.post(INFER, **large)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert client.post(INFER, json={"inputs": [TENSOR]}).status_code == 200
    assert client.post(INFER, **large).status_code == 200
    assert client.get("/status").json()["refused"] == {"queue": 1}


def test_a_version_that_was_replaced_while_the_request_waited_is_not_answered_by_another(
    client: Client, portfolio: Portfolio, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = client.service.infer

    async def replaced(*arguments: Any, **more: Any) -> Inferred:
        inferred = await answered(*arguments, **more)
        return Inferred(inferred.content, inferred.variant, "newer")

    monkeypatch.setattr(client.service, "infer", replaced)
    answer = client.post(f"/v2/models/tiny/versions/{portfolio.digest}/infer", json={"inputs": [TENSOR]})
    assert answer.status_code == 404
    assert "'newer' serves" in answer.json()["error"]
    assert client.post(INFER, json={"inputs": [TENSOR]}).json()["model_version"] == "newer"


def test_the_schema_tells_of_all_that_has_an_answer(client: Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    ours = {path for path in paths if path.startswith("/v2")}
    assert len(ours) == 15
    for path in ours:
        for operation in paths[path].values():
            named = {one["name"] for one in operation.get("parameters", []) if one["in"] == "path"}
            assert named == {name for name in ("name", "version") if f"{{{name}}}" in path}
            assert ("404" in operation["responses"]) or not named
    infer = paths["/v2/models/{name}/infer"]["post"]
    assert set(infer["requestBody"]["content"]) == {"application/json", "application/octet-stream"}
    assert {"200", "400", "404", "413", "415", "500", "503"} <= set(infer["responses"])
    assert "/v2/models/{name}/infer" in client.get("/docs").text
