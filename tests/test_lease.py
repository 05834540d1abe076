"""The lease: one driver at a time, and a dead one is found out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shifter import claim as claim_module
from shifter.claim import MISSED, Title
from shifter.errors import RunError
from shifter.lease import Lease
from shifter.process import Process
from shifter.store import Store

from .s3 import Server

PERIOD_S = 0.25
FOLDER = "digits/lease"

HOLDER = f"""
import sys, time
from pathlib import Path
from typing import Any
from shifter.errors import RunError
from shifter.lease import Lease
from shifter.store import Store

try:
    with Lease.hold(Store.at(sys.argv[1]), "{FOLDER}", period_s=float(sys.argv[2])) as lease:
        print("held", flush=True)
        sys.stdin.readline()
        lease.require()
except RunError as error:
    print(error, flush=True)
    sys.exit(1)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(store: Store) -> Iterator[Start]:
    """Starts a process that holds the lease, or is refused, and then waits for a line."""
    started: list[subprocess.Popen[str]] = []

    def run(store: Store = store, period_s: float = PERIOD_S) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLDER, store.uri, str(period_s)]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, start_new_session=True)
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def told(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def hold(
    store: Store, on_wait: Callable[[str], None] = lambda _: None, period_s: float = PERIOD_S
) -> AbstractContextManager[Lease]:
    return Lease.hold(store, FOLDER, on_wait, period_s)


def claim(store: Store) -> dict[str, Any]:
    key = store.list(f"{FOLDER}/")[-1]
    found: dict[str, Any] = json.loads(store.read(key))
    return found


def change_claim(store: Store, **changes: object) -> None:
    (key,) = store.list(f"{FOLDER}/")
    store.replace(key, json.dumps(claim(store) | changes).encode())


def test_a_second_driver_is_refused_and_told_by_whom_and_what_to_do(store: Store, start: Start) -> None:
    first = start()
    assert told(first) == "held"
    second = start()
    error = told(second)
    assert second.wait(10) == 1
    assert f"process {first.pid} on {Process.this().host} since 20" in error
    assert f"digits in the store {store.uri} is being carried out by another driver" in error
    assert f"{MISSED * PERIOD_S:.0f} s after its last sign of life" in error
    assert "give another --name" in error
    first.communicate("go on\n")
    assert first.returncode == 0, "the holder is undisturbed"


def test_the_dead_is_followed_at_once_on_the_same_machine(store: Store, start: Start) -> None:
    first = start()
    assert told(first) == "held"
    first.kill()
    os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie, which is dead enough
    waited: list[str] = []
    with hold(store, on_wait=waited.append):
        assert claim(store)["process"]["pid"] == os.getpid()
    assert waited == []


@pytest.mark.parametrize("how", [signal.SIGINT, None])
def test_it_is_given_back_at_the_end(store: Store, start: Start, how: signal.Signals | None) -> None:
    first = start()
    assert told(first) == "held"
    if how is None:
        first.communicate("go on\n")
    else:
        first.send_signal(how)
    assert first.wait(10) == (130 if how else 0)
    assert claim(store)["released"]
    with hold(store):
        assert not claim(store)["released"]
    with pytest.raises(ZeroDivisionError), hold(store):
        raise ZeroDivisionError
    assert claim(store)["released"]


def leave_behind(store: Store, before: str) -> None:
    """What an earlier driver left, if there was one."""
    if before != "nobody":
        with hold(store):
            pass
    if before == "dead":
        gone = replace(Process.this(), started=0)
        change_claim(store, released=False, process=gone.to_json())


@pytest.mark.parametrize("before", ["nobody", "released", "dead"])
def test_of_eight_who_race_exactly_one_wins(store: Store, start: Start, before: str) -> None:
    leave_behind(store, before)
    check_race(store, [start() for _ in range(8)])


@pytest.mark.parametrize("before", ["nobody", "dead"])
@pytest.mark.parametrize("conditions", ["kept", "ignored", "refused"])
def test_so_it_is_in_a_bucket_whatever_the_server_makes_of_conditions(
    bucket: Server, start: Start, before: str, conditions: str
) -> None:
    store = Store.at(f"s3://{bucket.bucket()}")
    leave_behind(store, before)
    bucket.play(conditions=conditions, delay_s=0.05)
    check_race(store, [start(store, period_s=2) for _ in range(8)])


def check_race(store: Store, racers: list[subprocess.Popen[str]]) -> None:
    outcomes = [told(racer) for racer in racers]
    assert outcomes.count("held") == 1, outcomes
    assert sum("is being carried out by another driver" in outcome for outcome in outcomes) == 7
    assert len(store.list(f"{FOLDER}/")) == 1
    winner = racers[outcomes.index("held")]
    winner.communicate("go on\n")
    assert winner.returncode == 0


CROWD = f"""
import os, random, sys, time
from pathlib import Path
from shifter.errors import RunError
from shifter.lease import Lease
from shifter.store import Store

store, inside, held = Store.at(sys.argv[1]), Path(sys.argv[1], "inside"), 0
end = time.monotonic() + 2
while time.monotonic() < end:
    try:
        with Lease.hold(store, "{FOLDER}", period_s={PERIOD_S}) as lease:
            os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
            time.sleep(random.random() / 200)
            lease.require()
            inside.unlink()
            held += 1
    except RunError as error:
        assert "being carried out by another driver" in str(error), error
print(held)
"""


def test_a_crowd_that_comes_and_goes_is_never_two_at_a_time(store: Store) -> None:
    command = [sys.executable, "-c", CROWD, store.uri]
    crowd = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(5)]
    held = [process.communicate()[0] for process in crowd]
    assert [process.returncode for process in crowd] == [0] * 5
    assert sum(map(int, held)) > 5


def test_in_a_bucket_the_dead_is_followed_and_the_suspended_finds_out(bucket: Server, start: Start) -> None:
    store = Store.at(f"s3://{bucket.bucket()}")
    first = start(store, period_s=0.5)
    assert told(first) == "held"
    first.send_signal(signal.SIGSTOP)
    with hold(store):
        first.send_signal(signal.SIGCONT)
        assert "was taken over by process" in told(first)
        assert first.wait(10) == 1
    second = start(store, period_s=0.5)
    assert told(second) == "held"
    second.kill()
    os.waitid(os.P_PID, second.pid, os.WEXITED | os.WNOWAIT)
    waited: list[str] = []
    with hold(store, on_wait=waited.append):
        assert claim(store)["process"]["pid"] == os.getpid()
    assert waited == []


def elsewhere(store: Store) -> None:
    """Makes the claim that of a process which cannot be looked up from here."""
    change_claim(store, process=replace(Process.this(), boot="of another machine").to_json())


def test_a_holder_elsewhere_is_watched_until_it_shows_no_life(store: Store) -> None:
    with hold(store):
        pass
    change_claim(store, released=False)
    elsewhere(store)
    waited: list[str] = []
    began = time.monotonic()
    with hold(store, on_wait=waited.append):
        assert time.monotonic() - began >= MISSED * PERIOD_S
    (line,) = waited
    assert "waiting whether it is alive" in line


def test_a_clock_that_is_wrong_changes_nothing(store: Store) -> None:
    """The claim is from the future: only its heartbeat counts."""
    with hold(store):
        pass
    change_claim(store, released=False, since="2999-01-01T00:00:00+00:00")
    elsewhere(store)
    waited: list[str] = []
    began = time.monotonic()
    with hold(store, on_wait=waited.append):
        assert time.monotonic() - began >= MISSED * PERIOD_S
        assert claim(store)["process"]["pid"] == os.getpid()
    (line,) = waited
    assert "waiting whether it is alive" in line
    assert claim(store)["released"]


def test_a_suspended_holder_loses_it_and_stops_before_it_writes(store: Store, start: Start) -> None:
    first = start()
    assert told(first) == "held"
    first.send_signal(signal.SIGSTOP)
    with hold(store):
        first.send_signal(signal.SIGCONT)
        error = told(first)  # without being asked: its heartbeat finds out
        assert first.wait(10) == 1
        assert "was taken over by process" in error
        assert "writes no more" in error
        assert claim(store)["process"]["pid"] == os.getpid()
    assert claim(store)["released"]


def test_nothing_is_written_under_a_lease_that_is_lost(store: Store) -> None:
    store.replace("digits/resume/x", b"kept")
    # No heartbeat: the guard has to find out by itself.
    with hold(store, period_s=600) as mine:
        guarded = store.guarded(mine.require)
        guarded.write("digits/a", b"")
        Path(store.uri, "digits/.half.part").touch()
        theirs = json.dumps(claim(store) | {"token": "another"}).encode()
        store.write(f"{FOLDER}/000009.json", theirs)
        changes = {
            "write": lambda: guarded.write("digits/b", b""),
            "replace": lambda: guarded.replace("digits/resume/x", b"changed"),
            "delete": lambda: guarded.delete("digits/resume/x"),
            "sweep": lambda: guarded.sweep("digits"),
        }
        for change in changes.values():
            with pytest.raises(RunError, match="taken over"):
                change()
    assert store.read("digits/resume/x") == b"kept"
    assert not store.exists("digits/b")
    assert store.list(f"{FOLDER}/") == [f"{FOLDER}/000009.json"]
    assert store.read(f"{FOLDER}/000009.json") == theirs, "the successor's claim is not touched"


def test_a_lease_that_was_deleted_is_lost(store: Store) -> None:
    with hold(store, period_s=600) as mine:
        store.delete(store.list(f"{FOLDER}/")[0])
        with pytest.raises(RunError, match="is gone"):
            mine.require()


def test_numbers_that_were_taken_and_given_back_meanwhile_are_left_alone(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A racer falls asleep after it has read the last claim; two holders come and go."""
    with hold(store):
        pass
    original, asleep = claim_module._that_count, True

    def that_count(titles: list[Title]) -> tuple[int, list[Title]]:
        nonlocal asleep
        found = original(titles)
        if asleep:
            asleep = False
            for _ in range(2):
                with hold(store):
                    pass
        return found

    monkeypatch.setattr(claim_module, "_that_count", that_count)
    with hold(store) as mine:
        mine.require()
        assert [title.number for title in Title.all(store, FOLDER)] == [4]


def test_another_version_of_it_is_refused(store: Store) -> None:
    store.write(f"{FOLDER}/000001.json", b'{"format": 99}')
    with pytest.raises(RunError, match="written by another version"), hold(store):
        pass


def test_a_heartbeat_thread_ends_with_its_lease(store: Store) -> None:
    with hold(store):
        assert "lease" in {thread.name for thread in threading.enumerate()}
        first = claim(store)["beats"]
        while claim(store)["beats"] == first:
            time.sleep(PERIOD_S / 10)
    time.sleep(2 * PERIOD_S)
    assert "lease" not in {thread.name for thread in threading.enumerate()}


class TestProcess:
    def test_this_one_lives_and_is_the_same_after_a_round_trip(self) -> None:
        this = Process.this()
        assert Process.from_json(json.loads(json.dumps(this.to_json()))) == this
        assert not this.is_known_dead()

    def test_a_pid_that_was_given_away_again_is_another_process(self) -> None:
        assert replace(Process.this(), started=0).is_known_dead()

    def test_one_that_ended_is_dead(self) -> None:
        script = "from shifter.process import Process; print(Process.this())"
        ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert eval(ended.stdout).is_known_dead()

    @pytest.mark.parametrize("where", ["boot", "namespace"])
    def test_what_cannot_be_seen_from_here_is_not_known_to_be_dead(self, where: str) -> None:
        hidden = replace(Process.this(), started=0, pid=2**22 + 1)
        assert hidden.is_known_dead()
        assert not replace(hidden, **{where: "another"}).is_known_dead()
        assert not replace(hidden, boot=None).is_known_dead()
