"""On a cluster that others share: a driver that is killed, and then the whole cluster, cost no bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from jobs._watchdog import kill_all

from .head import ROOT, command, running, submit
from .tiny import tiny


def wait_for(path: Path, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} never came"
        time.sleep(0.02)


def driver(run: Path) -> int:
    """The process that holds the run's lease."""
    *_, last = sorted((run / "lease").glob("*.json"))
    pid: int = json.loads(last.read_text())["process"]["pid"]
    return pid


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_killed_driver_and_a_killed_cluster_cost_no_bit(tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(tiny(epochs=12)))
    options = (str(recipe), "--store", str(tmp_path / "runs"), "--name")
    killed, unbroken = tmp_path / "runs" / "killed", tmp_path / "runs" / "unbroken"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with running(tmp_path) as cluster:
        done = submit(cluster, *options, "unbroken")
        assert done.returncode == 0, done.stdout

        job = subprocess.Popen(command(*options, "killed"), cwd=ROOT, env=cluster, **quiet)  # type: ignore[call-overload]
        wait_for(killed / "resume" / "round.safetensors")
        os.kill(driver(killed), signal.SIGKILL)
        assert job.wait(120) != 0
        assert json.loads((killed / "run.json").read_text())["state"] == "training"

        job = subprocess.Popen(command(*options, "killed"), cwd=ROOT, env=cluster, **quiet)  # type: ignore[call-overload]
        wait_for(killed / "rounds" / "round-01.arrow")
        while kill_all(cluster["RAY_TMPDIR"]):
            time.sleep(0.05)
        assert job.wait(60) != 0
    with running(tmp_path) as cluster:
        done = submit(cluster, *options, "killed")
    assert done.returncode == 0, done.stdout
    assert "resuming killed: round" in done.stdout
    for index in range(3):
        name = f"rounds/round-{index:02d}.arrow"
        assert (killed / name).read_bytes() == (unbroken / name).read_bytes()
    record = json.loads((killed / "run.json").read_text())
    assert len(record["resumed"]) == 2
    assert not list(killed.rglob(".*.part"))
