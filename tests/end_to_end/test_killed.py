"""The whole job, killed at one moment after another: it goes on each time, and ends as if it never was."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest
import safetensors.numpy

from shifter.portfolio import Portfolio
from shifter.run import Run
from shifter.sparse import SparseCheckpoint
from shifter.store import Store

from .tiny import NAME, generate, tiny, without_a_cluster

# A round takes about a second: time to be killed in.
RECIPE = tiny(epochs=12, ratios=[2.0, 4.0, 8.0, 16.0], rewind_to="20it")

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(900)]


@dataclass(frozen=True)
class Kill:
    """A signal, sent as soon as ``moment`` is seen in the store: to the driver, or to the process ``of``."""

    name: str
    signal: signal.Signals
    moment: Callable[[Run], bool]
    state: str
    of: str = ""


def has_round(index: int) -> Callable[[Run], bool]:
    return lambda run: run.store.exists(run.checkpoint_key(index))


KILLS = [
    Kill("SIGTERM while Ray starts", signal.SIGTERM, lambda run: run.has_begun, "training"),
    Kill("SIGINT while training", signal.SIGINT, has_round(0), "training"),
    Kill("SIGTERM while training", signal.SIGTERM, has_round(1), "training"),
    Kill("SIGKILL of the controller", signal.SIGKILL, has_round(1), "failed", of="TrainController"),
    Kill("SIGKILL while training", signal.SIGKILL, has_round(2), "training"),
    Kill("SIGKILL while reducing", signal.SIGKILL, lambda run: run.state == "reducing", "reducing"),
    Kill(
        "SIGKILL while variants are written",
        signal.SIGKILL,
        lambda run: bool(run.store.list(f"{run.name}/variants/")),
        "reducing",
    ),
    Kill("SIGKILL while packing", signal.SIGKILL, lambda run: run.state == "packing", "packing"),
]


@dataclass(frozen=True)
class Ended:
    """A driver that was killed: what it said, and what was there afterwards."""

    status: int
    stderr: str
    state: str
    rounds: int
    left_running: list[str]
    temporary: list[str]
    broken: list[str]


class Job:
    """One command, with a folder for temporary files of its own, and a mark on all its processes."""

    def __init__(self, folder: Path, temporary: Path) -> None:
        self.temporary = temporary
        self.run = Run(Store.at(str(folder / "store")), NAME)
        self.command = generate(folder, RECIPE, self.run.store.uri)
        self.mark = f"SHIFTER_TEST={uuid.uuid4().hex}"
        name, _, value = self.mark.partition("=")
        self.environment = without_a_cluster(**{"TMPDIR": str(temporary), name: value})

    def finish(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command, env=self.environment, capture_output=True, text=True, timeout=400, check=False
        )

    def kill(self, kill: Kill) -> Ended:
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            self.command, env=self.environment, stderr=pipe, text=True, start_new_session=True
        )
        before = self.run.record["resumed"] if self.run.has_begun else None
        try:
            # Not what was already so: this very driver has to have begun.
            while not (
                self._begun(before) and kill.moment(self.run) and (victim := self._victim(kill, process))
            ):
                assert process.poll() is None, f"it ended before {kill.name}: {process.communicate()[1]}"
                time.sleep(0.002)
            os.kill(victim, kill.signal)
            _, stderr = process.communicate(timeout=120)
        finally:
            process.kill()
            process.wait()
        left = self._left_running(patience_s=20)
        return Ended(
            process.returncode,
            stderr,
            self.run.state,
            self.run.finished_rounds(),
            left,
            [path.name for path in self.temporary.glob("shifter-*")],  # torch keeps caches there
            broken(self.run),
        )

    def _victim(self, kill: Kill, driver: subprocess.Popen[str]) -> int | None:
        if not kill.of:
            return driver.pid
        return next((pid for pid, name in self._marked().items() if kill.of in name), None)

    def _begun(self, before: list[str] | None) -> bool:
        return self.run.has_begun and (before is None or len(self.run.record["resumed"]) > len(before))

    def _left_running(self, patience_s: float) -> list[str]:
        end = time.monotonic() + patience_s
        while (left := self._marked()) and time.monotonic() < end:
            time.sleep(0.1)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        return [f"{pid}: {name}" for pid, name in left.items()]

    def _marked(self) -> dict[int, str]:
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue  # it has ended
        return found


def broken(run: Run) -> list[str]:
    """Keys whose bytes are not all that they should be."""
    whole: dict[str, Callable[[bytes], object]] = {
        ".arrow": lambda data: (SparseCheckpoint.open(data).tensors(), SparseCheckpoint.open(data).mask()),
        ".html": lambda data: data.rstrip().endswith(b"</html>") or 1 / 0,
        ".json": json.loads,
        ".onnx": lambda data: onnx.load(io.BytesIO(data), load_external_data=False).graph.node[0],
        ".safetensors": safetensors.numpy.load,
        ".zip": lambda data: Portfolio.open(data).verify(),
    }
    found = []
    for key in run.store.list():
        try:
            whole[Path(key).suffix](run.store.read(key))
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it
            found.append(f"{key}: {error!r}")
    return found


@pytest.fixture(scope="module")
def temporary() -> Iterator[Path]:
    """Short, since Ray's sockets are to lie below it."""
    folder = Path(tempfile.mkdtemp(prefix="killed-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, temporary: Path) -> tuple[Job, dict[str, Ended]]:
    """One run, killed once for each of KILLS by starting the same command again and again."""
    job = Job(tmp_path_factory.mktemp("killed"), temporary)
    return job, {kill.name: job.kill(kill) for kill in KILLS}


@pytest.fixture(scope="module")
def finished(killed: tuple[Job, dict[str, Ended]]) -> subprocess.CompletedProcess[str]:
    return killed[0].finish()


@pytest.mark.parametrize("kill", KILLS, ids=lambda kill: kill.name.replace(" ", "-"))
def test_each_kill_leaves_a_state_to_go_on_from_and_nothing_running(
    killed: tuple[Job, dict[str, Ended]], kill: Kill
) -> None:
    ended = killed[1][kill.name]
    if kill.of:
        assert ended.status == 1
        assert (
            "the process that watches the workers of mine was lost; the same command goes on" in ended.stderr
        )
    else:
        assert ended.status == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[kill.signal]
    if kill.signal != signal.SIGKILL:
        assert "mine is interrupted; the same command resumes it" in ended.stderr
        assert "Traceback" not in ended.stderr
    assert ended.state == kill.state
    assert ended.left_running == []
    assert ended.temporary == []
    assert ended.broken == []


def test_each_start_after_a_kill_says_what_it_goes_on_from(killed: tuple[Job, dict[str, Ended]]) -> None:
    first, *others = killed[1].values()
    assert "resuming" not in first.stderr
    rounds = first.rounds
    for ended in others:
        which = {0: "no round is finished", 1: "round 0 is finished"}
        told = which.get(rounds, f"rounds 0–{rounds - 1} are finished")
        assert f"resuming mine: {told}" in ended.stderr
        rounds = ended.rounds
    training = [ended.rounds for ended in killed[1].values() if ended.state == "training"]
    assert training == sorted(training)
    assert training[-1] in (3, 4), "the last kill while training came before its end"


def test_it_ends_as_a_run_that_was_never_killed(
    killed: tuple[Job, dict[str, Ended]],
    finished: subprocess.CompletedProcess[str],
    tmp_path: Path,
    temporary: Path,
) -> None:
    assert finished.returncode == 0, finished.stderr
    assert "resuming mine: rounds 0–4 are finished" in finished.stderr
    run, unbroken = killed[0].run, Job(tmp_path, temporary)
    assert run.state == "finished"
    assert unbroken.finish().returncode == 0
    for index in range(5):
        key = run.checkpoint_key(index)
        assert run.store.read(key) == unbroken.run.store.read(key)

    def comparable(run: Run) -> set[str]:
        # A portfolio's name is the digest of measured latencies, too; a lease is numbered.
        return {k for k in run.store.list() if not k.startswith((f"{run.name}/portfolio/", run.lease_folder))}

    assert comparable(run) == comparable(unbroken.run)
    assert broken(run) == []
    current = json.loads(run.store.read(run.portfolio_json))["current"]
    Portfolio.open(run.store.read(run.portfolio_key(current))).verify()
    hidden = [p for p in Path(run.store.uri).rglob("*") if p.name.startswith(".")]
    assert hidden == []
    assert list(temporary.glob("shifter-*")) == []
