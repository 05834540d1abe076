"""What is inflated, for the policy, ahead of it, and for who needs it, and what is given back."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

from shifter.errors import EngineError, NeedsError, OverloadError, PackageError
from shifter.heap import trim
from shifter.switching.backoff import Backoff
from shifter.switching.memory import Memory, NoRoomError, building_bytes
from shifter.switching.resident import Deflated, Resident
from shifter.switching.status import Inflation, Switch
from shifter.switching.switcher import Decision, Switcher

_REMEMBERED = 200
_TRIMS = 2
_NEEDED_S = 60.0
"""What was inflated for a request is kept so long after the last one that needed it."""
_HELD_S = 1.0
"""And not given up for other needs within this."""
_NEEDS_PATIENCE_S = 0.2

Problem = Callable[[], Exception]


class Changes:
    """Of the thread that switches; any may read the records.

    Args:
        memory: where what exists is counted. free_memory: bytes that the node has left, if known.
        clock: seconds.
    """

    def __init__(
        self, memory: Memory, free_memory: Callable[[], int | None], clock: Callable[[], float]
    ) -> None:
        self._memory, self._free_memory, self._clock = memory, free_memory, clock
        self._backoff = Backoff()
        self._gone = self._trims = 0
        self._coming: tuple[Deflated, int] | None = None
        self.switches: deque[Switch] = deque(maxlen=_REMEMBERED)
        self.inflations: deque[Inflation] = deque(maxlen=_REMEMBERED)

    def expect(self, coming: Deflated | None, building: int = 0) -> None:
        """Leaves room for a portfolio that is to serve next, whose first variant takes ``building`` bytes."""
        self._coming = None if coming is None else (coming, building)

    def forget_failures(self) -> None:
        """They were of another portfolio's variants."""
        self._backoff = Backoff()

    def free_bytes(self, here: Resident) -> int | None:
        """What engines may take, those that exist included: of the budget, and of the node's memory."""
        package, limit, left = here.portfolio.deflated_bytes, self._memory.limit, self._free_memory()
        taken, building = self._memory.taken, 0
        if self._coming is not None:
            coming, building = self._coming
            package += coming.deflated_bytes
        known = [] if limit is None else [limit - package - building]
        known += [] if left is None else [left + taken - package - building]
        return min(known, default=None)

    def switch(self, here: Resident, switcher: Switcher, decision: Decision, free: int | None) -> Decision:
        """Does it; returns what serves now, and why."""
        begin = self._clock()
        ahead = decision.variant in here.ready
        if not ahead:
            # What is ready but neither serves nor will, nor is needed, is in the way of what is to come.
            needed = here.asked(begin - _NEEDED_S)
            there = (here.active.name, *needed)
            takes = self._engines_bytes(here, there) + building_bytes(here.profiles[decision.variant])
            here.keep(needed if free is None or takes <= free else ())
        for after in here.steps_to(decision.variant):
            before = here.active.name
            error = self._make_ready(here, switcher, after, decision.reason)
            if error is not None:
                switcher.current = before
                for each in (after, decision.variant):
                    switcher.suspend(each, self._backoff.until(after))
                return Decision(before, f"{after} cannot serve: {error}", decision.rate)
            here.activate(after)
            seconds = self._clock() - begin
            self.switches.append(Switch(time.time(), before, after, decision.reason, seconds, ahead))
            if after != decision.variant:  # the step in between is there to make room
                here.keep(())
                here.optimise()
        return decision

    def inflate_ahead(self, here: Resident, switcher: Switcher, free: int | None) -> None:
        """The neighbours in size of what serves; gives back what is neither that nor needed."""
        now = self._clock()
        needed = list(here.asked(now - _NEEDED_S))
        while free is not None and needed and self._engines_bytes(here, (here.active.name, *needed)) > free:
            needed.pop()
        wanted = here.ahead(None if free is None else free - self._engines_bytes(here, needed))
        here.keep((*needed, *wanted))
        for name in wanted:
            # Room that requests still take is not waited for.
            if name in here.profiles and self._backoff.until(name) <= now and here.has_room(name):
                self._make_ready(here, switcher, name, "inflated ahead")
                here.optimise()

    def inflate_for(self, here: Resident, switcher: Switcher, able: tuple[str, ...]) -> Problem | None:
        """One of ``able``, for a request; None once it is ready, or else what to tell the request."""
        if here.engine_for(able) is not None:
            return None
        retry_s, why = math.inf, "its tensors and its engine have no room beside what serves"
        for name in able:
            wait = self._backoff.until(name) - (now := self._clock())
            if name not in here.profiles:
                continue
            if wait <= 0 and self._make_room(here, name, now):
                error = self._make_ready(here, switcher, name, "a request needs it", _NEEDS_PATIENCE_S)
                if error is None:
                    here.ask(name, now)
                    return None
                wait, why = self._backoff.until(name) - now, error
            retry_s = min(retry_s, max(wait, _HELD_S))
        names = " or ".join(able)
        if not any(name in here.profiles for name in able):
            return lambda: NeedsError(f"{names} cannot serve on this node: {why}")
        retry = math.ceil(retry_s)
        return lambda: OverloadError(f"{names} cannot be inflated now: {why}; ask again in {retry} s", retry)

    def give_back(self) -> None:
        """The memory of engines that are gone; a tick later again, as one is gone just before its memory."""
        if self._gone != (gone := self._memory.gone):
            self._gone, self._trims = gone, _TRIMS
        if self._trims:
            self._trims -= 1
            trim()

    def _make_ready(
        self, here: Resident, switcher: Switcher, name: str, reason: str, patience_s: float | None = None
    ) -> str | None:
        """Returns None, or why it failed; then the others serve on without it, for now or for good."""
        if name in here.ready:
            return None
        begin = self._clock()
        beside = () if self._coming is None else (self._coming[0],)
        try:
            here.make_ready(name, beside, patience_s)
        except (NoRoomError, TimeoutError, MemoryError) as problem:
            # Not the variant's fault: when others have given memory back, it will run.
            self._backoff.failed(name, self._clock())
            error = f"{type(problem).__name__}: {problem}"
        except (EngineError, PackageError) as problem:
            # It will not run next time either.
            for each in here.exclude(name):
                switcher.exclude(each, here.active.name)
            error = f"{type(problem).__name__}: {problem}"
        else:
            self._backoff.worked(name)
            self.inflations.append(Inflation(time.time(), name, self._clock() - begin, reason))
            return None
        seconds = self._clock() - begin
        self.switches.append(Switch(time.time(), here.active.name, name, reason, seconds, False, error))
        return error

    def _make_room(self, here: Resident, name: str, now: float) -> bool:
        """Gives up what has to be for it, if that is enough: what is ahead, and needed no more just now."""
        free = self.free_bytes(here)
        held = [here.active.name, *here.asked(now - _HELD_S)]
        others = [each for each in here.asked(-math.inf) if each not in held]
        others += [each for each in here.ready if each not in (*held, *others)]
        takes = building_bytes(here.profiles[name])
        while free is not None and takes + self._engines_bytes(here, (*held, *others)) > free:
            if not others:
                return False
            others.pop()
        here.keep((*held, *others))
        if not here.has_room(name):
            here.optimise()  # an engine that was built quickly holds on to its tensors
        return True

    @staticmethod
    def _engines_bytes(here: Resident, names: tuple[str, ...] | list[str]) -> int:
        return sum(here.profiles[name].memory_bytes for name in set(names))
