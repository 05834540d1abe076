"""What an edge node loses when parts of it are lost: no more than was being answered just then."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest

from benchmarks.serving_client import Asked, Client
from benchmarks.serving_node import MODES, Application, Mode, Node, node, patiently
from jobs.protocols import encode

from ..s3 import Server

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(300)]
PIXELS = np.random.default_rng(0).integers(0, 17, (2, 1, 8, 8))
CLIENTS = 4


def application(portfolio: object, **settings: Any) -> Application:
    args = {"portfolio": str(portfolio), "policy": "fixed", "variant": "4x", "cpus": 0.1} | settings
    return Application("edge", "serve_app.edge:build", args)


def ask(started: Node) -> Asked:
    return Asked(f"{started.url('edge')}/predict", {"Content-Type": "application/json"}, encode(PIXELS))


def variant_that_answers(started: Node) -> str:
    asked = ask(started)
    with urlopen(Request(asked.url, asked.body, dict(asked.headers)), timeout=30) as answer:
        named: str = answer.headers["X-Shifter-Variant"]
    return named


def replica(started: Node) -> int:
    """The process that serves."""
    (found,) = (
        one["pid"]
        for one in started.applications()["edge"]["deployments"]["edge"]["replicas"]
        if one["state"] == "RUNNING"
    )
    return int(found)


def failure(started: Node) -> str:
    """Why the last deployment failed; ConnectionError until it has."""
    found = started.applications()["edge"]
    if found["status"] != "DEPLOY_FAILED":
        raise ConnectionError(f"{found['status']}: {found['message']}")
    return " ".join([found["message"], *(one["message"] for one in found["deployments"].values())])


@pytest.mark.parametrize("mode", MODES)
def test_a_killed_replica_costs_only_what_was_inside(portfolio_path: Path, mode: Mode) -> None:
    with node(mode) as started, Client() as client, ThreadPoolExecutor(1) as beside:
        started.deploy([application(portfolio_path)])
        killed = replica(started)
        load = beside.submit(client.closed, ask(started), clients=CLIENTS, seconds=15)
        time.sleep(3)
        os.kill(killed, signal.SIGKILL)
        answers = load.result()
        assert replica(started) != killed
        lost = answers.due[~answers.ok]
        back = answers.due[answers.ok & (answers.due > 3)]
        longest = np.diff(np.sort((answers.due + answers.seconds)[answers.ok])).max()
        print(f"{mode}: {lost.size} of {answers.ok.size} lost, {longest:.1f} s without an answer")
        assert lost.size <= CLIENTS
        assert back.size, "the next replica answers under the same load"
        assert variant_that_answers(started) == "4x"


def test_what_cannot_be_started_takes_nothing_away(portfolio_path: Path, tmp_path: Path) -> None:
    corrupt = tmp_path / "corrupt.zip"
    content = bytearray(portfolio_path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    corrupt.write_bytes(content)
    with node("proxy") as started, Client() as client, ThreadPoolExecutor(1) as beside:
        started.deploy([application(portfolio_path)])
        serving = replica(started)
        load = beside.submit(client.open, ask(started), np.arange(0, 20, 0.1))
        for wrong, said in ((corrupt, "as declared"), (tmp_path / "gone.zip", "gone.zip")):
            started.put([application(wrong)])
            assert said in patiently(lambda: failure(started))
            assert replica(started) == serving
        # And what can be started takes over from it, under the same load.
        started.deploy([application(portfolio_path, variant="16x")])
        assert variant_that_answers(started) == "16x"
        answers = load.result()
        assert set(answers.status.tolist()) == {200}
        assert set(answers.variant.tolist()) <= {"4x", "16x"}


def test_storage_that_is_gone_stops_no_service_and_a_start_with_a_reason(
    bucket: Server, portfolio_bytes: bytes
) -> None:
    from shifter.s3 import request

    name = bucket.bucket()
    request("put_object", Bucket=name, Key="runs/portfolio.zip", Body=portfolio_bytes)
    place = f"s3://{name}/runs/portfolio.zip"
    with node("proxy", {"SHIFTER_STORE_PATIENCE": "2"}) as started:
        started.deploy([application(place, refresh_s=0.5)])
        bucket.play(gone=True)
        told = patiently(lambda: refresh_error(started))
        assert name in told
        assert variant_that_answers(started) == "4x"

        started.put([application(place, variant="16x")])
        assert name in patiently(lambda: failure(started))
        assert variant_that_answers(started) == "4x"
        bucket.play()
        started.deploy([application(place, variant="1x")])
        assert variant_that_answers(started) == "1x"


def refresh_error(started: Node) -> str:
    told = started.status("edge")["refresh"]["error"]
    if told is None:
        raise ConnectionError("storage has not been missed yet")
    return str(told)


def test_without_any_replica_a_request_is_refused_not_kept_waiting(tmp_path: Path) -> None:
    with node("proxy") as started:
        started.put([application(tmp_path / "gone.zip")])
        assert "gone.zip" in patiently(lambda: failure(started))
        asked = ask(started)
        with pytest.raises(HTTPError) as refused:
            urlopen(Request(asked.url, asked.body, dict(asked.headers)), timeout=30)
        with refused.value as answer:
            assert answer.code in (404, 503)
