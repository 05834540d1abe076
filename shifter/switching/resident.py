"""A portfolio resident in memory: all of it deflated, and the engines of the variants that are inflated."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple, Protocol

from shifter.errors import EngineError
from shifter.switching.engines import Engine, QuickEngine, ready, warm_up
from shifter.switching.memory import Memory, building_bytes, smallest
from shifter.values import InputSpec, Profile, Variant

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
    """One portfolio and its engines. Any thread may read ``active``; the rest is the switching one's.

    Args:
        profiles: the variants that may serve, smallest first.
        memory: where what it takes is counted.
        ahead_bytes: the most that neighbours inflated ahead may take.
        current: the variant that serves first.
        beside: what stays in memory until this one serves: another portfolio, and its engine.

    Raises:
        EngineError, PackageError, MemoryError: if ``current`` cannot be inflated or run.
    """

    def __init__(
        self,
        portfolio: Deflated,
        profiles: Mapping[str, Profile],
        build: Build,
        memory: Memory,
        ahead_bytes: int,
        current: str,
        beside: Collection[object] = (),
    ) -> None:
        self.portfolio = portfolio
        self.profiles = dict(profiles)
        self._build = build
        self._memory = memory
        self._ahead_bytes = ahead_bytes
        memory.count(portfolio, portfolio.deflated_bytes)
        self.ready: dict[str, Engine] = {}
        self._quick: list[str] = []
        self.make_ready(current, beside)
        # Replaced as a whole, never changed: who has read it holds a name and an engine that belong together.
        self.active = Active(current, self.ready[current])

    def activate(self, name: str) -> None:
        """Lets a variant that is ready serve, from the next request on."""
        self.active = Active(name, self.ready[name])

    def steps_to(self, name: str) -> tuple[str, ...]:
        """What has to serve on the way: nothing, or the smallest where the memory does not hold the pair."""
        if self._memory.limit is None or name in self.ready:
            return (name,)
        active, first = self.profiles[self.active.name], smallest(self.profiles)
        pair = self.portfolio.deflated_bytes + active.memory_bytes + building_bytes(self.profiles[name])
        return (name,) if pair <= self._memory.limit or name == first else (first, name)

    def make_ready(self, name: str, beside: Collection[object] = ()) -> None:
        """Inflates a variant, builds its engine and warms it up; within a budget, once there is room for it.

        Raises:
            EngineError, PackageError, MemoryError: if it does not run on this node, or never has room.
        """
        if name in self.ready:
            return
        profile = self.profiles[name]
        if self._memory.limit is not None:
            self._memory.wait_until_only([self.portfolio, *self.ready.values(), *beside])
            needed = self._memory.taken + building_bytes(profile)
            if needed > self._memory.limit:
                raise EngineError(
                    f"memory_bytes is {self._memory.limit}: {name}, and what stays beside it, take {needed}"
                )
        engine = ready(self.portfolio.inflate(name), self.portfolio.input_spec.shape, self._build)
        if isinstance(engine, QuickEngine):  # which needs the tensors as long as it is one
            self._quick.append(name)
            self._memory.count(engine, building_bytes(profile))
        else:
            self._memory.count(engine, profile.memory_bytes)
        self.ready = {**self.ready, name: engine}

    def optimise(self) -> None:
        """Makes engines that were built quickly as fast as they can be; requests are answered meanwhile."""
        while self._quick:
            name = self._quick.pop()
            engine = self.ready.get(name)
            if isinstance(engine, QuickEngine):
                try:
                    engine.optimise()
                except (EngineError, MemoryError) as problem:
                    _log.warning("%s stays as it was built quickly: %s", name, problem)
                else:
                    warm_up(engine, self.portfolio.input_spec.shape)
                    self._memory.count(engine, self.profiles[name].memory_bytes)

    def keep(self, names: Iterable[str]) -> bool:
        """Drops every engine but the active one and those of ``names``; whether there was one to drop."""
        kept = {self.active.name, *names}
        before = len(self.ready)
        self.ready = {name: engine for name, engine in self.ready.items() if name in kept}
        return len(self.ready) < before

    def exclude(self, name: str) -> None:
        """Takes out a variant that does not run on this node."""
        del self.profiles[name]

    def ahead(self, free: int | None) -> tuple[str, ...]:
        """The neighbours in size of the active variant that the memory holds besides, smaller one first.

        Args:
            free: what engines may take, in bytes; None if that is not known.
        """
        names = list(self.profiles)
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
