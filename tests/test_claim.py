"""Claims to a lease on storage whose answers come late, in time that is only played: never two holders."""

from __future__ import annotations

import heapq
import itertools
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import TypeVar

import pytest

from shifter import claim as claim_module
from shifter.claim import MISSED, Claim, GoneError, Title, successor, take
from shifter.errors import RunError, StoreError
from shifter.store import Store

from .s3 import Server

T = TypeVar("T")

FOLDER = "run/lease"
PERIOD_S = 5.0
PATIENCE_S = MISSED * PERIOD_S


class Clock:
    """Time of several threads, of which one runs while all others sleep: a seed decides everything."""

    def __init__(self) -> None:
        self.now = 0.0
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, threading.Event]] = []
        self._last = threading.Event()

    def run(self, *actions: Callable[[], None]) -> None:
        """Until all have ended. Raises what one of them raised."""
        errors: list[BaseException] = []

        def act(action: Callable[[], None], begins: threading.Event) -> None:
            begins.wait()
            try:
                action()
            except BaseException as error:  # noqa: BLE001 - it is raised below
                errors.append(error)
            self._wake_next()

        for action in actions:
            begins = self._queue(0.0)
            threading.Thread(target=act, args=(action, begins), daemon=True).start()
        self._wake_next()
        assert self._last.wait(60)
        if errors:
            raise errors[0]

    def sleep(self, seconds: float) -> None:
        woken = self._queue(seconds)
        self._wake_next()
        woken.wait()

    def monotonic(self) -> float:
        return self.now

    def _queue(self, seconds: float) -> threading.Event:
        woken = threading.Event()
        heapq.heappush(self._sleepers, (self.now + seconds, next(self._order), woken))
        return woken

    def _wake_next(self) -> None:
        if not self._sleepers:
            self._last.set()
            return
        self.now, _, woken = heapq.heappop(self._sleepers)
        woken.set()


@dataclass
class SlowStore:
    """What the lease needs of a store; each request takes its time, and some writes are done again later.

    Args:
        longest_s: of a request's way to the storage, and of its answer's; for this share of them.
    """

    clock: Clock
    random: random.Random
    longest_s: float
    share: float
    keys: dict[str, bytes] = field(default_factory=dict)
    late: list[tuple[float, str, bytes]] = field(default_factory=list)
    uri: str = "played"

    def patient(self, limit_s: float) -> SlowStore:
        return self

    def list(self, prefix: str) -> list[str]:
        return self._request(lambda: sorted(key for key in self.keys if key.startswith(prefix)))

    def read(self, key: str) -> bytes:
        data = self._request(lambda: self.keys.get(key))
        if data is None:
            raise StoreError(f"there is no {key}")
        return data

    def exists(self, key: str) -> bool:
        return self._request(lambda: key in self.keys)

    def delete(self, key: str) -> None:
        self._request(lambda: self.keys.pop(key, None))

    def replace(self, key: str, data: bytes) -> None:
        self._request(lambda: self.keys.update({key: data}))
        if self.random.random() < 0.1:  # sent twice, since the first one seemed to be lost
            self.late.append((self.clock.now + self.random.uniform(0, 2 * PATIENCE_S), key, data))

    def _request(self, done: Callable[[], T]) -> T:
        self._travel()
        for at, key, data in [write for write in self.late if write[0] <= self.clock.now]:
            self.late.remove((at, key, data))
            self.keys[key] = data
        result = done()
        self._travel()
        return result

    def _travel(self) -> None:
        slow = self.random.random() < self.share
        self.clock.sleep(self.random.uniform(0, self.longest_s if slow else 0.1))


class Drivers:
    """Who want the lease, hold it, are suspended with it or die of it."""

    def __init__(self, seed: int, longest_s: float, share: float) -> None:
        self.random = random.Random(seed)
        self.clock = Clock()
        self.slow = SlowStore(self.clock, self.random, longest_s, share)
        self.inside: set[str] = set()
        self.held = self.refused = self.lost = 0

    def come_and_go(self) -> None:
        for _ in range(4):
            self.clock.sleep(self.random.choice([0, 1, 20, 200]) * self.random.random())
            try:
                title, claim = take(self.slow, FOLDER, lambda _: None, PERIOD_S)  # type: ignore[arg-type]
            except RunError as error:
                if "is being carried out by another driver" not in str(error):
                    raise
                self.refused += 1
                continue
            if self._drive(title, claim) == "dies":
                return

    def _drive(self, title: Title, claim: Claim) -> str:
        end = self.clock.now + self.random.uniform(0, 60)
        while True:
            if not self._still_holds(title):
                self.lost += 1
                return "loses"
            assert not self.inside, "two at a time"
            self.inside.add(claim.token)
            self.held += 1
            self.clock.sleep(PERIOD_S * self.random.random())
            self.inside.remove(claim.token)
            if self.random.random() < 0.1:
                return "dies"
            if self.random.random() < 0.1:
                self.clock.sleep(3 * PATIENCE_S)
            claim = replace(claim, beats=claim.beats + 1, released=self.clock.now > end)
            if self._still_holds(title):
                self.slow.replace(title.key(FOLDER), claim.encode())
            if claim.released:
                return "goes"

    def _still_holds(self, title: Title) -> bool:
        """Asked before anything is written; the answer is as old as its way is long."""
        others = bool(self.inside)
        self.slow.longest_s, longest_s = 0.0, self.slow.longest_s
        try:
            found = successor(self.slow, FOLDER, title)  # type: ignore[arg-type]
        except GoneError:
            return False
        finally:
            self.slow.longest_s = longest_s
        assert not (others and found is None), "a holder that has a successor does not find out"
        return found is None


@pytest.mark.parametrize(("longest_s", "share"), [(0.1, 1), (PERIOD_S, 0.3), (2 * PATIENCE_S, 0.02)])
@pytest.mark.parametrize("seed", range(12))
def test_however_late_a_write_is_there_are_never_two(
    seed: int, longest_s: float, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    drivers = Drivers(seed, longest_s, share)
    played = SimpleNamespace(sleep=drivers.clock.sleep, monotonic=drivers.clock.monotonic)
    monkeypatch.setattr(claim_module, "time", played)
    drivers.clock.run(*[drivers.come_and_go] * 5)
    assert drivers.held > 0


def test_a_late_write_unseats_nobody(bucket: Server) -> None:
    """Of a rival that was refused or has died: the holder holds, and the next driver gets its turn."""
    store = Store.at(f"s3://{bucket.bucket()}")
    title, claim = take(store, FOLDER, lambda _: None, 0.2)
    rival = replace(Claim.new(0.2), process=replace(claim.process, started=0))
    for held in (False, True):
        late = Title(title.number, rival.token, held)
        store.replace(late.key(FOLDER), rival.encode())
        assert successor(store, FOLDER, title) is None
    store.replace(title.key(FOLDER), replace(claim, released=True).encode())
    after, _ = take(store, FOLDER, lambda _: None, 0.2)
    assert after.number == title.number + 1
    assert Title.all(store, FOLDER) == [after]
