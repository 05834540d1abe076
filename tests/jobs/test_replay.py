"""The command, against a service in a thread that delays, refuses and lies."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from typer.testing import CliRunner, Result

from jobs import replay
from jobs.__main__ import app
from jobs.load_client import Target
from jobs.records import Recording, load
from jobs.replay_figures import figures
from jobs.replay_plot import render

CLASSES = 3
PIXELS = np.zeros((6, 1, 2, 2), np.int64)
PIXELS[:, 0, 0, 0] = range(6)
STATUS = {"model": "net", "policy": {"objective_ms": 20_000}, "active": "1x", "switches": []}


def logits_of(pixels: Any) -> list[float]:
    """The stub's network: the class is the first pixel, modulo three."""
    return np.eye(CLASSES)[int(pixels[0][0][0]) % CLASSES].tolist()


class Stub:
    """A service; `hold` decides what becomes of each request to /predict, by its number."""

    def __init__(self, hold: Callable[[int], Any] | None = None, status: Any = STATUS) -> None:
        self.hold, self.status = hold, status
        self.requests: list[web.Request] = []
        self.loop = asyncio.new_event_loop()

    async def predict(self, request: web.Request) -> web.StreamResponse:
        images = (await request.json())["images"]
        self.requests.append(request)
        instead = self.hold and self.hold(len(self.requests) - 1)
        if asyncio.iscoroutine(instead):
            instead = await instead
        if instead is not None:
            return instead
        answer = {"predictions": [{"logits": logits_of(image)} for image in images]}
        return web.json_response(answer, headers={"X-Shifter-Variant": "1x"})

    async def infer(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.requests.append(request)
        length = int(request.headers["Inference-Header-Content-Length"])
        tensor = json.loads(body[:length])["inputs"][0]
        assert tensor["datatype"] == "UINT8"
        pixels = np.frombuffer(body[length:], np.uint8).reshape(tensor["shape"])
        raw = np.array([logits_of(image) for image in pixels], np.float32).tobytes()
        parameters = {"binary_data_size": len(raw)}
        shape = [len(pixels), CLASSES]
        output = {"name": "logits", "datatype": "FP32", "shape": shape, "parameters": parameters}
        header = json.dumps({"outputs": [output]}).encode()
        headers = {"Inference-Header-Content-Length": str(len(header)), "X-Shifter-Variant": "1x"}
        return web.Response(body=header + raw, headers=headers)

    async def say(self, request: web.Request) -> web.Response:
        if request.path == "/status":
            return web.json_response(self.status)
        return web.json_response({"inputs": [{"name": "images", "datatype": "FP32", "shape": [-1, 1, 2, 2]}]})

    @contextmanager
    def serving(self) -> Iterator[str]:
        server = web.Application()
        server.router.add_post("/predict", self.predict)
        server.router.add_post("/v2/models/net/infer", self.infer)
        server.router.add_get("/status", self.say)
        server.router.add_get("/v2/models/net", self.say)
        runner = web.AppRunner(server, shutdown_timeout=0.0)

        async def begin() -> None:
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()

        self.loop.run_until_complete(begin())
        thread = threading.Thread(target=self.loop.run_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            asyncio.run_coroutine_threadsafe(runner.cleanup(), self.loop).result()
            self.loop.call_soon_threadsafe(self.loop.stop)
            thread.join()
            self.loop.close()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    path = tmp_path / "images.npz"
    # Of the last image the label is wrong.
    np.savez(path, images=PIXELS, labels=np.array([0, 1, 2, 0, 1, 0]))
    return path


def run(trace: str, url: str, images: Path, *more: object) -> Result:
    arguments = ["replay", trace, "--url", url, "--images", images, "--progress", "none", *more]
    return CliRunner().invoke(app, [str(one) for one in arguments])


def told(trace: str, url: str, images: Path, *more: object) -> dict[str, Any]:
    result = run(trace, url, images, "--json", "-", *more)
    assert result.exit_code == 0, result.output
    document: dict[str, Any] = json.loads(result.stdout, parse_constant=pytest.fail)
    return document


@pytest.mark.parametrize("protocol", ["predict", "json", "v2"])
@pytest.mark.parametrize("per_request", [1, 4])
def test_every_protocol_asks_about_every_image_and_knows_what_was_right(
    images: Path, tmp_path: Path, protocol: str, per_request: int
) -> None:
    stub = Stub()
    with stub.serving() as url:
        document = told(
            "steps:0.3:40", url, images, "--even", "--protocol", protocol, "--images-per-request",
            per_request, "--records", tmp_path / "records.npz", "--min-accuracy", 0.9,
        )  # fmt: skip
    assert (document["offered"], document["answered"]) == (12, 12)
    assert len(stub.requests) == 13  # one before the load
    assert {request.headers["X-Shifter-Min-Accuracy"] for request in stub.requests} == {"0.9"}
    assert document["accuracy"] == document["effective_accuracy"] == pytest.approx(5 / 6)
    assert document["settings"]["slo_ms"] == 20_000  # the service's own
    assert [one["name"] for one in document["variants"]] == ["1x"]
    assert sum(one["offered"] for one in document["timeline"]) == 12
    records = load(tmp_path / "records.npz").records
    assert len(records) == 12
    assert all(r.answered and len(r.images) == per_request for r in records)


def test_a_stall_of_the_service_is_in_the_latencies(images: Path) -> None:
    """What is due while the service holds the first request of the load is sent all the same, and the
    first one's latency is at least the time until the last one was due."""
    everything = asyncio.Event()

    def hold(number: int) -> Any:
        if number == 10:
            everything.set()
        return _wait(everything) if number == 1 else None

    stub = Stub(hold)
    with stub.serving() as url:
        document = told("steps:1:10", url, images, "--even", "--slo-ms", 10_000)
    assert (document["offered"], document["answered"]) == (10, 10)
    assert document["latency_ms"]["max"] >= 900
    assert document["slo_attainment"] == 1


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


def test_refusals_and_failures_are_counted_by_cause_and_the_gate_closes(images: Path, tmp_path: Path) -> None:
    def hold(number: int) -> web.Response | None:
        if number in (1, 2):
            return web.json_response({"error": f"{number} wait already"}, status=503)
        if number == 3:
            return web.json_response({"error": "ill"}, status=500)
        if number == 4:
            return web.json_response({"predictions": "lies"})
        return None

    with Stub(hold).serving() as url:
        path = tmp_path / "out.json"
        result = run("steps:0.2:40", url, images, "--even", "--json", path, "--require-attainment", 0.99)
    assert result.exit_code == replay.MISSED
    assert "the attainment is 50.00%, and --require-attainment asks for 99.00%" in result.stderr
    document = json.loads(path.read_text())
    assert document["refused"] == {"HTTP 503: N wait already": 2}
    assert document["failed"] == {"HTTP 500: ill": 1, "broken answer": 1}
    assert document["answered"] == 4
    for part in ("SLO attainment", "50.0%", "HTTP 503: N wait already", "broken answer"):
        assert part in result.stdout


def test_what_has_no_labels_has_no_accuracy(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", PIXELS)
    with Stub().serving() as url:
        document = told("steps:0.1:40", url, tmp_path / "images.npy", "--even")
    assert document["accuracy"] is None
    assert document["slo_attainment"] == 1


def test_the_plot_is_one_page_that_asks_nobody(images: Path, tmp_path: Path) -> None:
    switches = [{"at": "2999-01-01T00:00:00+00:00", "from": "1x", "to": "</script>", "reason": "<b>"}]
    with Stub(status={**STATUS, "model": "<i>"}).serving() as url:
        page = tmp_path / "replay.html"
        result = run("steps:0.1:40", url, images, "--even", "--plot", page)
    assert result.exit_code == 0, result.output
    text = page.read_text()
    assert "effective accuracy" in text
    assert not any(f'src="{scheme}' in text for scheme in ("http", "//"))
    drawn = render("<t>", figures(Recording(0.0, []), None, 0.1, 2.0), 0.1, [{**switches[0], "second": 1.0}])
    assert "<t>" not in drawn
    assert "&lt;t&gt;" in drawn
    assert "</script>: <b>" not in drawn


def test_what_is_wrong_is_one_line_with_the_remedy_before_anything_is_sent(
    images: Path, tmp_path: Path
) -> None:
    wide = tmp_path / "wide.npz"
    np.savez(wide, images=np.zeros((2, 1, 2, 3)), labels=np.zeros(2, np.int64))
    high = tmp_path / "high.npz"
    np.savez(high, images=PIXELS, labels=np.full(6, 3))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    stub = Stub(status={**STATUS, "policy": {}})
    shape = "poisson:50:0.1"
    with stub.serving() as url:
        cases: list[tuple[tuple[Any, ...], str]] = [
            (("gone.csv", url, images), "there is no trace gone.csv"),
            ((shape, url, images, "--rate-scale", -1), "--rate-scale -1: it must be above 0"),
            ((shape, "localhost:8000", images), "--url 'localhost:8000' is no address"),
            ((shape, nobody, images), f"no service answers at {nobody}/status (Connection refused"),
            ((shape, nobody.replace("127.0.0.1", "[::1"), images), "is no address"),
            ((shape, url, images), "give one with --slo-ms"),
            ((shape, url, images, "--slo-ms", 0), "--slo-ms 0: it must be above 0"),
            (
                (shape, url, wide, "--slo-ms", 9),
                "(1, 2, 3) (channels, height, width), and the model",
            ),
            ((shape, url, high, "--slo-ms", 9), "the label 3, and the model has 3 classes"),
            ((shape, url, images, "--columns", "image"), "--columns 'image': two names"),
            ((shape, url, images, "--json", tmp_path / "no" / "x"), "there is no folder"),
            ((shape, url, images, "--plot", tmp_path), "it is a folder"),
            ((shape, url, images, "--max-in-flight", 10**9), "--max-in-flight 1000000000: this process"),
            (("poisson:0.000001:1", url, images), "none is drawn"),
        ]
        for arguments, says in cases:
            result = run(*arguments)
            assert (result.exit_code, result.stdout) == (1, ""), (arguments, result.output)
            assert result.stderr.startswith("error: "), result.stderr
            assert says in result.stderr
            assert result.stderr.count("\n") == 1
    assert len(stub.requests) <= 1  # the one whose labels did not fit

    refusing = Stub(lambda _: web.json_response({"error": "pixels of 2x2 are wanted"}, status=422))
    with refusing.serving() as url:
        result = run(shape, url, images)
        assert "/predict refuses the first request: HTTP 422: pixels of 2x2 are wanted" in result.stderr
    with Stub(lambda _: web.Response(text="hello")).serving() as url:
        assert "answers what is no answer to 1 images" in run(shape, url, images).stderr


def test_a_plot_without_plotly_says_what_to_install(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import jobs.cli

    found = jobs.cli.find_spec
    monkeypatch.setattr(jobs.cli, "find_spec", lambda name: None if name == "plotly" else found(name))
    result = run("poisson:1:1", "http://127.0.0.1:9", images, "--plot", "x.html")
    assert "replay --plot needs plotly" in result.stderr
    assert "shifter[report]" in result.stderr


def test_a_service_that_goes_before_the_load_is_no_success(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drive = replay.replay_process.drive

    def elsewhere(target: Target, *rest: Any) -> Recording:
        return drive(dataclasses.replace(target, url="http://127.0.0.1:9"), *rest)

    monkeypatch.setattr(replay.replay_process, "drive", elsewhere)
    with Stub().serving() as url:
        result = run("steps:0.1:40", url, images, "--even")
    assert result.exit_code == 1
    assert "no connection" in result.stdout
    assert f"no request reached the service at {url}" in result.stderr


def test_sigterm_ends_the_command_and_its_client(images: Path) -> None:
    with Stub().serving() as url:
        command = [sys.executable, "-m", "jobs.replay", "poisson:20:600", "--url", url, "--progress", "jsonl"]
        with subprocess.Popen(
            [*command, "--images", str(images)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stderr is not None
            for line in process.stderr:
                if json.loads(line)["event"] == "load":
                    break
            process.terminate()
            rest = process.stderr.read()
            assert process.wait(60) == 143
    assert "terminated" in rest
    assert "Traceback" not in rest
