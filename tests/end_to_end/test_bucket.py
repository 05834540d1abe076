"""The whole chain with its artifacts in a bucket, of whose requests a fifth fail."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from typer.testing import CliRunner

from jobs.__main__ import app
from jobs.cluster import cluster
from jobs.serving import serving
from serve_app.settings import Settings
from shifter.portfolio import Portfolio
from shifter.run import Run
from shifter.store import Store

from ..s3 import Server, everything
from .tiny import NAME, generate, tiny, without_a_cluster

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(600)]


def start(folder: Path, store: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    command = [*generate(folder, tiny(rewind_to="20it"), store), "--json"]
    return subprocess.Popen(command, env=without_a_cluster(), stdout=pipe, stderr=pipe, text=True)


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    told, said = process.communicate(timeout=400)
    assert process.returncode == 0, said
    summary: dict[str, Any] = json.loads(told)
    return summary


def test_a_run_in_a_bucket_is_that_of_a_folder_and_is_served_from_there(
    bucket: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    run = Run(Store.at(f"s3://{bucket.bucket()}/some/runs"), NAME)
    bucket.play(share=0.2)
    killed = start(tmp_path, run.store.uri)
    try:
        while not run.store.exists(run.checkpoint_key(0)):
            assert killed.poll() is None, killed.communicate()[1]
            time.sleep(0.05)
    finally:
        killed.kill()
        killed.communicate()
    told = finish(start(tmp_path, run.store.uri))
    assert told["store"] == run.store.uri
    bucket.play()

    folder = Run(Store.at(str(tmp_path / "runs")), NAME)
    finish(start(tmp_path, folder.store.uri))
    for index in range(3):
        key = run.checkpoint_key(index)
        assert run.store.read(key) == folder.store.read(key)
    assert not [name for name in everything(run.store) if "(in parts)" in name or "/." in name]

    place = f"{run.store.uri}/{NAME}"
    shown = json.loads(CliRunner().invoke(app, ["inspect", place, "--json"]).stdout)
    portfolio = Portfolio.open(run.store.read(f"{NAME}/{told['portfolio'].removeprefix(f'{NAME}/')}"))
    assert shown["digest"] == portfolio.digest
    assert run.store.read(run.report_key).startswith(b"<!")
    with cluster(2, lambda _: None), serving() as served:
        urls = served.deploy({"edge": Settings(portfolio=place, objective_ms=1000, cpus=0.1)})
        with urlopen(f"{urls['edge']}/status", timeout=30) as answer:
            assert json.load(answer)["portfolio"] == portfolio.digest
