"""What a node shows to Prometheus, and what Serve logs, while the real application answers requests."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
import ray
from ray import serve

from jobs.cluster import cluster
from jobs.protocols import encode
from jobs.serving import serving
from serve_app.edge import build
from serve_app.metrics import Metrics
from serve_app.service import EdgeService
from serve_app.settings import Settings
from shifter.portfolio import Portfolio

from ..exported import SERVE_LABELS, Exported

PIXELS = np.random.default_rng(0).integers(0, 17, (3, 1, 8, 8))
# Labels of Serve, and of every metric of a worker: Ray's own begin with a capital.
OTHERS = (*SERVE_LABELS, "Component", "JobId", "NodeAddress", "SessionName", "Version", "WorkerId", "otel_")
SAMPLE = re.compile(r"^(ray_shifter_\w+)\{(.*)\} (\S+)$", re.MULTILINE)
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
def test_a_node_shows_every_metric_of_its_service_and_the_log_what_happened(
    portfolio_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "1000")
    portfolio = Portfolio.open(portfolio_path)
    settings = Settings(
        portfolio=str(portfolio_path),
        policy="fixed",
        variant="4x",
        max_queue=2,
        cpus=0.1,
        memory_bytes=10**9,
        log_requests=1.0,
    )
    with cluster(2, lambda _: None), serving() as served:
        folder = Path(os.environ["RAY_TMPDIR"])
        json_lines = {"encoding": "JSON", "log_level": "INFO", "enable_access_log": False}
        serve.run(build(settings), name="site", route_prefix="/site", logging_config=json_lines)
        statuses = _ask(f"http://127.0.0.1:{served.port}/site/predict")
        answered, refused = statuses.count(200), statuses.count(503)
        assert answered > 0
        assert refused > 0
        assert answered + refused == len(statuses)

        (node,) = ray.nodes()
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        count = ("ray_shifter_requests_answered_total", frozenset({("variant", "4x")}))
        timed = ("ray_shifter_request_latency_seconds_count_total", frozenset())
        shed = ("ray_shifter_requests_refused_total", frozenset({("cause", "queue")}))
        want = {count: answered, timed: answered, shed: refused}
        samples = _until(lambda: _scrape(url), lambda seen: want.items() <= seen.items())
        told = _until(lambda: _told(folder), lambda lines: len(_events(lines, "answered")) >= answered)
        served.end()
        serve.delete("site")

    assert samples[count] == answered
    assert samples[shed] == refused
    one = _short(samples)
    assert one["requests_refused_total", ("cause", "engine")] == 0
    assert one["images_answered_total", ("variant", "4x")] == 3 * answered
    assert one["request_latency_seconds_bucket_total", ("le", "+Inf")] == answered
    assert 0 < one["request_latency_seconds_sum_total"] < 60 * answered
    assert one["variant_active", ("variant", "4x")] == 1
    assert one["variant_active", ("variant", "1x")] == 0
    assert one["ready"] == 1
    assert one["queue_limit_requests"] == 2
    assert one["budget_bytes"] == 10**9
    assert one["package_bytes"] == portfolio.deflated_bytes
    assert one["portfolio_info", ("digest", portfolio.digest), ("model", "tiny")] == 1

    # What the other tests take for the names and labels of a node is what a node shows.
    with pytest.MonkeyPatch.context() as patch:
        exported = Exported().patch(patch)
        Metrics(settings).ticked(EdgeService(portfolio, settings)._host.status())
    assert {(name, *sorted(labels)) for name, labels in samples} == {
        (name, *sorted(labels)) for name, labels in exported.values
    }

    lines = _events(told, "answered")
    assert len(lines) == answered
    assert {line["variant"] for line in lines} == {"4x"}
    assert {line["images"] for line in lines} == {3}
    assert all(line["ms"] > 0 for line in lines)
    assert {line["cause"] for line in _events(told, "refused")} == {"queue"}
    (portfolio_line,) = _events(told, "portfolio")
    assert portfolio_line["portfolio"] == portfolio.digest
    assert portfolio_line["variant"] == "4x"
    assert {line["deployment"] for line in told} == {"site_edge"}
    assert all(datetime.fromisoformat(line["time"]).utcoffset() is not None for line in told)


def _ask(url: str) -> list[int]:
    """Statuses of requests, eight at once where two may be inside."""

    def one(_: int) -> int:
        request = Request(url, data=encode(PIXELS), headers={"Content-Type": "application/json"})
        try:
            with urlopen(request, timeout=30) as answer:
                status: int = answer.status
        except HTTPError as error:
            with error:
                status = error.code
        return status

    with ThreadPoolExecutor(8) as clients:
        return [*clients.map(one, range(200)), one(0)]


def _until(look: Callable[[], Any], holds: Callable[[Any], bool]) -> Any:
    end = time.monotonic() + 60
    while not holds(seen := look()) and time.monotonic() < end:
        time.sleep(0.5)
    return seen


def _scrape(url: str) -> Samples:
    """Values by name and labels, those of Serve and of Ray checked and left out."""
    with urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    found: Samples = {}
    for name, labels, value in SAMPLE.findall(text):
        told = dict(LABEL.findall(labels))
        assert told["application"] == "site"
        assert told["deployment"] == "edge"
        assert told.keys() >= SERVE_LABELS
        ours = frozenset((k, v) for k, v in told.items() if not k.startswith(OTHERS))
        assert (name, ours) not in found
        found[name, ours] = float(value)
    return found


def _short(samples: Samples) -> dict[Any, float]:
    """By the name without prefix, or with labels by it and them, sorted."""
    short = {}
    for (name, labels), value in samples.items():
        key = name.removeprefix("ray_shifter_")
        short[(key, *sorted(labels)) if labels else key] = value
    return short


def _told(folder: Path) -> list[dict[str, Any]]:
    """The lines of the replica's log that are ours."""
    (path,) = {path.resolve() for path in folder.rglob("logs/serve/replica_*edge*.log")}
    return [line for text in path.read_text().splitlines() if "event" in (line := json.loads(text))]


def _events(lines: list[dict[str, Any]], event: str) -> list[dict[str, Any]]:
    return [line for line in lines if line["event"] == event]
