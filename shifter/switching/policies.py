"""Policies: which variant should serve, given the load. Pure functions of a `Situation`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from shifter.errors import EngineError
from shifter.values import Profile


@dataclass(frozen=True)
class Situation:
    """What a policy decides on.

    Args:
        profiles: the variants to choose from, smallest first.
        current: the one that serves.
        service_seconds: predicted time of one mean request, per variant.
        requests_per_second: rate of arrivals now. peak_requests_per_second: its highest of late;
        surge_requests_per_second: where it is going, if it has just risen (see `Load`).
        waiting: standing queue, in requests.
        servers: requests computed at once.
    """

    profiles: Mapping[str, Profile]
    current: str
    service_seconds: Mapping[str, float]
    requests_per_second: float
    peak_requests_per_second: float
    surge_requests_per_second: float
    waiting: float
    servers: int


class Policy(Protocol):
    """What the `Switcher` asks."""

    def start(self, profiles: Mapping[str, Profile]) -> str:
        """The variant to begin with."""

    def choose(self, now: Situation) -> tuple[str, str]:
        """The variant that should serve, one of ``now.profiles``, and why, in one line for people."""


def median(profiles: Mapping[str, Profile]) -> str:
    """The variant of median size; of two, the smaller."""
    return list(profiles)[(len(profiles) - 1) // 2]


@dataclass(frozen=True)
class Fixed:
    """Always the same variant."""

    variant: str

    def start(self, profiles: Mapping[str, Profile]) -> str:
        """Raises EngineError, with the names there are, if ``variant`` is not among them."""
        if self.variant not in profiles:
            raise EngineError(
                f"no variant is called {self.variant!r}; the portfolio has {', '.join(profiles)}"
            )
        return self.variant

    def choose(self, now: Situation) -> tuple[str, str]:
        return now.current, f"{now.current} is fixed"


@dataclass(frozen=True)
class Slo:
    """The most accurate variant that carries the load within the latency objective.

    A variant carries it if it is busy no more than ``utilisation`` of the time, and the predicted
    time to answer, of an arriving request, stays within the objective. The time to answer is the
    service time plus the longer of two waits: the steady one of an M/M/1 queue at that
    utilisation (on the safe side of measured, more regular service), and the queue that stands
    now. If none carries the load, the fastest serves.

    Hysteresis: a variant more accurate than the current one must carry the load with only
    ``headroom`` of both limits, at the highest rate of late. One less accurate must carry the
    load that it is going to be, so that a sudden overload is met with one switch.

    Args:
        objective: seconds from arrival to answer.
    """

    objective: float
    utilisation: float = 0.75
    headroom: float = 0.8

    def __post_init__(self) -> None:
        if not (self.objective > 0 and 0 < self.utilisation < 1 and 0 < self.headroom <= 1):
            raise EngineError(
                "the objective is above 0 seconds, the utilisation between 0 and 1, "
                f"the headroom above 0 and at most 1: {self}"
            )

    def start(self, profiles: Mapping[str, Profile]) -> str:
        """That of median size: no load is known yet."""
        return median(profiles)

    def choose(self, now: Situation) -> tuple[str, str]:
        """The most accurate of those that carry the load; of equals the current one, else the fastest.

        Accuracy is that of validation. The fastest of all, where none carries the load.
        """
        accuracy = {name: profile.validation_accuracy for name, profile in now.profiles.items()}

        def merit(name: str) -> tuple[float, float]:
            return accuracy[name], -now.service_seconds[name]

        def carries(name: str) -> bool:
            limit = 1.0
            if name == now.current:
                rate = now.requests_per_second
            elif accuracy[name] > accuracy[now.current]:
                rate, limit = now.peak_requests_per_second, self.headroom
            else:
                rate = now.surge_requests_per_second
            busy, answer = self._predict(now, name, rate)
            return busy <= limit * self.utilisation and answer <= limit * self.objective

        able = [name for name in now.profiles if carries(name)]
        if not able:
            chosen = min(now.profiles, key=lambda name: now.service_seconds[name])
            return chosen, f"{self._forecast(now, chosen)}: too slow, but no variant is faster"
        best = max(able, key=merit)
        if now.current in able and accuracy[best] == accuracy[now.current]:
            return now.current, f"{self._forecast(now, now.current)}: the most accurate that carries the load"
        if now.current in able:
            return best, f"{self._forecast(now, best)}: there is room for a more accurate variant"
        allowed = f"at most {self.utilisation:.0%} and {self.objective * 1e3:.1f} ms are allowed"
        return (
            best,
            f"{self._forecast(now, now.current)}: too slow, {allowed}; {self._forecast(now, best)}",
        )

    def _predict(self, now: Situation, name: str, rate: float) -> tuple[float, float]:
        """(share of time busy, seconds to an answer) if ``name`` served ``rate`` requests a second."""
        service = now.service_seconds[name]
        busy = rate * service / now.servers
        steady = service * busy / (1 - busy) if busy < 1 else math.inf
        standing = now.waiting * service / now.servers
        return busy, service + max(steady, standing)

    def _forecast(self, now: Situation, name: str) -> str:
        busy, answer = self._predict(now, name, now.requests_per_second)
        serves = name == now.current
        if not math.isfinite(answer):
            return f"{name} {'needs' if serves else 'would need'} {busy:.0%} of the time there is"
        milliseconds = f"{answer * 1e3:.1f} ms"
        if serves:
            return f"{name} is {busy:.0%} busy and answers in {milliseconds}"
        return f"{name} would be {busy:.0%} busy and answer in {milliseconds}"


def choices(policy: Policy, profiles: Mapping[str, Profile]) -> dict[str, Profile]:
    """The variants that a policy may ever choose.

    Raises:
        EngineError: if it is fixed to one that is not among them.
    """
    if isinstance(policy, Fixed):
        name = policy.start(profiles)
        return {name: profiles[name]}
    return dict(profiles)
