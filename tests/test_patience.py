"""Storage that fails for a while costs time and nothing else; storage that is gone, one clear error."""

from __future__ import annotations

import errno
import logging
import os
import time
from pathlib import Path

import pytest

from shifter import patience as patience_module
from shifter.disk import Disk
from shifter.errors import RunError, StoreError
from shifter.lease import Lease
from shifter.patience import Patience
from shifter.store import Store

from .faults import HASTY, MOMENTS, FailingOnce, FaultyDisk, fault, on
from .gone import check_that_it_is_gone
from .s3 import everything

DATA = os.urandom(100_000)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


@pytest.fixture(autouse=True)
def _has_said_nothing_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience_module, "_spoke", -1e9)


class Failing:
    """Fails so often, then answers."""

    def __init__(self, times: int, number: int) -> None:
        self.times, self.number, self.calls = times, number, 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.times:
            raise fault(self.number)
        return "done"


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EBUSY, errno.ENETDOWN])
def test_what_may_pass_is_tried_again_and_told_once(number: int, caplog: pytest.LogCaptureFixture) -> None:
    action = Failing(5, number)
    with caplog.at_level(logging.WARNING):
        assert HASTY.attempt(action, "write x") == "done"
    assert action.calls == 6
    (line,) = caplog.messages
    assert line == (
        f"cannot write x ({os.strerror(number)}): storage does not answer, waiting for up to 60 s"
    )


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.ENOSPC, errno.EDQUOT])
def test_what_waiting_does_not_mend_is_told_at_once(number: int) -> None:
    action = Failing(1, number)
    with pytest.raises(OSError, match=os.strerror(number)):
        HASTY.attempt(action, "write x")
    assert action.calls == 1


def test_patience_ends_at_its_limit() -> None:
    began, action = time.monotonic(), Failing(10**9, errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        Patience(limit_s=0.2, first_pause_s=0.01).attempt(action, "write x")
    assert time.monotonic() - began >= 0.2
    assert action.calls > 2
    impatient = Failing(1, errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        Patience(limit_s=0).attempt(impatient, "write x")
    assert impatient.calls == 1


def test_the_environment_says_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Store.at("x").patience.limit_s == 300
    monkeypatch.setenv("SHIFTER_STORE_PATIENCE", "7.5")
    assert Store.at("x").patience.limit_s == 7.5
    for wrong in ("soon", "-1", "inf", "nan"):
        monkeypatch.setenv("SHIFTER_STORE_PATIENCE", wrong)
        with pytest.raises(StoreError, match=f"SHIFTER_STORE_PATIENCE={wrong}: give a number of seconds"):
            Store.at("x")


@pytest.mark.parametrize(("operation", "when"), MOMENTS)
def test_any_operation_may_fail_once_before_or_after_it_was_done(
    store: Store, operation: str, when: str
) -> None:
    store.write("run/old", DATA)
    store.replace("run/run.json", b"old")
    Path(store.uri, "run/.half.part").touch()
    disk = FailingOnce(operation, when)
    faulty = on(disk, store)
    faulty._probe()
    faulty.write("run/new/key", DATA)
    faulty.replace("run/run.json", b"new")
    assert faulty.read("run/old") == DATA
    with faulty.open_file("run/old") as file:
        assert file.read() == DATA
    assert faulty.list("run/") == ["run/new/key", "run/old", "run/run.json"]
    assert faulty.exists("run/old")
    faulty.delete("run/old")
    faulty.sweep("run")
    assert disk.failed
    assert everything(store) == ["run/new/key", "run/run.json"]
    assert (store.read("run/new/key"), store.read("run/run.json")) == (DATA, b"new")


@pytest.mark.parametrize("seed", range(5))
def test_a_fifth_of_all_calls_may_fail(store: Store, seed: int) -> None:
    disk = FaultyDisk(0.2, seed)
    faulty = on(disk, store)
    for index in range(20):
        faulty.write(f"run/{index}", DATA[index:])
        faulty.replace("run/run.json", b"%d" % index)
        with faulty.open_file(f"run/{index}") as file:
            file.seek(-10, os.SEEK_END)
            assert file.read() == DATA[-10:]
            file.seek(1000)
            assert file.read(9000) == DATA[index + 1000 : index + 10_000]
    assert all(faulty.read(f"run/{index}") == DATA[index:] for index in range(20))
    assert faulty.read("run/run.json") == b"19"
    faulty.sweep("run")
    assert everything(store) == sorted([*(f"run/{index}" for index in range(20)), "run/run.json"])
    assert {"before", "after", "slow", "cut"} == disk.faults.keys() - {"none"}


def test_bytes_cut_off_on_their_way_never_get_a_name(store: Store) -> None:
    class Cutting(Disk):
        def write(self, path: Path, data: bytes) -> None:
            super().write(path, data[:-1])

    with pytest.raises(StoreError, match="what was written is not what is read back"):
        on(Cutting(), store, Patience(limit_s=0.05)).write("run/a", DATA)
    assert everything(store) == []


def test_the_same_key_with_other_bytes_is_refused_however_often_it_is_tried(store: Store) -> None:
    store.write("run/a", b"first")
    faulty = on(FaultyDisk(0.5), store)
    faulty.write("run/a", b"first")
    with pytest.raises(StoreError, match="run/a is already in the store"):
        faulty.write("run/a", b"second")
    assert store.read("run/a") == b"first"


def test_a_store_that_is_gone_is_one_clear_error(store: Store) -> None:
    store.write("run/a", DATA)
    disk = FaultyDisk(0)
    gone = on(disk, store, Patience(limit_s=0.05, first_pause_s=0.01))
    with gone.open_file("run/a") as opened:
        disk.gone = True
        check_that_it_is_gone(gone, opened)
        disk.gone = False
    assert gone.read("run/a") == DATA


def test_whether_the_lease_still_holds_is_asked_after_the_waiting(store: Store) -> None:
    """Storage comes back after another driver has taken over: nothing gets a name."""
    answers = iter([None, None])

    def guard() -> None:
        if next(answers, "lost"):
            raise RunError("taken over")

    faulty = on(FailingOnce("link", "before"), store).guarded(guard)
    faulty.write("run/a", b"")
    with pytest.raises(RunError, match="taken over"):
        faulty.write("run/b", b"")
    assert everything(store) == ["run/a"]


def test_a_lease_is_held_through_storage_that_fails(store: Store) -> None:
    faulty = on(FaultyDisk(0.2), store)
    with Lease.hold(faulty, "run/lease", period_s=0.25) as lease:
        for _ in range(100):
            lease.require()
            time.sleep(0.01)
        with (
            pytest.raises(RunError, match="being carried out by another driver"),
            Lease.hold(faulty, "run/lease", period_s=0.25),
        ):
            pass
    with Lease.hold(faulty, "run/lease"):
        pass
