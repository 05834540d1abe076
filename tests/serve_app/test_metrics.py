"""What is exported of a service: real metric objects of Ray's, fed with what a service tells."""

from __future__ import annotations

import asyncio
import re
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import get_args

import httpx
import numpy as np
import pytest

from jobs.protocols import encode
from serve_app.app import create_app
from serve_app.metrics import Metrics
from serve_app.observer import Answered, Cause
from serve_app.reasons import FAILURES, REASONS
from serve_app.service import EdgeService
from serve_app.settings import Settings
from serve_app.tally import IMAGES_BOUNDS, LATENCY_BOUNDS
from shifter.portfolio import Portfolio
from shifter.switching.host import Status, Switch

from ..exported import Exported

DOCS = Path(__file__).parents[2] / "docs" / "observability.md"
SETTINGS = Settings(portfolio="x.zip", objective_ms=100, memory_bytes=10**9, max_queue=7)


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Exported:
    return Exported().patch(monkeypatch)


@pytest.fixture
def status(portfolio_bytes: bytes) -> Status:
    service = EdgeService(Portfolio.open(portfolio_bytes), SETTINGS)
    return replace(
        service._host.status(), active="4x", rate=12.5, queue=3, ready=("4x", "16x"), memory_bytes=12345
    )


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_requests_are_counted_by_variant_and_cause(exported: Exported, status: Status) -> None:
    metrics = Metrics(SETTINGS)
    metrics.answered(Answered("4x", 2, 0.004, 0.001, 2))
    metrics.answered(Answered("4x", 1, 0.2, 0.001, 1))
    metrics.answered(Answered("1x", 1, 0.1, 0.002, 1))
    metrics.refused("queue", "a")
    metrics.ticked(status)
    value = partial(exported.value, "ray_shifter_requests_answered_total")
    assert (value(variant="4x"), value(variant="1x"), value(variant="16x")) == (2, 1, 0)
    assert exported.value("ray_shifter_images_answered_total", variant="4x") == 3
    assert exported.value("ray_shifter_requests_late_total") == 1
    refused = {
        s["cause"]: exported.value("ray_shifter_requests_refused_total", **s)
        for s in exported.series("ray_shifter_requests_refused_total")
    }
    assert refused == dict.fromkeys(get_args(Cause), 0) | {"queue": 1}


def test_a_histogram_is_cumulative_and_its_sum_exact(exported: Exported, status: Status) -> None:
    metrics = Metrics(SETTINGS)
    seconds = [0.0005, 0.001, 0.0011, 0.3, 9.0, 60.0]
    for one in seconds:
        metrics.answered(Answered("4x", 1, one, one))
    metrics.ticked(status)
    name = "ray_shifter_request_latency_seconds"
    for bound in LATENCY_BOUNDS:
        at_most = exported.value(f"{name}_bucket_total", le=f"{bound:g}")
        assert at_most == sum(one <= bound for one in seconds), bound
    assert exported.value(f"{name}_bucket_total", le="+Inf") == len(seconds)
    assert exported.value(f"{name}_count_total") == len(seconds)
    assert exported.value(f"{name}_sum_total") == pytest.approx(sum(seconds))
    assert [float(f"{bound:g}") for bound in LATENCY_BOUNDS] == list(LATENCY_BOUNDS)
    assert list(LATENCY_BOUNDS) == sorted(set(LATENCY_BOUNDS))
    assert (LATENCY_BOUNDS[0], LATENCY_BOUNDS[-1]) == (0.001, 10)


def test_the_requests_of_a_batch_make_one_call_of_the_engine(exported: Exported, status: Status) -> None:
    metrics = Metrics(SETTINGS)
    for images in (1, 2, 5):  # one batch of eight
        metrics.answered(Answered("4x", images, 0.05, 0.02, 8))
    metrics.answered(Answered("4x", 1, 0.05, 0.003, 1))
    metrics.ticked(status)
    calls = "ray_shifter_engine_call"
    assert exported.value(f"{calls}_seconds_count_total", variant="4x") == pytest.approx(2)
    assert exported.value(f"{calls}_seconds_sum_total", variant="4x") == pytest.approx(0.023)
    assert exported.value(f"{calls}_images_count_total") == pytest.approx(2)
    assert exported.value(f"{calls}_images_sum_total") == pytest.approx(9)
    bins = {bound: exported.value(f"{calls}_images_bucket_total", le=f"{bound:g}") for bound in IMAGES_BOUNDS}
    assert bins[4] == 1
    assert bins[8] == pytest.approx(2)


def test_the_state_is_exported_as_gauges(exported: Exported, status: Status) -> None:
    Metrics(SETTINGS).ticked(status)
    active = {
        s["variant"]: exported.value("ray_shifter_variant_active", **s)
        for s in exported.series("ray_shifter_variant_active")
    }
    assert active == {"16x": 0, "4x": 1, "1x": 0}
    assert exported.value("ray_shifter_variant_resident", variant="16x") == 1
    assert exported.value("ray_shifter_variant_resident", variant="1x") == 0
    portfolio = status.portfolio
    found = {
        name: exported.value(f"ray_shifter_{name}")
        for name in (
            "queue_requests",
            "queue_limit_requests",
            "arrivals_per_second",
            "resident_bytes",
            "package_bytes",
            "active_variant_bytes",
            "budget_bytes",
            "objective_seconds",
            "ready",
        )
    }
    assert found == {
        "queue_requests": 3,
        "queue_limit_requests": 7,
        "arrivals_per_second": 12.5,
        "resident_bytes": 12345,
        "package_bytes": portfolio.deflated_bytes,
        "active_variant_bytes": portfolio.profiles["4x"].memory_bytes,
        "budget_bytes": 10**9,
        "objective_seconds": 0.1,
        "ready": 1,
    }
    info = exported.value("ray_shifter_portfolio_info", model="tiny", digest=portfolio.digest)
    assert info == 1


def test_without_budget_or_objective_there_is_none_to_compare_with(
    exported: Exported, status: Status
) -> None:
    metrics = Metrics(Settings(portfolio="x.zip", policy="trend"))
    metrics.answered(Answered("4x", 1, 1000.0, 1.0))
    metrics.ticked(status)
    assert not exported.series("ray_shifter_budget_bytes")
    assert not exported.series("ray_shifter_objective_seconds")
    assert exported.value("ray_shifter_requests_late_total") == 0


def test_switches_are_counted_by_reason_and_failures_apart(exported: Exported, status: Status) -> None:
    metrics = Metrics(SETTINGS)
    metrics.ticked(status)
    up = Switch(
        1.0, "4x", "1x", "at 1 requests/s 1x …: there is room for a more accurate variant", 0.03, False
    )
    metrics.switched(up)
    metrics.switched(replace(up, ahead=True, seconds=0.0001))
    metrics.switched(replace(up, error="NoRoomError: 1x takes 5 bytes"))
    metrics.switched(replace(up, error="EngineError: it does not run"))
    value = partial(exported.value, "ray_shifter_switches_total")
    assert value(from_variant="4x", to_variant="1x", reason="room") == 2
    assert value(from_variant="1x", to_variant="4x", reason="load") == 0
    failures = partial(exported.value, "ray_shifter_switch_failures_total", to_variant="1x")
    assert (failures(cause="memory"), failures(cause="variant")) == (1, 1)
    took = "ray_shifter_switch_seconds"
    assert exported.value(f"{took}_count_total", ahead="true") == 1
    assert exported.value(f"{took}_sum_total", ahead="false") == pytest.approx(0.03)
    assert exported.value(f"{took}_bucket_total", ahead="false", le="0.05") == 1
    assert exported.value(f"{took}_bucket_total", ahead="false", le="0.02") == 0


def test_every_series_that_counts_begins_with_zero(exported: Exported, status: Status) -> None:
    """Of one that begins with 1, Prometheus would not see the first."""
    metrics = Metrics(SETTINGS)
    metrics.ticked(status)
    counters = {name for name, one in exported.described.items() if one.kind == "counter"}
    begun = {name for name, _ in exported.values} & counters
    assert begun == counters
    assert all(exported.values[key] == 0 for key in exported.values if key[0] in counters)
    before = set(exported.values)
    metrics.answered(Answered("16x", 1, 0.01, 0.001))
    metrics.refused("engine", "")
    metrics.switched(
        Switch(1.0, "4x", "16x", "4x takes 9 bytes of memory, and variants may take 5", 0.1, True)
    )
    metrics.switched(Switch(1.0, "4x", "1x", "inflated ahead", 0.1, False, "MemoryError: "))
    metrics._exported = 0.0
    metrics.ticked(status)
    assert set(exported.values) == before


def test_requests_are_exported_once_a_second_and_never_on_their_path(
    exported: Exported, status: Status
) -> None:
    clock = Clock()
    metrics = Metrics(SETTINGS, clock)
    metrics.ticked(status)
    written = exported.calls.total()
    for _ in range(9):
        clock.now += 0.1
        metrics.answered(Answered("4x", 1, 0.01, 0.001))
        metrics.refused("queue", "")
        metrics.ticked(status)
    assert exported.calls.total() == written
    clock.now += 0.11
    metrics.ticked(status)
    assert exported.value("ray_shifter_requests_answered_total", variant="4x") == 9
    assert exported.value("ray_shifter_requests_refused_total", cause="queue") == 9


def test_none_is_lost_or_counted_twice_between_the_threads(exported: Exported, status: Status) -> None:
    clock = Clock()
    metrics = Metrics(SETTINGS, clock)
    done = threading.Event()

    def tick() -> None:
        while not done.is_set():
            clock.now += 1
            metrics.ticked(status)

    ticking = threading.Thread(target=tick)
    ticking.start()
    for _ in range(20_000):
        metrics.answered(Answered("4x", 3, 0.01, 0.001, 3))
    done.set()
    ticking.join()
    clock.now += 1
    metrics.ticked(status)
    assert exported.value("ray_shifter_requests_answered_total", variant="4x") == 20_000
    assert exported.value("ray_shifter_images_answered_total", variant="4x") == 60_000
    assert exported.value("ray_shifter_request_latency_seconds_count_total") == 20_000


def test_a_newer_portfolio_takes_the_place_of_the_old_one(
    exported: Exported, status: Status, portfolio_bytes: bytes
) -> None:
    clock = Clock()
    metrics = Metrics(SETTINGS, clock)
    metrics.ticked(status)

    class Newer:
        model, digest, deflated_bytes = "newer", "abc", 77
        profiles = {"2x": status.portfolio.profiles["1x"]}  # noqa: RUF012

    clock.now += 1
    metrics.ticked(replace(status, portfolio=Newer(), active="2x", ready=("2x",)))  # type: ignore[arg-type]
    info = partial(exported.value, "ray_shifter_portfolio_info")
    assert info(model="newer", digest="abc") == 1
    assert info(model="tiny", digest=status.portfolio.digest) == 0
    active = {
        s["variant"]: exported.value("ray_shifter_variant_active", **s)
        for s in exported.series("ray_shifter_variant_active")
    }
    assert active == {"16x": 0, "4x": 0, "1x": 0, "2x": 1}
    assert exported.value("ray_shifter_package_bytes") == 77


def test_a_real_service_tells_it_what_it_did(exported: Exported, portfolio_bytes: bytes) -> None:
    pixels = np.random.default_rng(0).integers(0, 17, (2, 1, 8, 8))
    settings = Settings(portfolio="x.zip", policy="fixed", variant="4x", max_queue=1, decide_every_s=0.01)
    service = EdgeService(Portfolio.open(portfolio_bytes), settings)
    clock = Clock()
    service.observers.append(Metrics(settings, clock))

    async def scenario() -> int:
        transport = httpx.ASGITransport(create_app(service))
        async with service, httpx.AsyncClient(transport=transport, base_url="http://edge") as client:
            headers = {"content-type": "application/json"}
            posts = (client.post("/predict", content=encode(pixels), headers=headers) for _ in range(6))
            statuses = [answer.status_code for answer in await asyncio.gather(*posts)]
            clock.now += 1
            key = ("ray_shifter_requests_answered_total", frozenset({("variant", "4x")}))
            while exported.values.get(key, 0) < statuses.count(200):
                await asyncio.sleep(0.01)
        assert statuses.count(200) + statuses.count(503) == 6
        return statuses.count(503)

    refused = asyncio.run(asyncio.wait_for(scenario(), 60))
    assert refused > 0
    assert exported.value("ray_shifter_requests_refused_total", cause="queue") == refused
    assert exported.value("ray_shifter_images_answered_total", variant="4x") == 2 * (6 - refused)
    assert exported.value("ray_shifter_variant_active", variant="4x") == 1
    assert exported.value("ray_shifter_queue_limit_requests") == 1
    assert exported.value("ray_shifter_request_latency_seconds_sum_total") > 0


def test_the_documentation_lists_what_is_exported(exported: Exported) -> None:
    Metrics(SETTINGS)
    histograms = exported.histograms()
    want = {
        name: (one.kind, one.labels, one.text)
        for name, one in exported.described.items()
        if not any(name.startswith(f"{stem}_") for stem in histograms)
    }
    for stem in histograms:
        bucket = exported.described[f"{stem}_bucket_total"]
        want[f"{stem}_*_total"] = ("histogram", bucket.labels - {"le"}, bucket.text)
    rows = re.findall(
        r"^\| `(ray_shifter_\S+)` \| (\w+) \| (.*?) \| (.*?) \|$", DOCS.read_text(), re.MULTILINE
    )
    found = {
        name: (kind, frozenset(re.findall(r"`(\w+)`", labels)), text) for name, kind, labels, text in rows
    }
    assert found == want


def test_the_documentation_explains_the_values_of_labels() -> None:
    text = DOCS.read_text()
    assert [
        value for value in {*get_args(Cause), *FAILURES, *REASONS} - {"ahead"} if f"`{value}`" not in text
    ] == []
