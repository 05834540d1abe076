"""Policies: which variant should serve, given the load. Pure functions of a `Situation`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from shifter.errors import EngineError
from shifter.values import Profile

_AHEAD = 1.0
_HEADROOM = 1.2


@dataclass(frozen=True)
class Situation:
    """What a policy decides on. The estimates are those of `Load`.

    Args:
        profiles: the variants to choose from, smallest first: those that there is memory for.
        current: the one that serves.
        service_seconds: predicted time of one mean request, per variant.
        rate: requests per second that arrive now. surge: where that is going, if it has surely
            risen. peak: its highest of late.
        waiting: requests that no server computes yet. standing: the least of that of late.
        arrived, answered: requests of the last second.
        servers: requests computed at once.
    """

    profiles: Mapping[str, Profile]
    current: str
    service_seconds: Mapping[str, float]
    rate: float = 0.0
    surge: float = 0.0
    peak: float = 0.0
    waiting: int = 0
    standing: int = 0
    arrived: int = 0
    answered: int = 0
    servers: int = 1


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
        if self.variant in now.profiles:
            return self.variant, f"{self.variant} is fixed"
        return now.current, f"{self.variant} is fixed, and cannot serve now"


@dataclass(frozen=True)
class Trend:
    """The paper's policy (DNNShifter, §III-E, module 9): follow the trend of the queries answered per second.

    The paper starts at the median size and goes to "the next or previous model from the portfolio
    depending on the QPS trend": to the smaller one where queries per second fall for the load, to
    the larger where more could be achieved. What it leaves open is decided thus:

    - falling behind: a queue has stood all through the last second, and no more was answered in it
      than arrived. One step to the smaller neighbour;
    - ahead: in the last second there was a moment when nothing waited. One step to the larger;
    - else it is catching up, and stays.

    It knows neither how fast the variants are nor what is asked of them, so under a load that lies
    between two variants it goes to and fro, as often as the dwell of the `Switcher` allows.
    """

    def start(self, profiles: Mapping[str, Profile]) -> str:
        """That of median size."""
        return median(profiles)

    def choose(self, now: Situation) -> tuple[str, str]:
        """A size down if answers fall behind arrivals, a size up if they keep up, else the current one."""
        names = list(now.profiles)
        here = names.index(now.current)
        flow = f"{now.answered} answered and {now.arrived} arrived in the last second"
        if not now.standing:
            if here == len(names) - 1:
                return now.current, f"{flow}, and none had to wait throughout: the largest keeps up"
            return names[here + 1], f"{flow}, and none had to wait throughout: ahead, so one size up"
        flow = f"{flow}, and {now.standing} waited throughout"
        if now.answered > now.arrived:
            return now.current, f"{flow}: catching up"
        if here == 0:
            return now.current, f"{flow}: falling behind, but no variant is smaller"
        return names[here - 1], f"{flow}: falling behind, so one size down"


@dataclass(frozen=True)
class Slo:
    """The variant that promises the most right answers within the latency objective.

    Promised is the validation accuracy times the share of requests answered in time. A request is
    late if it waits longer than the objective leaves beside its own service:

    - because arrivals are random: the wait of an M/D/1 queue, whose tail is taken for
      busy · exp(-2 (1 - busy) / busy · wait / service) (heavy traffic, Kingman 1962);
    - because many wait already: everything that arrives until they have become few enough, out of
      what arrives in `_AHEAD` seconds;
    - always, in the end, if there is more work than time.

    Of two variants the slower one's share falls faster with the rate, so a higher rate never
    chooses a more accurate variant. If none answers anything in time, the fastest serves.

    Hysteresis: the current variant is judged at the rate of now; one more accurate at `_HEADROOM`
    times the highest of late, so that it is not left again at once; any other at the surge, so
    that a sudden overload is met with one switch.

    Args:
        objective: seconds from arrival to answer.
    """

    objective: float

    def __post_init__(self) -> None:
        if not 0 < self.objective < math.inf:
            raise EngineError(f"the objective is a number of seconds above 0, not {self.objective}")

    def start(self, profiles: Mapping[str, Profile]) -> str:
        """That of median size: no load is known yet."""
        return median(profiles)

    def choose(self, now: Situation) -> tuple[str, str]:
        """The variant that promises most; of equals the current one, else the fastest."""
        current, seconds = now.current, now.service_seconds
        accuracy = {name: profile.validation_accuracy for name, profile in now.profiles.items()}
        promised = {
            name: each * self._in_time(now, name, _judged_at(now, name)) for name, each in accuracy.items()
        }
        best = max(promised, key=lambda name: (promised[name], name == current, -seconds[name]))
        if not promised[best]:
            best = min(promised, key=lambda name: (seconds[name], name != current))
            return best, f"{self._forecast(now, best)}: too slow, but no variant is faster"
        if best == current:
            return best, f"{self._forecast(now, best)}: none promises more right answers in time"
        if accuracy[best] > accuracy[current]:
            return best, f"{self._forecast(now, best)}: there is room for a more accurate variant"
        return best, f"{self._forecast(now, current)}; {self._forecast(now, best)}"

    def _in_time(self, now: Situation, name: str, rate: float) -> float:
        """Share of requests answered within the objective if ``name`` serves."""
        service = now.service_seconds[name]
        patience = self.objective - service
        pace = service / now.servers
        idle = 1 - rate * pace
        if patience < 0 or idle <= 0:
            return 0.0
        in_time = 1 - (1 - idle) * math.exp(-2 * idle / (1 - idle) * patience / pace) if idle < 1 else 1.0
        excess = now.waiting * pace - patience
        return in_time * max(0.0, 1 - excess / idle / _AHEAD) if excess > 0 else in_time

    def _forecast(self, now: Situation, name: str) -> str:
        rate, service = _judged_at(now, name), now.service_seconds[name]
        busy = f"{rate * service / now.servers:.0%}"
        serves = name == now.current
        what = f"at {rate:.3g} requests/s {name}"
        if service > self.objective:
            takes = "takes" if serves else "would take"
            return f"{what} {takes} {service * 1e3:.1f} ms of {self.objective * 1e3:.1f} ms allowed"
        if rate * service >= now.servers:
            return f"{what} {'needs' if serves else 'would need'} {busy} of the time there is"
        in_time = f"{self._in_time(now, name, rate):.1%} in time"
        waiting = f", {now.waiting} waiting" if now.waiting else ""
        if serves:
            return f"{what} is {busy} busy and answers {in_time}{waiting}"
        return f"{what} would be {busy} busy and answer {in_time}{waiting}"


def _judged_at(now: Situation, name: str) -> float:
    """The rate at which a variant has to prove itself."""
    if name == now.current:
        return now.rate
    if now.profiles[name].validation_accuracy > now.profiles[now.current].validation_accuracy:
        return _HEADROOM * now.peak
    return now.surge


def choices(policy: Policy, profiles: Mapping[str, Profile]) -> dict[str, Profile]:
    """The variants that a policy may ever choose.

    Raises:
        EngineError: if it is fixed to one that is not among them.
    """
    if isinstance(policy, Fixed):
        name = policy.start(profiles)
        return {name: profiles[name]}
    return dict(profiles)
