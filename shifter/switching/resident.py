"""A portfolio resident in memory: all of it deflated, and the engines of the variants that are inflated."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from shifter.errors import EngineError
from shifter.switching.backoff import Backoff
from shifter.switching.engines import ONE_AND_MORE, Engine, QuickEngine, ready, warm_up
from shifter.switching.memory import Memory, Reservation, building_bytes, smallest, usable
from shifter.switching.needs import Needs
from shifter.switching.pace import Pace
from shifter.values import InputSpec, Profile, Variant

PATIENCE_S = 10.0
"""How long room that requests still take is waited for."""

_log = logging.getLogger(__name__)


Build = Callable[[Variant], Engine]
"""Makes the engine of an inflated variant."""


class Deflated(Protocol):
    """What serving needs of a portfolio (`shifter.portfolio.Portfolio`)."""

    @property
    def model(self) -> str: ...

    @property
    def digest(self) -> str: ...

    @property
    def deflated_bytes(self) -> int: ...

    @property
    def profiles(self) -> Mapping[str, Profile]: ...

    @property
    def input_spec(self) -> InputSpec: ...

    def inflate(self, name: str) -> Variant: ...

    def verify(self) -> None: ...


class Active(NamedTuple):
    """The variant that serves, and its engine."""

    name: str
    engine: Engine


class Resident:
    """One portfolio and its engines.

    Any thread may read ``active``, `engine_for` and `able`; the rest is the switching one's.

    Args:
        profiles: the variants that may serve, smallest first.
        chosen: those of them that the policy may choose; the others serve who needs them.
        pace: how long their calls take.
        memory: where what it takes is counted.
        ahead_bytes: the most that neighbours inflated ahead may take.
        current: the variant that serves first.
        room: what is reserved for ``current``, if it is; given up here.

    Raises:
        EngineError, PackageError, MemoryError: if ``current`` cannot be inflated or run.
    """

    def __init__(
        self,
        portfolio: Deflated,
        profiles: Mapping[str, Profile],
        chosen: Collection[str],
        pace: Pace,
        build: Build,
        memory: Memory,
        ahead_bytes: int,
        current: str,
        room: Reservation | None = None,
    ) -> None:
        self.portfolio = portfolio
        self.profiles = dict(profiles)
        self.pace = pace
        self._chosen = frozenset(chosen)
        self._build = build
        self._memory = memory
        self._ahead_bytes = ahead_bytes
        memory.count(portfolio, portfolio.deflated_bytes)
        self.ready: dict[str, Engine] = {}
        self._quick: list[str] = []
        self._backoff = Backoff()
        self._asked: dict[str, float] = {}
        self.make_ready(current, room=room, calls=ONE_AND_MORE)
        # Replaced as a whole, never changed: who has read it holds a name and an engine that belong together.
        self.active = Active(current, self.ready[current])

    def able(self, needs: Needs) -> tuple[str, ...] | None:
        """The variants that meet them, the fastest first; None if any does.

        Raises:
            NeedsError: if there are none.
        """
        return needs.met_by(self.portfolio.profiles, self.profiles) if needs else None

    def engine_for(self, able: tuple[str, ...] | None) -> Active | None:
        """That of the active variant if it is one of ``able``, else of the first that is ready, if one is."""
        active, ready = self.active, self.ready
        if able is None or active.name in able:
            return active
        return next((Active(name, ready[name]) for name in able if name in ready), None)

    def ask(self, name: str, now: float) -> None:
        """Takes note that a request needs it, for which it is kept for some time."""
        self._asked[name] = now

    def asked(self, since: float) -> tuple[str, ...]:
        """The variants that are ready and were needed since then, the last one first."""
        ready, asked = self.ready, self._asked.copy()
        recent = [name for name, time in asked.items() if time >= since and name in ready]
        return tuple(sorted(recent, key=lambda name: -asked[name]))

    def activate(self, name: str) -> None:
        """Lets a variant that is ready serve, from the next request on."""
        self.active = Active(name, self.ready[name])

    def steps_to(self, name: str) -> tuple[str, ...]:
        """What has to serve on the way: nothing, or the smallest where the memory does not hold the pair."""
        if self._memory.limit is None or name in self.ready:
            return (name,)
        active, first = self.profiles[self.active.name], smallest(self.profiles)
        pair = self.portfolio.deflated_bytes + active.memory_bytes + building_bytes(self.profiles[name])
        if pair <= self._memory.limit or first in (name, self.active.name):
            return (name,)
        return (first, name)

    def make_ready(
        self,
        name: str,
        beside: Collection[object] = (),
        patience_s: float | None = None,
        room: Reservation | None = None,
        calls: Sequence[int] = (1,),
    ) -> None:
        """Inflates a variant, builds its engine and warms it up; within a budget, once there is room for it.

        Args:
            beside: what stays in memory besides this portfolio and what is ready of it.
            room: what is reserved for it already; given up here.
            calls: see `shifter.switching.engines.warm_up`.

        Raises:
            EngineError, PackageError: if it does not run on this node.
            NoRoomError, TimeoutError: if there is no room beside what stays, or none soon.
            MemoryError: if there is not enough of it now.
        """
        if name in self.ready:
            return
        profile = self.profiles[name]
        kept = [self.portfolio, *self.ready.values(), *beside]
        if room is None:
            patience_s = PATIENCE_S if patience_s is None else patience_s
            room = self._memory.reserve(name, building_bytes(profile), kept, patience_s)
        try:
            engine = ready(self.portfolio.inflate(name), self.portfolio.input_spec, self._build, calls)
            is_quick = isinstance(engine, QuickEngine)  # which needs the tensors as long as it is one
            takes = building_bytes(profile) if is_quick else profile.memory_bytes
            self._memory.count(engine, takes, instead_of=room)
        finally:
            self._memory.give_up(room)
        if is_quick and name not in self._quick:
            self._quick.append(name)
        self.ready = {**self.ready, name: engine}

    def optimise(self) -> None:
        """Makes engines that were built quickly as fast as they can be; requests are answered meanwhile.

        Each by a copy of it that takes its place: the quick one answers on if the other does not run, and
        counts with its tensors until its last request is answered.
        """
        for name in self._quick[:]:
            quick = self.ready.get(name)
            if not isinstance(quick, QuickEngine):
                self._quick.remove(name)
            elif self._backoff.until(name) <= time.monotonic():
                fast = copy.copy(quick)
                try:
                    fast.optimise()
                    warm_up(fast, self.portfolio.input_spec)
                except (EngineError, MemoryError) as problem:
                    self._backoff.failed(name, time.monotonic())
                    _log.warning("%s stays as it was built quickly for now: %s", name, str(problem))
                else:
                    self._backoff.worked(name)
                    self._quick.remove(name)
                    self._replace(name, quick, fast)

    def _replace(self, name: str, quick: Engine, fast: Engine) -> None:
        profile = self.profiles[name]
        self._memory.count(fast, profile.memory_bytes)
        self._memory.count(quick, profile.tensor_bytes)  # its session counted, and goes with it
        self.ready = {**self.ready, name: fast}
        if self.active.engine is quick:
            self.active = Active(name, fast)

    def keep(self, names: Iterable[str]) -> None:
        """Drops every engine but the active one and those of ``names``."""
        kept = {self.active.name, *names}
        self.ready = {name: engine for name, engine in self.ready.items() if name in kept}

    def has_room(self, name: str) -> bool:
        """Whether `make_ready` would find room at once."""
        limit = self._memory.limit
        return limit is None or self._memory.taken + building_bytes(self.profiles[name]) <= limit

    def exclude(self, name: str) -> tuple[str, ...]:
        """Takes out a variant that does not run on this node, and what cannot be reached without it.

        Returns: all that is out.
        """
        before = self.profiles
        others = {other: profile for other, profile in before.items() if other != name}
        left = usable(others, self.portfolio.deflated_bytes, self._memory.limit)
        if self.active.name not in left:  # beside which there is no room even for the smallest
            left = {self.active.name: before[self.active.name]}
        self.profiles = left
        self.ready = {ready: engine for ready, engine in self.ready.items() if ready in left}
        return tuple(other for other in before if other not in left)

    def ahead(self, free: int | None) -> tuple[str, ...]:
        """The neighbours in size of the active variant that the memory holds besides, smaller one first.

        Args:
            free: what engines may take, in bytes; None if that is not known.
        """
        names = [name for name in self.profiles if name in self._chosen or name == self.active.name]
        here = names.index(self.active.name)
        wanted: list[str] = []
        for neighbour in (here - 1, here + 1):
            if 0 <= neighbour < len(names) and self._holds_ahead([*wanted, names[neighbour]], free):
                wanted.append(names[neighbour])
        return tuple(wanted)

    def _holds_ahead(self, names: Iterable[str], free: int | None) -> bool:
        profiles = [self.profiles[name] for name in names]
        engines = sum(profile.memory_bytes for profile in profiles)
        if engines > self._ahead_bytes or free is None:
            return engines <= self._ahead_bytes
        # Any of them may be the one that is built last.
        last = max(profile.tensor_bytes for profile in profiles)
        return self.profiles[self.active.name].memory_bytes + engines + last <= free
