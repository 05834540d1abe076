"""A run has one driver at a time: the holder of its lease.

The lease is a folder of numbered claims (:mod:`shifter.claim`), of which the last counts. Taking it
over is to claim the next number; a holder only ever changes its own key. So one that was suspended and
wakes up again cannot undo its successor's claim, and one whose writes are late cannot undo the holder's.

Whether a holder is dead is seen at once where its process can be looked up, on the same machine.
Elsewhere its heartbeat is *watched*: a counter that does not move over some periods of the
watcher's own clock. Clocks are never compared, since those of two hosts differ, and a store need
not have one. The price is that being refused takes up to a period, and taking over all of them.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from shifter.claim import Claim, GoneError, Title, successor, take
from shifter.errors import RunError, StoreError
from shifter.store import Store

PERIOD_S = 5.0
"""Seconds between two heartbeats."""


@dataclass(frozen=True)
class Guard:
    """Asks, wherever it is called, whether a lease is still its holder's; can be sent to workers."""

    store: Store
    folder: str
    title: Title

    def __call__(self) -> None:
        """Raises RunError if another driver has the lease by now, or it is gone."""
        try:
            claim = successor(self.store, self.folder, self.title)
        except GoneError:
            now = "gone"
        else:
            if claim is None:
                return
            now = f"that of {claim}"
        raise RunError(
            f"the lease {self.folder} in the store {self.store.uri} is {now} by now: "
            "nothing more is written here"
        )


class Lease:
    """The right to write a run. Made by :meth:`hold`."""

    def __init__(self, store: Store, folder: str, title: Title, claim: Claim) -> None:
        self._store, self._folder, self._title, self._claim = store, folder, title, claim
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
            on_wait: told, in words, when another driver has to be watched for a while.
            period_s: of the heartbeat.

        Raises:
            RunError: if another driver holds it and is alive; or from inside, if it is lost.
        """
        lease = cls(store, folder, *take(store, folder, on_wait, period_s))
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
        return Guard(self._store, self._folder, self._title)

    def _check(self, store: Store) -> None:
        if self._lost is None:
            self._lost = self._loss(store)
        if self._lost is not None:
            raise RunError(self._lost)

    def _loss(self, store: Store) -> str | None:
        try:
            claim = successor(store, self._folder, self._title)
        except GoneError:
            return (
                f"{self._folder} in the store {self._store.uri} is gone (was the folder removed, or its "
                "storage unmounted?): this process stops here and writes no more; the same command "
                "goes on from what is there then"
            )
        if claim is None:
            return None
        return (
            f"the lease {self._folder} in the store {self._store.uri} was taken over by {claim}, "
            "while this process did not show that it is alive (was it suspended?): it stops here "
            "and writes no more; the same command goes on when that driver has ended"
        )

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
                else:
                    # A last heartbeat may have written it again.
                    self._brisk.delete(self._title.key(self._folder))

    def _write(self, claim: Claim) -> None:
        self._claim = claim
        self._brisk.replace(self._title.key(self._folder), claim.encode())
