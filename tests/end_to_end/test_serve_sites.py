"""A site whose head is killed, or cannot be reached: it goes on answering, and rejoins."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from benchmarks.serving_client import Asked, Client
from benchmarks.serving_node import patiently
from jobs.protocols import encode

from .hosts import API, BIN, PORT, Host, two_hosts

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(400)]
PIXELS = np.random.default_rng(0).integers(0, 17, (2, 1, 8, 8))
EVERY_S = 0.2  # so seldom that a machine which is busy starting Ray fills no queue
HTTP = 8000


class Site:
    """A head and an edge node with one application, placed there by label."""

    def __init__(self, head: Host, edge: Host, portfolio: Path) -> None:
        self.head, self.edge, self._portfolio = head, edge, portfolio
        self._api = f"http://{head.address}:{API}"
        self.asked = Asked(
            f"http://{edge.address}:{HTTP}/north/predict",
            {"Content-Type": "application/json"},
            encode(PIXELS),
        )

    def start_head(self) -> None:
        listens = [f"--port={PORT}", f"--dashboard-host={self.head.address}", f"--dashboard-port={API}"]
        self.head.start("--head", "--num-cpus=0", *listens)
        patiently(self.applications)

    def start_edge(self) -> None:
        joins = [f"--address={self.head.address}:{PORT}", "--num-cpus=2", "--labels", "site=north"]
        self.edge.start(*joins)

    def applications(self) -> dict[str, Any]:
        found: dict[str, Any] = self.head.get(f"{self._api}/api/serve/applications/")["applications"]
        return found

    def deploy(self, variant: str) -> None:
        """Returns when that variant answers at the site."""
        args = {"portfolio": str(self._portfolio), "policy": "fixed", "variant": variant, "cpus": 0.5}
        application = {
            "name": "north",
            "route_prefix": "/north",
            "import_path": "serve_app.edge:build",
            "args": args | {"node_labels": {"site": "north"}},
        }
        config = self.head.folder / "north.yaml"
        http = {"host": "0.0.0.0", "port": HTTP}
        everywhere = {"proxy_location": "EveryNode", "http_options": http, "applications": [application]}
        config.write_text(yaml.safe_dump(everywhere))
        command = [*self.head.within, str(BIN / "serve"), "deploy", "-a", self._api, str(config)]
        patiently(lambda: self._run(command))
        patiently(lambda: self.answers_with(variant))

    def _run(self, command: list[str]) -> None:
        done = subprocess.run(
            command, env=self.head.environment, capture_output=True, text=True, timeout=120, check=False
        )
        if done.returncode != 0:
            raise ConnectionError(done.stderr)

    def answers_with(self, variant: str) -> None:
        """ConnectionError if it does not. Supervises, too: a node that was given up ends by itself."""
        if self.edge.ray is not None and self.edge.ray.poll() is not None:
            print("the edge's Ray had ended, and is started again")
            self.start_edge()
        status = self.edge.get(f"http://{self.edge.address}:{HTTP}/north/status")
        if status["active"] != variant:
            raise ConnectionError(f"{status['active']} answers")

    def pid_of_replica(self) -> int:
        (replica,) = (
            one
            for one in self.applications()["north"]["deployments"]["edge"]["replicas"]
            if one["state"] == "RUNNING"
        )
        assert replica["node_ip"] == self.edge.address
        return int(replica["pid"])


@contextmanager
def site(folder: Path, portfolio: Path) -> Iterator[Site]:
    storage = folder / "gcs"
    storage.mkdir()
    more = {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(storage)}
    with two_hosts(folder, more) as (head, edge):
        made = Site(head, edge, portfolio)
        made.start_head()
        made.start_edge()
        made.deploy("4x")
        yield made


def test_a_head_that_is_killed_and_restarted_costs_the_site_nothing(
    portfolio_path: Path, tmp_path: Path
) -> None:
    with (
        site(tmp_path, portfolio_path) as made,
        Client(made.edge.within) as client,
        ThreadPoolExecutor(1) as beside,
    ):
        before = made.pid_of_replica()
        load = beside.submit(client.open, made.asked, np.arange(0, 40, EVERY_S))
        time.sleep(3)
        made.head.kill()
        time.sleep(12)
        made.start_head()
        answers = load.result()
        assert set(answers.status.tolist()) == {200}
        assert set(answers.variant.tolist()) == {"4x"}
        assert patiently(made.pid_of_replica) == before, "the head knows it again"
        made.deploy("16x")  # which it takes from the head: it has rejoined


def test_a_site_that_is_cut_off_goes_on_and_rejoins_when_it_is_back(
    portfolio_path: Path, tmp_path: Path
) -> None:
    with (
        site(tmp_path, portfolio_path) as made,
        Client(made.edge.within) as client,
        ThreadPoolExecutor(1) as beside,
    ):
        load = beside.submit(client.open, made.asked, np.arange(0, 30, EVERY_S))
        time.sleep(3)
        made.head.cable("down")  # the other end is the site's own port
        answers = load.result()
        assert set(answers.status.tolist()) == {200}
        made.head.cable("up")
        made.deploy("16x")  # which it takes from the head: it has rejoined
