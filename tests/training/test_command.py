"""python -m shifter.training: phase 1 in one process or several, without Ray."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from shifter.run import Run

from .conftest import RECIPE

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    file.write_text(yaml.safe_dump({**RECIPE, "pruning": {"ratios": [4.0], "rewind_to": "25it"}}))
    return file


def start(recipe_file, store, *overrides, launcher=("-m",)):
    """Ray is not to be had: as if it were not installed."""
    sets = [part for override in overrides for part in ("--set", override)]
    command = [sys.executable, *launcher, "shifter.training", str(recipe_file), "--store", str(store)]
    hidden = store.parent / "hidden"
    (hidden / "ray").mkdir(parents=True, exist_ok=True)
    (hidden / "ray" / "__init__.py").write_text("raise ImportError('there is no Ray here')")
    env = os.environ | {"PYTHONPATH": f"{hidden}:{ROOT}", "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, "--name", "run", *sets], env=env, **pipes)


def checkpoints(store):
    run = Run.attach(str(store), "run")
    return [run.store.read(run.checkpoint_key(index)) for index in range(run.finished_rounds())]


def test_stopped_by_a_signal_the_same_command_ends_where_an_unbroken_one_does(recipe_file, tmp_path):
    options = ("workers=1", "training.epochs=12", "training.save_every=99ep")
    unbroken = start(recipe_file, tmp_path / "unbroken", *options)
    out, err = unbroken.communicate(timeout=200)
    assert unbroken.returncode == 0, err
    assert out == f"{tmp_path}/unbroken/run: 2 rounds are trained\n"
    assert "round 1 of 0–1 (4x), epoch 12 of 12: loss" in err
    assert "round 1 of 0–1 (4x) is finished" in err

    stopped = start(recipe_file, tmp_path / "stopped", *options)
    for line in stopped.stderr:
        if "epoch 2 of" in line:
            break
    stopped.send_signal(signal.SIGTERM)
    _, err = stopped.communicate(timeout=100)
    assert stopped.returncode == 143, err
    assert "training was stopped in round 0 at step" in err
    assert "the same command goes on from there" in err

    resumed = start(recipe_file, tmp_path / "stopped", *options)
    _, err = resumed.communicate(timeout=200)
    assert resumed.returncode == 0, err
    assert "round 0 goes on from step" in err
    assert checkpoints(tmp_path / "stopped") == checkpoints(tmp_path / "unbroken")
    run = Run.attach(str(tmp_path / "stopped"), "run")
    first, second = run.record["attempts"]
    assert (first["workers"], first["device"], first["round"], first["iteration"]) == (1, "cpu", 0, 0)
    assert second["iteration"] > 0
    assert not run.store.list(run.resume_key(""))


def test_as_many_processes_as_workers_are_asked_for(recipe_file, tmp_path):
    process = start(recipe_file, tmp_path / "store")
    _, err = process.communicate(timeout=100)
    assert process.returncode == 1
    assert err.startswith("error: workers: the recipe has 2, but 1 processes were started: start as many")
    assert not (tmp_path / "store").exists()


@pytest.mark.long
def test_torchrun_starts_several(recipe_file, tmp_path):
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
    process = start(recipe_file, tmp_path / "store", launcher=torchrun)
    out, err = process.communicate(timeout=250)
    assert process.returncode == 0, err
    assert out == f"{tmp_path}/store/run: 2 rounds are trained\n"
    assert err.count("round 1 of 0–1 (4x) is finished") == 1
    assert len(checkpoints(tmp_path / "store")) == 2
