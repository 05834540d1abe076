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
from shifter.switching.policies import Fixed, Policy, Situation, Slo
from shifter.switching.service_time import ServiceTimes
from shifter.values import Profile

if TYPE_CHECKING:
    from shifter.switching.calibration import Calibration

__all__ = ["Decision", "Fixed", "Observation", "Policy", "Service", "Slo", "Switcher"]


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
        dwell: least seconds between two switches. One switch may go several sizes at once.
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
        self._last_switch: float | None = None
        self.current = policy.start(profiles)
        """The variant last decided on."""

    def observe(self, seen: Observation) -> Decision:
        """Takes in what happened since the last call, and decides."""
        self._load.add(seen)
        self._times.learn(seen.services)
        size = self._load.request_images
        now = Situation(
            profiles=self._profiles,
            current=self.current,
            service_seconds={name: self._times.predict(name, size) for name in self._profiles},
            requests_per_second=self._load.rate,
            peak_requests_per_second=self._load.peak,
            surge_requests_per_second=self._load.surge,
            # Those being computed are not waiting.
            waiting=max(0.0, self._load.queue - self._servers),
            servers=self._servers,
        )
        chosen, reason = self.policy.choose(now)
        if self._last_switch is None:
            # The start counts as a switch: there is nothing yet to judge by.
            self._last_switch = seen.time
        if chosen != self.current:
            if seen.time - self._last_switch < self._dwell:
                reason = f"{reason}; but it stays for {self._dwell:g} s at least"
            else:
                self.current, self._last_switch = chosen, seen.time
        return Decision(self.current, reason, self._load.rate)

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
        new._profiles = dict(profiles)
        new._times = self._times.renewed(profiles, calibration)
        new.current = self.current if self.current in profiles else self.policy.start(profiles)
        return new

    def exclude(self, variant: str, serving: str) -> None:
        """Takes out a variant that turned out not to run on this node; ``serving`` still serves."""
        assert variant != serving, variant
        self._profiles.pop(variant, None)
        if self.current == variant:
            self.current = serving
