"""The application in process: what it answers, what it refuses, and what it says of itself."""

from __future__ import annotations

import asyncio
import io
import os
import re
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from jobs.protocols import encode
from serve_app.app import create_app
from serve_app.protocol import answer, decode
from serve_app.service import EdgeService
from serve_app.settings import Settings
from shifter.errors import EngineError, StoreError
from shifter.portfolio import Portfolio
from shifter.switching.engine import OnnxEngine

from .in_process import JSON, PIXELS, asking
from .portfolios import other_portfolio


@pytest.fixture
def portfolio(portfolio_bytes: bytes) -> Portfolio:
    return Portfolio.open(portfolio_bytes)


class Client:
    """Requests to the application in process, one after another."""

    def __init__(self, runner: asyncio.Runner, client: httpx.AsyncClient) -> None:
        self.runner, self.client = runner, client

    def post(self, content: Any, headers: dict[str, str]) -> httpx.Response:
        return self.runner.run(self.client.post("/predict", content=content, headers=headers))

    def get(self, path: str) -> httpx.Response:
        return self.runner.run(self.client.get(path))


@pytest.fixture
def client(portfolio: Portfolio) -> Iterator[Client]:
    settings = Settings(portfolio="made-up.zip", max_images=32, max_body_bytes=1 << 16)
    with asyncio.Runner() as runner:
        service = EdgeService(portfolio, settings)
        runner.run(service.__aenter__())
        client = httpx.AsyncClient(transport=httpx.ASGITransport(create_app(service)), base_url="http://edge")
        yield Client(runner, client)
        runner.run(client.aclose())
        runner.run(service.__aexit__(None, None, None))


def expected(portfolio: Portfolio, variant: str, pixels: np.ndarray) -> np.ndarray:
    inflated = portfolio.inflate(variant)
    return OnnxEngine(inflated.graph, inflated.tensors).run(portfolio.input_spec.normalise(pixels))


def same(answer: np.ndarray, expected: np.ndarray) -> bool:
    """But for rounding, which differs until an engine is optimised."""
    return np.allclose(answer, expected, rtol=1e-4, atol=1e-4)


def logits(answer: httpx.Response) -> np.ndarray:
    return np.array([p["logits"] for p in answer.json()["predictions"]], np.float32)


def test_an_answer_is_that_of_the_variant_it_names(client: Client, portfolio: Portfolio) -> None:
    answer = client.post(encode(PIXELS[:5]), JSON)
    assert answer.status_code == 200
    variant = answer.headers["X-Shifter-Variant"]
    assert variant == answer.json()["variant"] == client.get("/status").json()["active"]
    assert same(logits(answer), expected(portfolio, variant, PIXELS[:5]))


def test_a_png_is_answered_as_its_pixels_are(client: Client, portfolio: Portfolio) -> None:
    greys = np.random.default_rng(1).integers(0, 256, (8, 8), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(greys).save(stream, "PNG")
    answer = client.post(stream.getvalue(), {"content-type": "image/png"})
    pixels = greys[None, None] * (16 / 255)
    want = expected(portfolio, answer.headers["X-Shifter-Variant"], pixels)
    assert np.allclose(logits(answer), want, atol=1e-5)
    assert answer.json()["predictions"][0]["class"] == portfolio.input_spec.classes[int(want.argmax())]


@pytest.mark.parametrize(
    ("content", "headers", "status", "says"),
    [
        (b"{", JSON, 400, "not JSON"),
        (b"\x89PNG", {"content-type": "image/png"}, 400, "PNG or JPEG"),
        (b"{}", {}, 415, "Content-Type"),
        (encode(PIXELS[:33]), JSON, 413, "at most 32"),
        (b" " * 70_000, JSON, 413, "65536 bytes"),
        (encode(PIXELS[:2, :, :7]), JSON, 422, "(1, 7, 8)"),
        (b'{"images": [[[NaN]]]}', JSON, 400, "not JSON"),
        (encode(PIXELS[:1] + 100), JSON, 422, "between 0 and 16"),
    ],
)
def test_a_bad_request_is_told_what_is_right_and_changes_nothing(
    client: Client, content: bytes, headers: dict[str, str], status: int, says: str
) -> None:
    answer = client.post(content, headers)
    assert answer.status_code == status
    assert says in answer.json()["error"]
    assert "X-Shifter-Variant" not in answer.headers
    state = client.get("/status").json()
    assert state["answered"] == {}
    assert state["load"]["queue"] == 0


def test_a_body_without_a_declared_length_is_given_up_at_the_limit(client: Client) -> None:
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        while taken < 1000:
            taken += 1
            yield b" " * 4096

    assert client.post(endless(), JSON).status_code == 413
    assert taken * 4096 <= (1 << 16) + 4096


def test_the_status_describes_load_and_portfolio(client: Client, portfolio: Portfolio) -> None:
    client.post(encode(PIXELS[:5]), JSON)
    state = client.get("/status").json()
    assert state["model"] == "tiny"
    assert state["portfolio"] == portfolio.digest
    assert state["policy"]["name"] == "slo"
    assert [v["name"] for v in state["variants"]] == list(portfolio.names)
    assert [v["validation_accuracy"] for v in state["variants"]] == [0.90, 0.95, 0.97]
    assert [v["name"] for v in state["variants"] if v["active"]] == [state["active"]]
    assert state["answered"] == {state["active"]: 1}
    assert state["latency_ms"]["requests"] == 1
    assert state["refused"] == {}


def test_the_schema_names_the_bodies_that_are_taken(client: Client) -> None:
    operation = client.get("/openapi.json").json()["paths"]["/predict"]["post"]
    kinds = {"application/json", "image/png", "image/jpeg", "multipart/form-data"}
    assert set(operation["requestBody"]["content"]) == kinds
    assert {"200", "400", "413", "415", "422", "503"} <= set(operation["responses"])


@pytest.mark.parametrize(
    ("method", "path", "status", "says"),
    [
        ("GET", "/predictions", 404, "GET /predictions: not found; there are POST /predict, "),
        ("GET", "/predict", 405, "GET /predict: method not allowed; there are POST /predict, "),
        ("GET", "/redoc", 404, "/redoc: not found"),
    ],
)
def test_what_is_not_there_is_told_as_every_other_error(
    client: Client, method: str, path: str, status: int, says: str
) -> None:
    answer = client.runner.run(client.client.request(method, path))
    assert answer.status_code == status
    assert answer.json().keys() == {"error"}
    assert says in answer.json()["error"]
    assert (answer.headers.get("allow") == "POST") == (status == 405)


def test_the_docs_need_nothing_but_this_node(client: Client) -> None:
    answer = client.get("/docs")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert "//" not in answer.text.replace("</", "")
    links = re.findall(r"(?:href|src)=\"(.*?)\"", answer.text)
    assert [link for link in links if not link.startswith("#")] == ["openapi.json"]
    for link in links[1:]:
        assert f'id="{link[1:]}"' in answer.text
    for told in ("POST /predict", "GET /status", "image/png", "nested list of numbers", "503", "Retry-After"):
        assert told in answer.text


def test_every_answer_is_that_of_its_variant_while_switches_happen(portfolio: Portfolio) -> None:
    """Switches are forced between and during requests; none is lost, none is mixed."""

    async def scenario() -> set[str]:
        service = EdgeService(portfolio, Settings(portfolio="x.zip", decide_every_s=10))
        names = list(portfolio.names)
        async with asking(service) as client:
            seen = set()
            for turn in range(12):
                chosen = [tuple((turn + i + k) % len(PIXELS) for k in range(3)) for i in range(8)]
                requests = [
                    asyncio.create_task(
                        client.post("/predict", content=encode(PIXELS[list(c)]), headers=JSON)
                    )
                    for c in chosen
                ]
                await asyncio.sleep(0)
                await asyncio.to_thread(force, service, names[turn % len(names)])
                for indices, answer in zip(chosen, await asyncio.gather(*requests), strict=True):
                    assert answer.status_code == 200
                    variant = answer.headers["X-Shifter-Variant"]
                    assert same(logits(answer), expected(portfolio, variant, PIXELS[list(indices)]))
                    seen.add(variant)
            state = service.status()
            assert sum(state["answered"].values()) == 96
            assert len(state["switches"]) == 12
            for switch in state["switches"]:
                assert switch["error"] is None
                assert switch["from"] != switch["to"]
                assert switch["ms"] >= 0
            return seen

    def force(service: EdgeService, name: str) -> None:
        from shifter.switching.switcher import Decision

        if service._host.active != name:
            service._host._switch(Decision(name, "forced by the test", 0.0))

    assert asyncio.run(scenario()) == set(portfolio.names)


def test_a_service_that_can_no_longer_decide_is_ill(portfolio: Portfolio) -> None:
    async def scenario() -> None:
        service = EdgeService(portfolio, Settings(portfolio="x.zip", decide_every_s=0.01))
        service.check()

        def broken() -> None:
            raise RuntimeError("a fault of ours")

        async with service:
            service.check()
            service._host.tick = broken  # type: ignore[method-assign]
            for _ in range(500):
                await asyncio.sleep(0.01)
                if service.upkeep._tasks[0].done():
                    break
            with pytest.raises(RuntimeError, match="a fault of ours"):
                service.check()

    asyncio.run(scenario())


@pytest.mark.timeout(120)
@pytest.mark.parametrize("memory_bytes", [None, 10**9])
def test_requests_inside_are_answered_before_the_service_ends(
    portfolio: Portfolio, memory_bytes: int | None
) -> None:
    """Those that are still being decoded as well, and though a newer portfolio was taken over."""
    newer = Portfolio.open(other_portfolio(portfolio))

    async def scenario() -> None:
        settings = Settings(portfolio="x.zip", policy="trend", memory_bytes=memory_bytes, decide_every_s=0.01)
        decoding = threading.Event()
        async with EdgeService(portfolio, settings) as service:
            service._codec._thread.submit(decoding.wait, 60)
            read = partial(decode, encode(PIXELS[:2]), "application/json", limits=service.limits)
            inside = [asyncio.create_task(service.infer(read, answer)) for _ in range(5)]
            await asyncio.sleep(0.05)
            await asyncio.to_thread(service._host.take_over, newer)
            asyncio.get_running_loop().call_later(0.2, decoding.set)
        assert {inferred.portfolio for inferred in await asyncio.gather(*inside)} == {portfolio.digest}

    asyncio.run(scenario())


def test_a_request_that_stays_inside_ends_the_service_late_but_ends_it(
    portfolio: Portfolio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_app.service._DRAIN_S", 0.05)

    async def scenario() -> None:
        service = EdgeService(portfolio, Settings(portfolio="x.zip"))
        with service._host.request():
            async with service:
                pass
        assert service._host.queue == 0

    asyncio.run(scenario())


def test_an_unknown_fixed_variant_is_refused_with_the_known_ones(portfolio: Portfolio) -> None:
    settings = Settings(portfolio="x.zip", policy="fixed", variant="3x")
    with pytest.raises(EngineError, match=r"3x.*16x, 4x, 1x"):
        EdgeService(portfolio, settings)


def test_a_process_that_serves_has_no_torch(portfolio_path: Path) -> None:
    """In a process of its own, through the Serve application's own module."""
    program = f"""
import asyncio
import sys
from pathlib import Path
import serve_app.edge
import httpx
from serve_app.app import create_app
from serve_app.service import EdgeService
from serve_app.settings import Settings

async def serve():
    settings = Settings(portfolio={str(portfolio_path)!r})
    service = EdgeService.open(settings)
    transport = httpx.ASGITransport(create_app(service))
    async with service, httpx.AsyncClient(transport=transport, base_url="http://edge") as client:
        answer = await client.post("/predict", content={encode(PIXELS[:2])!r}, headers={JSON!r})
        assert answer.status_code == 200, answer.text
        assert (await client.get("/status")).status_code == 200

asyncio.run(serve())
found = sorted(m for m in sys.modules if m.partition(".")[0] in ("torch", "torchvision"))
print("torch:", found)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("torch: []")


def test_a_newer_portfolio_is_served_under_load_and_a_bad_one_told(
    portfolio_path: Path, portfolio: Portfolio
) -> None:
    """The file is replaced while clients ask without a pause; each answer is that of what it names."""
    newer = other_portfolio(portfolio)
    bad = other_portfolio(portfolio, classes=("a", "b", "c"))
    known = {each.digest: each for each in (portfolio, Portfolio.open(newer))}
    want = {
        (digest, name): expected(each, name, PIXELS[:2])
        for digest, each in known.items()
        for name in each.names
    }

    async def scenario() -> set[str]:
        service = EdgeService.open(Settings(portfolio=str(portfolio_path), refresh_s=0.02))
        seen: set[str] = set()
        stop = asyncio.Event()
        async with asking(service) as client:

            async def ask() -> None:
                while not stop.is_set():
                    answer = await client.post("/predict", content=encode(PIXELS[:2]), headers=JSON)
                    assert answer.status_code == 200, answer.text
                    digest, name = (answer.headers[f"X-Shifter-{h}"] for h in ("Portfolio", "Variant"))
                    assert same(logits(answer), want[digest, name])
                    seen.add(digest)

            async def told(holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
                while True:
                    state: dict[str, Any] = (await client.get("/status")).json()
                    if holds(state):
                        return state
                    await asyncio.sleep(0.01)

            clients = [asyncio.create_task(ask()) for _ in range(3)]
            first = await told(lambda state: state["refresh"]["checked"] is not None)
            assert (first["portfolio"], first["refresh"]["error"]) == (portfolio.digest, None)
            replace_file(portfolio_path, newer)
            state = await told(lambda state: state["portfolio"] != portfolio.digest)
            assert (state["model"], state["portfolio_model"]) == ("tiny", "newer")
            assert state["since"] > first["since"]
            replace_file(portfolio_path, bad)
            state = await told(lambda state: state["refresh"]["error"] is not None)
            assert "3 classes (a, …, c)" in state["refresh"]["error"]
            assert state["portfolio"] == Portfolio.open(newer).digest
            replace_file(portfolio_path, portfolio_path.with_name("first.zip").read_bytes())
            state = await told(lambda state: state["portfolio"] == portfolio.digest)
            assert state["refresh"]["error"] is None
            stop.set()
            await asyncio.gather(*clients)
            assert service.status()["load"]["queue"] == 0
            service.check()
        return seen

    portfolio_path.with_name("first.zip").write_bytes(portfolio_path.read_bytes())
    assert asyncio.run(scenario()) == set(known)


def replace_file(path: Path, data: bytes) -> None:
    other = path.with_name("other.zip")
    other.write_bytes(data)
    os.replace(other, path)


def test_a_place_without_a_portfolio_is_told_and_where_a_relative_one_begins(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"nowhere\.zip: No such file.*; a relative path begins where"):
        EdgeService.open(Settings(portfolio="nowhere.zip"))
    with pytest.raises(StoreError) as told:
        EdgeService.open(Settings(portfolio=str(tmp_path / "nowhere.zip")))
    assert "relative" not in str(told.value)


def test_the_trend_climbs_while_it_keeps_up(portfolio: Portfolio) -> None:
    async def scenario() -> None:
        settings = Settings(portfolio="x.zip", policy="trend", decide_every_s=0.01)
        async with EdgeService(portfolio, settings) as service:
            assert service.status()["active"] == "4x"
            while service.status()["active"] != "1x":
                await asyncio.sleep(0.01)
            assert service.status()["policy"]["name"] == "trend"

    asyncio.run(scenario())


def test_the_status_tells_engine_memory_and_calibration(portfolio: Portfolio, tmp_path: Path) -> None:
    budget = portfolio.deflated_bytes + sum(
        profile.memory_bytes + profile.tensor_bytes for profile in list(portfolio.profiles.values())[:2]
    )
    settings = Settings(portfolio=str(tmp_path / "x.zip"), memory_bytes=budget, providers=("cpu",))
    state = EdgeService(portfolio, settings).status()
    assert state["engine"] == {"name": "onnxruntime", "threads": 1, "providers": ["cpu"], "absent": {}}
    assert state["calibration"].startswith("not calibrated on this node")
    assert state["memory"]["budget_bytes"] == budget
    assert state["memory"]["deflated_bytes"] == portfolio.deflated_bytes
    assert portfolio.deflated_bytes < state["memory"]["taken_bytes"] <= budget
    assert [v["name"] for v in state["variants"] if v["usable"]] == ["16x", "4x"]
    assert state["refresh"] == {"every_s": None, "checked": None, "error": None}


def test_a_memory_budget_that_holds_no_variant_is_refused_with_what_it_takes(portfolio: Portfolio) -> None:
    smallest = portfolio.profiles["16x"]
    least = portfolio.deflated_bytes + smallest.memory_bytes + smallest.tensor_bytes
    with pytest.raises(EngineError, match=f"give at least {least}"):
        EdgeService(portfolio, Settings(portfolio="x.zip", memory_bytes=least - 1))
