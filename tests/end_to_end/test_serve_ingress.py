"""Both ways in to an edge node: Ray Serve's own proxy, and HAProxy with throughput mode."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest

from benchmarks.serving_node import MODES, Application, Mode, node
from jobs.schedule import Segment
from jobs.trial import Driver, check_answers
from shifter.portfolio import Portfolio

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(300)]


@pytest.mark.parametrize("mode", MODES)
def test_a_switch_under_load_loses_nothing_and_models_share_a_node(portfolio_path: Path, mode: Mode) -> None:
    portfolio = Portfolio.open(portfolio_path)
    pixels = np.random.default_rng(0).integers(0, 17, (12, 1, 8, 8))
    driver = Driver(pixels, per_request=5)
    shared = {"portfolio": str(portfolio_path), "cpus": 0.1}
    digits = Application("digits", "serve_app.edge:build", shared | {"policy": "trend"})
    fixed = {"policy": "fixed", "variant": "16x", "memory_bytes": "64MiB"}
    plates = Application("plates", "serve_app.edge:build", shared | fixed)
    with node(mode) as started:
        started.deploy([digits, plates])
        # Answered at once: there is a route only to what has answered a warm-up.
        records = driver.drive(started.url("digits"), [Segment(12, 20)], seed=0).records
        assert {r.status for r in records} == {200}
        assert check_answers(records, portfolio, pixels) == 5 * len(records)
        switches = started.status("digits")["switches"]
        assert switches
        assert all(switch["error"] is None for switch in switches)
        assert {r.variant for r in records} >= {switch["to"] for switch in switches}

        others = driver.saturate(started.url("plates"), seconds=1, clients=2).records
        assert {(r.status, r.variant) for r in others} == {(200, "16x")}
        assert check_answers(others, portfolio, pixels) == 5 * len(others)
        assert started.status("plates")["memory"]["budget_bytes"] == 64 * 2**20
        assert started.status("digits")["answered"].keys() == {r.variant for r in records}

        for name in ("digits", "plates"):
            with urlopen(f"{started.url(name)}/openapi.json", timeout=30) as answer:
                schema = json.load(answer)
            assert schema["servers"] == [{"url": f"/{name}"}], "clients made from it find the way"
