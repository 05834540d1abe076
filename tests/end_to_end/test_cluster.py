"""Against a running cluster with token authentication: a job is sent to it, and an application deployed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pytest
import yaml

from jobs.protocols import encode
from shifter.portfolio import Portfolio

from .head import BIN, ROOT, free_port, patiently, running, submit
from .tiny import tiny

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory that the node is started in, where relative paths of an application begin."""
    return tmp_path_factory.mktemp("node")


@pytest.fixture(scope="module")
def cluster(home: Path) -> Iterator[dict[str, str]]:
    with running(home) as environment:
        yield environment


@pytest.fixture(scope="module")
def run(cluster: dict[str, str], home: Path) -> Path:
    """The folder of a run that a submitted job made."""
    # A recipe goes with the working directory or lies where every node sees it, as here.
    recipe = home / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(tiny(epochs=1)))
    done = submit(cluster, str(recipe), "--store", str(home / "runs"), "--name", "digits")
    assert done.returncode == 0, done.stdout
    assert "round 2 of 0–2 (4x) is finished" in done.stdout, done.stdout
    return home / "runs" / "digits"


@pytest.mark.parametrize("token", [None, "0" * 64], ids=["no token", "another token"])
def test_without_its_token_the_cluster_takes_nothing(
    cluster: dict[str, str], tmp_path: Path, token: str | None
) -> None:
    # An empty home: no token of whoever runs the tests is found there.
    stranger = {name: value for name, value in cluster.items() if name != "RAY_AUTH_TOKEN"}
    stranger |= {"HOME": str(tmp_path)} | ({"RAY_AUTH_TOKEN": token} if token else {})
    done = submit(stranger, "jobs/recipes/digits.yaml", "--store", str(tmp_path / "runs"))
    assert done.returncode != 0
    assert "token" in done.stdout.lower(), done.stdout
    deployed = deploy(stranger, ROOT / "serve_app" / "digits.yaml")
    assert deployed.returncode != 0
    assert not (tmp_path / "runs").exists()
    assert _applications(cluster) == {}


def test_a_submitted_job_leaves_a_whole_portfolio(run: Path) -> None:
    assert json.loads((run / "run.json").read_text())["state"] == "finished"
    current = json.loads((run / "portfolio.json").read_text())["current"]
    portfolio = Portfolio.open(run / "portfolio" / f"{current}.zip")
    portfolio.verify()
    assert set(portfolio.names) <= {"1x", "2x", "4x"}


def test_a_job_that_fails_says_why_and_has_another_status(cluster: dict[str, str], tmp_path: Path) -> None:
    done = submit(cluster, "jobs/recipes/digits.yaml", "--store", str(tmp_path), "--set", "training.epoch=1")
    assert done.returncode != 0
    assert "training.epoch" in done.stdout
    assert "did you mean epochs" in done.stdout
    assert not any(tmp_path.iterdir())


def deploy(environment: dict[str, str], config: Path) -> subprocess.CompletedProcess[str]:
    command = [BIN / "serve", "deploy", "-a", environment["RAY_API_SERVER_ADDRESS"], str(config)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def _applications(environment: dict[str, str]) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {environment['RAY_AUTH_TOKEN']}"}
    url = f"{environment['RAY_API_SERVER_ADDRESS']}/api/serve/applications/"
    with urlopen(Request(url, headers=headers), timeout=30) as answer:
        applications: dict[str, Any] = json.load(answer)["applications"]
    return applications


def test_the_yaml_of_serve_app_is_deployed(cluster: dict[str, str], run: Path, tmp_path: Path) -> None:
    """As it stands, on the node that has the run at ``runs/digits``; only the port is another."""
    text = (ROOT / "serve_app" / "digits.yaml").read_text()
    port = free_port()
    assert text.count("port: 8000") == 1
    config = tmp_path / "digits.yaml"
    config.write_text(text.replace("port: 8000", f"port: {port}"))
    done = deploy(cluster, config)
    assert done.returncode == 0, done.stderr
    body = encode(np.zeros((2, 1, 8, 8), np.int64))
    url = f"http://127.0.0.1:{port}/predict"
    answer = patiently(lambda: urlopen(Request(url, body, {"Content-Type": "application/json"}), timeout=10))
    assert answer.status == 200
    assert len(json.load(answer)["predictions"]) == 2
    current = json.loads((run / "portfolio.json").read_text())["current"]
    names = Portfolio.open(run / "portfolio" / f"{current}.zip").names
    assert answer.headers["X-Shifter-Variant"] in names

    elsewhere = yaml.safe_load(config.read_text())
    elsewhere["applications"][0]["args"]["portfolio"] = "runs/other"
    config.write_text(yaml.safe_dump(elsewhere))
    assert deploy(cluster, config).returncode == 0  # Serve takes the file, and says later what came of it
    message = patiently(lambda: _failed(cluster, "digits"))
    assert f"{run.parent / 'other'}" in message, "the error names the whole path"
    assert "ray start" in message


def _failed(environment: dict[str, str], name: str) -> str:
    application = _applications(environment)[name]
    if application["status"] != "DEPLOY_FAILED":
        raise ConnectionError(f"{name} is {application['status']}: {application['message']}")
    message: str = application["deployments"]["edge"]["message"]
    return message
