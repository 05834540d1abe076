"""The whole job on storage of which a fifth of all calls fail, and which goes away in between."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from shifter.portfolio import Portfolio
from shifter.run import Run
from shifter.store import Store

from .tiny import NAME, generate, tiny, without_a_cluster

# Every Python process runs this first, Ray's workers too.
EVERYWHERE = """
import os
from dataclasses import replace
from pathlib import Path

from tests.faults import FaultyDisk, on
from shifter.store import Store

HERE = Path(__file__).parent

class Played(FaultyDisk):
    def _call(self, *arguments, **named):
        self.gone = (HERE / "gone").exists()
        (HERE / f"played-{os.getpid()}").touch()
        return super()._call(*arguments, **named)

def at(cls, uri, original=Store.at.__func__):
    store = original(cls, uri)
    return on(Played(0.2, os.getpid()), store, replace(store.patience, first_pause_s=0.01))

Store.at = classmethod(at)
"""

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(600)]


class Jobs:
    """The same job on storage that is sound, and on storage that is not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "faults").mkdir()
        (folder / "faults" / "sitecustomize.py").write_text(EVERYWHERE)
        self.gone = folder / "faults" / "gone"
        root = Path(__file__).parents[2]
        path = os.pathsep.join([str(folder / "faults"), str(root), os.environ.get("PYTHONPATH", "")])
        self.sound = without_a_cluster()
        self.faulty = without_a_cluster(PYTHONPATH=path, SHIFTER_STORE_PATIENCE="20")

    def start(self, name: str, environment: dict[str, str]) -> subprocess.Popen[str]:
        command = generate(self.folder, tiny(rewind_to="20it"), str(self.folder / name))
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    def run(self, name: str) -> Run:
        return Run(Store.at(str(self.folder / name)), NAME)

    def processes(self) -> int:
        return len(list((self.folder / "faults").glob("played-*")))


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    return Jobs(tmp_path_factory.mktemp("storage"))


def test_storage_that_is_gone_ends_it_with_one_clear_error_and_a_state_to_go_on_from(jobs: Jobs) -> None:
    run = jobs.run("faulty")
    process = jobs.start("faulty", jobs.faulty)
    try:
        while not run.store.exists(run.checkpoint_key(0)):
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.01)
        jobs.gone.touch()
        _, told = process.communicate(timeout=200)
    finally:
        process.kill()
        process.communicate()
        jobs.gone.unlink(missing_ok=True)
    assert process.returncode == 1
    assert "storage does not answer, waiting for up to" in told
    (error,) = (line for line in told.splitlines() if line.startswith("error: "))
    assert "it was tried for 20 s. What is finished is kept: when the storage is back" in error
    assert "Traceback" not in told
    assert run.state == "training"
    assert 1 <= run.finished_rounds() < 3


def test_a_fifth_of_all_calls_may_fail(jobs: Jobs) -> None:
    """The rest of that run, to its end, against one on sound storage."""
    resumed = jobs.start("faulty", jobs.faulty)
    _, told = resumed.communicate(timeout=400)
    assert resumed.returncode == 0, told
    assert "resuming mine: round" in told
    # Driver, two workers and Ray's other processes that use the store, twice.
    assert jobs.processes() >= 6
    sound = jobs.start("sound", jobs.sound)
    _, told = sound.communicate(timeout=400)
    assert sound.returncode == 0, told
    run, same = jobs.run("faulty"), jobs.run("sound")
    for index in range(3):
        key = run.checkpoint_key(index)
        assert run.store.read(key) == same.store.read(key)
    (package,) = run.store.list(f"{run.name}/portfolio/")
    Portfolio.open(run.store.read(package)).verify()
    # A last heartbeat may have left something of its own.
    left = [p for p in Path(run.store.uri, NAME).rglob(".*") if p.parent.name != "lease"]
    assert left == []
