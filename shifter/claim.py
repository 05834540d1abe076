"""Claims to a lease, and how one prevails over its rivals. See :mod:`shifter.lease`.

A claim is a key that nobody but its owner writes, so a write that arrives late undoes no other's. The
key's name says which number is claimed, by whom, and whether it is *held* (``000005-<token>.json``)
or only a *bid* for it (``.bid``). Who holds the greatest number holds the lease.

A bid is written before its owner looks round. So of two bidders at least one sees the other, however
long a write is under way. Who sees a holder that lives gives way; so does who sees a bid ahead of its
own in the order of names; the first waits until those behind have given way. Having written that it
holds the number, it looks once more: a rival may have taken it for dead while it was suspended, or
been suspended itself. Who finds another holder then gives way, both of them if they find each other.
All this needs of the store is that a listing shows what was written before.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
import textwrap
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from shifter.errors import RunError, StoreError
from shifter.process import Process
from shifter.store import Store

MISSED = 12
"""Periods without a heartbeat after which a holder is taken for dead."""


class GoneError(Exception):
    """A holder's key is there no more, and no successor's."""


@dataclass(frozen=True)
class Claim:
    """What a key of the lease holds; ``beats`` is the heartbeat's counter."""

    token: str
    process: Process
    command: str
    since: str
    period_s: float
    beats: int = 0
    released: bool = False

    @classmethod
    def new(cls, period_s: float) -> Claim:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        command = textwrap.shorten(shlex.join(sys.orig_argv), 200, placeholder=" …")
        return cls(uuid.uuid4().hex, Process.this(), command, now, period_s)

    @classmethod
    def decode(cls, data: bytes) -> Claim:
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

    @property
    def has_ended(self) -> bool:
        """Given back, or its process is known to be dead."""
        return self.released or self.process.is_known_dead()

    def __str__(self) -> str:
        return f"process {self.process.pid} on {self.process.host} since {self.since} ({self.command})"


@dataclass(frozen=True, order=True)
class Title:
    """What a key's name says. Ordered as bids go ahead of each other."""

    number: int
    token: str
    held: bool

    @classmethod
    def all(cls, store: Store, folder: str) -> list[Title]:
        """Those in the folder; what else may be there is none."""
        keys = store.list(f"{folder}/")
        # Before there were bids, a holder's name was its number alone.
        found = [re.fullmatch(r"(\d+)(?:-(\w+))?\.(json|bid)", key.rpartition("/")[2]) for key in keys]
        return sorted(cls(int(name[1]), name[2] or "", name[3] == "json") for name in found if name)

    def key(self, folder: str) -> str:
        token = f"-{self.token}" if self.token else ""
        return f"{folder}/{self.number:06d}{token}.{'json' if self.held else 'bid'}"

    def read(self, store: Store, folder: str) -> Claim | None:
        """None if it is not there any more. Raises RunError if another version wrote it."""
        key = self.key(folder)
        try:
            return Claim.decode(store.read(key))
        except StoreError:
            if not store.exists(key):
                return None
        return Claim.decode(store.read(key))  # it was written again meanwhile, by a late write


def successor(store: Store, folder: str, mine: Title) -> Claim | None:
    """Who holds the lease instead of ``mine``; None if that still does.

    Raises:
        GoneError: if nobody does.
    """
    while True:
        titles = Title.all(store, folder)
        later = [title for title in titles if title.held and title.number > mine.number]
        if not later:
            if mine not in titles:
                raise GoneError
            return None
        claim = later[-1].read(store, folder)
        if claim is not None:
            return claim  # else that one has a successor itself by now


def take(store: Store, folder: str, on_wait: Callable[[str], None], period_s: float) -> tuple[Title, Claim]:
    """Makes this process the holder.

    Raises:
        RunError: if another driver is, and is alive.
    """
    mine = Claim.new(period_s)
    brisk = store.patient(period_s)
    over: dict[Title, Claim] = {}  # claims that have ended, or showed no life, as they were then
    while True:
        last, others = _that_count(Title.all(store, folder))
        alive = _alive(store, folder, others, over)
        if alive:
            over |= _watch(store, folder, *alive[0], on_wait)
            continue
        bid, title = (Title(last + 1, mine.token, held) for held in (False, True))
        titles: list[Title] = []
        prevails = False
        try:
            if _all_give_way(store, folder, bid, mine, over):
                store.replace(title.key(folder), mine.encode())
                titles = Title.all(store, folder)
                rivals = [t for t in titles if t.held and t.number >= last and t != title and t not in over]
                prevails = title in titles and not rivals
        finally:
            with suppress(StoreError):  # then they are void, or found dead
                brisk.delete(bid.key(folder))
                if not prevails:
                    brisk.delete(title.key(folder))
        if prevails:
            for former in titles:
                if former.number < title.number:
                    store.delete(former.key(folder))
            return title, mine


def _that_count(titles: list[Title]) -> tuple[int, list[Title]]:
    """The greatest number that is held, and: who holds it, and the bids for greater ones."""
    last = max((title.number for title in titles if title.held), default=0)
    return last, [title for title in titles if title.number > last - title.held]


def _alive(
    store: Store, folder: str, titles: list[Title], over: dict[Title, Claim]
) -> list[tuple[Title, Claim]]:
    """Those that may be; the others are added to those that are ``over``."""
    alive = []
    for title in titles:
        claim = title.read(store, folder)
        if claim is None:
            continue  # its owner has gone on: whoever looks again sees where to
        if claim.has_ended:
            over[title] = claim
        if over.get(title) != claim:
            alive.append((title, claim))
    return alive


def _all_give_way(store: Store, folder: str, bid: Title, mine: Claim, over: dict[Title, Claim]) -> bool:
    """Makes a bid; whether it is the one that is left."""
    store.replace(bid.key(folder), mine.encode())
    end = time.monotonic() + mine.patience_s
    while True:
        _, others = _that_count(Title.all(store, folder))
        if bid not in others:
            return False  # the number is held by now
        others.remove(bid)
        alive = _alive(store, folder, others, over)
        if any(title.held or title < bid for title, _ in alive):
            return False
        if not alive:
            return True
        if time.monotonic() > end:
            over |= dict(alive)  # they would have given way long ago
        time.sleep(mine.period_s / 10)


def _watch(
    store: Store, folder: str, title: Title, claim: Claim, on_wait: Callable[[str], None]
) -> dict[Title, Claim]:
    """``claim``, if it gives no sign of life for its patience; nothing if it is given up meanwhile.

    Raises:
        RunError: as soon as it does.
    """
    poll_s = claim.period_s / 2
    on_wait(f"the run is held by {claim}: waiting whether it is alive, for {claim.patience_s:.0f} s at most")
    unchanged = 0.0
    while unchanged < claim.patience_s:
        time.sleep(poll_s)
        began = time.monotonic()
        now = title.read(store, folder)
        if now is None or now.has_ended:
            return {}
        if now != claim:
            raise RunError(
                f"{folder.rpartition('/')[0]} in the store {store.uri} is being carried out by another "
                f"driver, {now}: wait until it ends, or give another --name. Should it die, it is taken "
                f"for dead at once on its own machine, and elsewhere {now.patience_s:.0f} s after its "
                "last sign of life; the same command then goes on"
            )
        # A store that did not answer for a while could not take a heartbeat either.
        unchanged = unchanged + poll_s if time.monotonic() - began < claim.period_s else 0.0
    return {title: claim}
