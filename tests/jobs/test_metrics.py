"""What a node of the Ray cluster shows to Prometheus while a job trains on it."""

from __future__ import annotations

import re
import time
from typing import Any
from urllib.request import urlopen

import pytest
import ray

from jobs.cluster import cluster
from jobs.metrics import published

EPOCH: dict[str, Any] = {
    "event": "epoch",
    "round": 3,
    "ratio": 8.0,
    "epoch": 7,
    "workers": 2,
    "loss": 0.25,
    "validation_accuracy": 0.5,
    "seconds": 2.0,
    "images": 500,
}


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
def test_an_epoch_reaches_the_metrics_of_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "500")
    seen: list[Any] = []
    with cluster(1, lambda _: None):
        on_event = published("digits", seen.append)
        events = [EPOCH, {"event": "round"}, {**EPOCH, "loss": 0.125}]
        for event in events:
            on_event(event)
        assert seen == events
        (node,) = ray.nodes()
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        found: dict[str, float] = {}
        end = time.monotonic() + 60
        while found.get("loss") != 0.125 and time.monotonic() < end:
            time.sleep(0.5)
            with urlopen(url, timeout=10) as answer:
                text = answer.read().decode()
            lines = re.findall(r'^ray_shifter_(\w+){.*run="digits".*} (\S+)$', text, re.MULTILINE)
            found = {name: float(value) for name, value in lines}
    assert found == {
        "round": 3,
        "ratio": 8,
        "epoch": 7,
        "workers": 2,
        "loss": 0.125,
        "validation_accuracy": 0.5,
        "images_per_second": 250,
        "images_total": 1000,
        "worker_seconds_total": 8,
    }
