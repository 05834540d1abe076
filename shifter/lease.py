"""A run has one driver at a time: the holder of its lease.

The lease is a folder of numbered keys, of which the last counts. Taking it over is writing the next
number, which the store lets only one of several racers do; a holder only ever changes its own key.
So one that was suspended and wakes up again cannot undo its successor's claim, whatever it does.

Whether a holder is dead is seen at once where its process can be looked up, on the same machine.
Elsewhere its heartbeat is *watched*: a counter that does not move over some periods of the
watcher's own clock. Clocks are never compared, since those of two hosts differ, and a store need
not have one. The price is that being refused takes up to a period, and taking over all of them.

Storage that speaks S3 may let several through that write one number at once, the last of which is
what is there in the end. So on a store that is not ``exclusive`` a racer looks again a moment after
writing, and holds the lease if the number is still its own. Should another write even later, the one
that is not there any more finds out before it writes anything else, as one that was suspended does.
"""

from __future__ import annotations

import json
import shlex
import signal
import sys
import textwrap
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from shifter.errors import RunError, StoreError
from shifter.process import Process
from shifter.store import Store

PERIOD_S = 5.0
"""Seconds between two heartbeats."""
MISSED = 12
"""Periods without a heartbeat after which a holder is taken for dead."""
_MOMENT = 0.5
"""Periods after which whoever looked at a number before it was written has written it."""


@dataclass(frozen=True)
class _Claim:
    """What a key of the lease holds; ``beats`` is the heartbeat's counter."""

    token: str
    process: Process
    command: str
    since: str
    period_s: float
    beats: int = 0
    released: bool = False

    @classmethod
    def new(cls, period_s: float) -> _Claim:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        command = textwrap.shorten(shlex.join(sys.orig_argv), 200, placeholder=" …")
        return cls(uuid.uuid4().hex, Process.this(), command, now, period_s)

    @classmethod
    def decode(cls, data: bytes) -> _Claim:
        try:
            fields: dict[str, Any] = json.loads(data)
            return cls(**fields | {"process": Process.from_json(fields["process"])})
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(
                f"the run's lease was written by another version ({error}): give another --name"
            ) from error

    def encode(self) -> bytes:
        return json.dumps(vars(self) | {"process": self.process.to_json()}, indent=2).encode()

    @property
    def patience_s(self) -> float:
        return MISSED * self.period_s

    def __str__(self) -> str:
        return f"process {self.process.pid} on {self.process.host} since {self.since} ({self.command})"


@dataclass(frozen=True)
class Guard:
    """Asks, wherever it is called, whether a lease is still its holder's; can be sent to workers."""

    store: Store
    folder: str
    token: str

    def __call__(self) -> None:
        """Raises RunError if another driver has the lease by now, or it is gone."""
        _, claim = _last(self.store, self.folder)
        if claim is None or claim.token != self.token:
            raise RunError(
                f"the lease {self.folder} in the store {self.store.uri} is "
                f"{'gone' if claim is None else f'that of {claim}'} by now: nothing more is written here"
            )


class Lease:
    """The right to write a run. Made by :meth:`hold`."""

    def __init__(self, store: Store, folder: str, number: int, claim: _Claim) -> None:
        self._store, self._folder, self._number, self._claim = store, folder, number, claim
        # A heartbeat that comes too late is none: the next one is tried instead.
        self._brisk = store.patient(claim.period_s)
        self._lost: str | None = None
        self._in_main_thread = threading.current_thread() is threading.main_thread()
        self._ended = threading.Event()
        self._turn = threading.Lock()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    @classmethod
    @contextmanager
    def hold(
        cls,
        store: Store,
        folder: str,
        on_wait: Callable[[str], None] = lambda _: None,
        period_s: float = PERIOD_S,
    ) -> Iterator[Lease]:
        """Holds the lease in ``folder`` of ``store``; released at the end, whatever happens.

        If it is lost meanwhile to another driver, the main thread is interrupted as by Ctrl-C, which
        leaves this context as the error that says so; where Ctrl-C is ignored, the next write does.

        Args:
            on_wait: told once, in words, if a holder has to be watched for a while.
            period_s: of the heartbeat.

        Raises:
            RunError: if another driver holds it and is alive; or from inside, if it is lost.
        """
        lease = cls(store, folder, *_take(store, folder, on_wait, period_s))
        lease._thread.start()
        try:
            yield lease
        except KeyboardInterrupt:
            lease._release()
            if lease._lost:
                raise RunError(lease._lost) from None
            raise
        finally:
            lease._release()

    def require(self) -> None:
        """Called before anything of the run is written.

        Raises:
            RunError: if another driver has taken the lease over, as when this process was suspended.
        """
        self._check(self._store)

    @property
    def guard(self) -> Guard:
        """The same question, for those who write on the holder's behalf, in whichever process."""
        return Guard(self._store, self._folder, self._claim.token)

    def _check(self, store: Store) -> None:
        _, claim = _last(store, self._folder)
        if self._lost is None and (claim is None or claim.token != self._claim.token):
            if claim is None:
                self._lost = (
                    f"{self._folder} in the store {self._store.uri} is gone (was the folder removed, or its "
                    "storage unmounted?): this process stops here and writes no more; the same command "
                    "goes on from what is there then"
                )
            else:
                self._lost = (
                    f"the lease {self._folder} in the store {self._store.uri} was taken over by {claim}, "
                    "while this process did not show that it is alive (was it suspended?): it stops here "
                    "and writes no more; the same command goes on when that driver has ended"
                )
        if self._lost is not None:
            raise RunError(self._lost)

    def _keep(self) -> None:
        while not self._ended.wait(self._claim.period_s):
            try:
                self._check(self._brisk)
                with self._turn:
                    if not self._ended.is_set():
                        self._write(replace(self._claim, beats=self._claim.beats + 1))
            except StoreError:
                continue  # silence is what others judge by; whoever publishes will wait or complain
            except RunError:
                with self._turn:
                    if self._in_main_thread and not self._ended.is_set():
                        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                return

    def _release(self) -> None:
        with self._turn:
            if self._ended.is_set():
                return
            self._ended.set()
            with suppress(StoreError):  # then it is found dead instead
                if self._lost is None:
                    self._write(replace(self._claim, released=True))
                elif _last(self._brisk, self._folder)[0] > self._number:
                    # A last heartbeat may have written it again.
                    self._brisk.delete(_key(self._folder, self._number))

    def _write(self, claim: _Claim) -> None:
        self._claim = claim
        self._brisk.replace(_key(self._folder, self._number), claim.encode())


def _take(store: Store, folder: str, on_wait: Callable[[str], None], period_s: float) -> tuple[int, _Claim]:
    mine = _Claim.new(period_s)
    while True:
        number, claim = _last(store, folder)
        if claim is not None and not claim.released and not claim.process.is_known_dead():
            _watch(store, folder, claim, on_wait)
        next = _key(folder, number + 1)
        if not store.create(next, mine.encode()):
            continue  # another one was faster: it is the holder now
        if not store.exclusive:
            time.sleep(_MOMENT * period_s)
        *former, last = store.list(f"{folder}/") or [""]
        if last != next:
            store.delete(next)  # we were so slow that the number had been given and taken back
            continue
        if not store.exclusive and _Claim.decode(store.read(next)).token != mine.token:
            continue
        for key in former:
            store.delete(key)
        return number + 1, mine


def _watch(store: Store, folder: str, claim: _Claim, on_wait: Callable[[str], None]) -> None:
    """Returns if ``claim`` gives no sign of life for its patience, or is given up meanwhile.

    Raises:
        RunError: as soon as it does.
    """
    poll_s = claim.period_s / 2
    on_wait(f"the run is held by {claim}: waiting whether it is alive, for {claim.patience_s:.0f} s at most")
    unchanged = 0.0
    while unchanged < claim.patience_s:
        time.sleep(poll_s)
        began = time.monotonic()
        _, now = _last(store, folder)
        if now is None or now.released or now.process.is_known_dead():
            return
        if (now.token, now.beats) != (claim.token, claim.beats):
            raise RunError(
                f"{folder.rpartition('/')[0]} in the store {store.uri} is being carried out by another "
                f"driver, {now}: wait until it ends, or give another --name. Should it die, it is taken "
                f"for dead at once on its own machine, and elsewhere {now.patience_s:.0f} s after its "
                "last sign of life; the same command then goes on"
            )
        # A store that did not answer for a while could not take a heartbeat either.
        unchanged = unchanged + poll_s if time.monotonic() - began < claim.period_s else 0.0


def _last(store: Store, folder: str) -> tuple[int, _Claim | None]:
    """The claim that counts, and its number; 0 and None if there is none yet."""
    while keys := store.list(f"{folder}/"):
        try:
            claim = _Claim.decode(store.read(keys[-1]))
        except StoreError:
            if store.exists(keys[-1]):
                raise
            continue  # its successor has deleted it meanwhile
        return int(keys[-1].rpartition("/")[2].partition(".")[0]), claim
    return 0, None


def _key(folder: str, number: int) -> str:
    return f"{folder}/{number:06d}.json"
