"""What a killed driver leaves behind is ended, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from jobs import _watchdog
from jobs.cluster import _temporary_folder
from shifter.process import Process

SLEEP = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "cluster" / "session").mkdir(parents=True)
    return tmp_path / "cluster"


@pytest.fixture
def started(folder: Path) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """A process of the cluster, one that shows it by its log alone, one of a similar name, one of none."""
    folders = {"ours": folder, "similar": f"{folder}2", "none": None}
    processes = {
        name: subprocess.Popen(SLEEP, env=os.environ | ({"RAY_TMPDIR": str(place)} if place else {}))
        for name, place in folders.items()
    }
    with (folder / "session" / "agent.log").open("w") as log:
        nowhere = {name: value for name, value in os.environ.items() if name != "RAY_TMPDIR"}
        processes["logs"] = subprocess.Popen(SLEEP, env=nowhere, stdout=log)
    yield processes
    for process in processes.values():
        process.kill()
        process.wait()


def watch(folder: Path, word: bytes) -> None:
    command = [sys.executable, "-I", _watchdog.__file__, str(folder)]
    subprocess.run(command, input=word, check=True, timeout=60)


def test_without_a_goodbye_it_ends_the_cluster_and_no_other(
    folder: Path, started: dict[str, subprocess.Popen[bytes]]
) -> None:
    watch(folder, b"")
    assert started["ours"].wait(10) == -9
    assert started["logs"].wait(10) == -9
    assert started["similar"].poll() is None
    assert started["none"].poll() is None
    assert not folder.exists()


def test_with_a_goodbye_it_leaves_everything(
    folder: Path, started: dict[str, subprocess.Popen[bytes]]
) -> None:
    watch(folder, b"goodbye")
    assert all(process.poll() is None for process in started.values())
    assert folder.exists()


def test_folders_of_the_dead_are_removed_and_of_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.cluster.ROOM_FOR_SOCKETS", 1000)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    this = Process.this()
    owners = {
        "shifter-dead": replace(this, started=0).to_json(),
        "shifter-alive": this.to_json(),
        "shifter-elsewhere": replace(this, started=0, boot="another").to_json(),
        "shifter-later-version": {"who": "knows"},
        "another-dead": replace(this, started=0).to_json(),
    }
    for name, owner in owners.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "owner.json").write_text(json.dumps(owner))
    (tmp_path / "shifter-without-owner").mkdir()
    new = _temporary_folder()
    assert {p.name for p in tmp_path.iterdir()} == (
        {*owners, "shifter-without-owner", new.name} - {"shifter-dead"}
    )
    assert Process.from_json(json.loads((new / "owner.json").read_bytes())) == this
