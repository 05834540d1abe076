"""Module 9: the switcher, a pure state machine from observations to the variant that should serve.

No clock, thread or I/O of its own: a service and a replay of a day's traffic run the same object.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from shifter.errors import EngineError
from shifter.switching.load import Load, Observation, Service
from shifter.switching.policies import Fixed, Policy, Situation, Slo, Trend
from shifter.switching.service_time import ServiceTimes
from shifter.values import Profile

if TYPE_CHECKING:
    from shifter.switching.calibration import Calibration

__all__ = ["Decision", "Fixed", "Observation", "Policy", "Service", "Slo", "Switcher", "Trend"]

_RISES = 3.0
_DWELLS_PER_RISE = 10


@dataclass(frozen=True)
class Decision:
    """The variant that should serve, why, and the rate (requests per second) that it was decided on."""

    variant: str
    reason: str
    rate: float


class Switcher:
    """Decides which variant serves.

    Args:
        profiles: the variants to choose from, smallest first (`Portfolio.profiles`).
        dwell: least seconds between two switches. One switch may go several sizes at once. Only
            memory that has become short is not waited for, since a process without it is killed.
            Switches to a larger variant, which are never urgent, are besides no more than one in
            ten dwells in the long run (three a minute), after three that may follow at once.
        servers: requests that the service computes at once.
        calibration: what was measured on this node, which counts more than the profiles.

    Raises:
        EngineError: if there are no variants, or a setting is out of range.
    """

    def __init__(
        self,
        profiles: Mapping[str, Profile],
        policy: Policy,
        *,
        dwell: float = 2.0,
        servers: int = 1,
        calibration: Calibration | None = None,
    ) -> None:
        if not profiles or dwell < 0 or servers < 1:
            raise EngineError(
                f"a switcher needs a variant, a dwell of at least 0 s and a server: it has "
                f"{len(profiles)}, {dwell} s and {servers}"
            )
        self._profiles = dict(profiles)
        self.policy = policy
        self._dwell = dwell
        self._servers = servers
        self._load = Load()
        self._times = ServiceTimes(profiles, calibration)
        self._suspended: dict[str, float] = {}
        self._last_switch: float | None = None
        self._rises = _RISES
        self._time = 0.0
        self.current = policy.start(profiles)
        """The variant last decided on."""
        self.pinned: str | None = None
        """The variant that is to serve whatever the policy says, as long as there is memory for it."""

    def observe(self, seen: Observation) -> Decision:
        """Takes in what happened since the last call, and decides.

        Answers of variants that it does not have count for the flow, but teach it no service times.
        """
        self._load.add(seen)
        self._times.learn([service for service in seen.services if service.variant in self._profiles])
        if self._last_switch is None:
            # The start counts as a switch: there is nothing yet to judge by.
            self._last_switch = self._time = seen.time
        regained = (seen.time - self._time) / (_DWELLS_PER_RISE * self._dwell) if self._dwell else _RISES
        self._rises, self._time = min(self._rises + regained, _RISES), seen.time
        profiles = self._eligible(seen)
        if self.pinned is not None and self.pinned in profiles:
            return self._hold(self.pinned, seen)
        if self.current not in profiles:
            return self._retreat(profiles, seen)
        chosen, reason = self.policy.choose(self._situation(profiles))
        if chosen != self.current:
            if seen.time - self._last_switch < self._dwell:
                reason = f"{reason}; but it stays for {self._dwell:g} s at least"
            elif not self._may_go_to(chosen):
                reason = f"{reason}; but it went up often of late, and waits"
            else:
                self.current, self._last_switch = chosen, seen.time
        if self.pinned is not None:
            reason = f"{self.pinned} is pinned, and cannot serve now; {reason}"
        return Decision(self.current, reason, self._load.rate)

    @property
    def times(self) -> ServiceTimes:
        """What it expects of the variants' calls."""
        return self._times

    @property
    def profiles(self) -> Mapping[str, Profile]:
        """The variants to choose from, smallest first."""
        return MappingProxyType(self._profiles)

    def renewed(self, profiles: Mapping[str, Profile], calibration: Calibration | None = None) -> Switcher:
        """A switcher of another portfolio that knows what this one does of load and node.

        It begins with the variant of the current one's name, or else where the policy starts. This one
        is not to be used any more once that one observes.

        Raises:
            EngineError: if a fixed variant is not among ``profiles``.
        """
        new = copy.copy(self)
        new._profiles, new._suspended = dict(profiles), {}
        new._times = self._times.renewed(profiles, calibration)
        new.current = self.current if self.current in profiles else self.policy.start(profiles)
        return new

    def _may_go_to(self, chosen: str) -> bool:
        """Whether it is smaller, or going up has not been too frequent; if so, it counts."""
        names = list(self._profiles)
        if names.index(chosen) > names.index(self.current):
            if self._rises < 1:
                return False
            self._rises -= 1
        return True

    def _eligible(self, seen: Observation) -> Mapping[str, Profile]:
        """The variants that there is memory for, less the suspended; the current one if that leaves none."""
        found = {
            name: profile
            for name, profile in self._affordable(seen.free_bytes).items()
            if name == self.current or self._suspended.get(name, seen.time) <= seen.time
        }
        return found or {self.current: self._profiles[self.current]}

    def _affordable(self, free_bytes: int | None) -> Mapping[str, Profile]:
        """The variants that there is memory for; the one that takes the least, if there are none."""
        if free_bytes is None or isinstance(self.policy, Fixed):
            return self._profiles
        least = min(profile.memory_bytes for profile in self._profiles.values())
        limit = max(free_bytes, least)
        return {name: one for name, one in self._profiles.items() if one.memory_bytes <= limit}

    def _hold(self, name: str, seen: Observation) -> Decision:
        """The pinned one, at once."""
        if name != self.current:
            self.current, self._last_switch = name, seen.time
        return Decision(name, f"{name} is pinned", self._load.rate)

    def _retreat(self, profiles: Mapping[str, Profile], seen: Observation) -> Decision:
        """To the next smaller one of ``profiles``, whatever the policy."""
        taken, free = self._profiles[self.current].memory_bytes, seen.free_bytes
        reason = f"{self.current} takes {taken} bytes of memory, and variants may take {free}"
        names = list(self._profiles)
        smaller = [name for name in names[: names.index(self.current)] if name in profiles]
        self.current = smaller[-1] if smaller else next(iter(profiles))
        self._last_switch = seen.time
        return Decision(self.current, reason, self._load.rate)

    def _situation(self, profiles: Mapping[str, Profile]) -> Situation:
        load, servers = self._load, self._servers
        return Situation(
            profiles=profiles,
            current=self.current,
            service_seconds={name: self._times.predict(name, load.request_images) for name in profiles},
            rate=load.rate,
            surge=load.surge,
            peak=load.peak,
            # Those being computed are not waiting.
            waiting=max(0, load.queue - servers),
            standing=max(0, load.standing_queue - servers),
            arrived=load.arrived,
            answered=load.answered,
            servers=servers,
        )

    def suspend(self, variant: str, until: float) -> None:
        """Does without a variant for some time: it could not be made ready, though it may run here."""
        self._suspended[variant] = until

    def exclude(self, variant: str, serving: str) -> None:
        """Takes out a variant that turned out not to run on this node; ``serving`` still serves."""
        assert variant != serving, variant
        self._profiles.pop(variant, None)
        if self.current == variant:
            self.current = serving
