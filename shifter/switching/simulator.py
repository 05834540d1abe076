"""The simulator: a trace of requests, a queue, and the `Switcher` that the service runs.

What is modelled: requests come in the order of arrival to a bounded queue, as the service's
does; each is computed by the variant that serves when it begins; the switcher observes every
``decide_every`` seconds what `Host.tick` would tell it; the old variant serves on until the new
one is ready, and no decision is made meanwhile, nor while neighbours are inflated ahead. What is
not: inflating takes no time from requests being computed, and a variant is as quick on its first
call as ever after.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shifter.errors import EngineError
from shifter.switching.calibration import Calibration
from shifter.switching.figures import Figures, Timeline
from shifter.switching.load import Observation, Service
from shifter.switching.policies import Policy
from shifter.switching.queueing import Queue
from shifter.switching.samples import ServiceSamples, at_quantiles, of_profiles
from shifter.switching.switcher import Switcher
from shifter.switching.trace import SECOND, draw_requests, to_nanoseconds, whole
from shifter.values import Profile

_FIRST_BLOCK, _LARGEST_BLOCK = 8, 512
_LONGEST = 1e6
"""Seconds, as of service times (`ServiceSamples`): above, it is no setting of a service."""


@dataclass(frozen=True)
class SwitchCosts:
    """What it takes until a variant serves, in seconds.

    Args:
        cold: one that has to be inflated, built and warmed up; for all, or by name.
        ahead: one that has been inflated ahead: the neighbours in size of the one that serves, the
            smaller first, as far as ``ahead_bytes`` allow (as `Host` does).
    """

    cold: float | Mapping[str, float] = 0.05
    ahead: float = 0.001
    ahead_bytes: int = 256 << 20

    def __post_init__(self) -> None:
        each = [*(self.cold.values() if isinstance(self.cold, Mapping) else [self.cold]), self.ahead]
        if not all(0 <= one <= _LONGEST for one in each) or self.ahead_bytes < 0:
            raise EngineError(
                f"what a switch costs is 0 seconds or more, at most {_LONGEST:g}, ahead_bytes at least 0: "
                f"{self}"
            )

    def check(self, names: Iterable[str]) -> None:
        """Raises EngineError unless each of the variants has its costs."""
        if isinstance(self.cold, Mapping):
            missing = [name for name in names if name not in self.cold]
            if missing:
                raise EngineError(
                    f"no cost of a switch is given for {', '.join(missing)}; give all of them, or one number"
                )

    def of(self, name: str) -> float:
        return self.cold if isinstance(self.cold, int | float) else self.cold[name]


def simulate(
    profiles: Mapping[str, Profile],
    trace: Sequence[int] | NDArray[np.int64],
    policy: Policy,
    servers: int = 1,
    *,
    objective: float,
    services: Mapping[str, ServiceSamples] | None = None,
    overhead: float = 0.0,
    costs: SwitchCosts | None = None,
    max_queue: int = 64,
    decide_every: float = 0.1,
    dwell: float = 2.0,
    calibration: Calibration | None = None,
    seed: int = 0,
) -> Figures:
    """What a service of these variants would have made of a trace. Deterministic.

    Args:
        profiles: the variants, smallest first (`Portfolio.profiles`). An answer is right as often
            as the test accuracy says.
        trace: requests per second, each of one image. The simulation ends when all are answered;
            decisions end with the trace.
        servers: requests computed at once. max_queue: requests inside at once; one more is shed.
        objective: seconds from arrival within which an answer is in time.
        services: how long each variant takes for a request; those of the profiles if not given.
        overhead: seconds of a server's time for each request besides, whichever the variant.
        decide_every, dwell, calibration: as the service's and the `Switcher`'s. The calibration is what
            the switcher expects of each variant; ``services``, what it takes.
        seed: of the moments of arrival within each second, and of each request's service time. The
            latter is the same quantile for every variant and policy, so that these are compared
            on the same requests.

    Raises:
        EngineError: if a setting is out of range, or a variant has no service times or no costs.
        DataError: if the trace holds anything but whole numbers, 0 or more.
    """
    if not (
        0 < objective <= _LONGEST
        and 0 <= overhead <= _LONGEST
        and 1 / SECOND <= decide_every <= _LONGEST
        and max_queue >= 1
    ):
        raise EngineError(
            "the objective is above 0 seconds, decide_every at least 1e-9, the overhead none or more, all at "
            f"most {_LONGEST:g}, max_queue at least 1: {objective}, {decide_every}, {overhead}, {max_queue}"
        )
    costs = costs or SwitchCosts()
    costs.check(profiles)
    switcher = Switcher(profiles, policy, dwell=dwell, servers=servers, calibration=calibration)
    run = _Run(
        dict(profiles),
        whole(trace),
        switcher,
        servers,
        of_profiles(profiles, services),
        overhead,
        costs,
        max_queue,
        to_nanoseconds(decide_every),
        seed,
    )
    run.to_the_end()
    return run.figures(to_nanoseconds(objective))


class _Run:
    """One simulation. Times are nanoseconds from the start of the trace."""

    def __init__(
        self,
        profiles: dict[str, Profile],
        trace: NDArray[np.int64],
        switcher: Switcher,
        servers: int,
        services: Mapping[str, ServiceSamples],
        overhead: float,
        costs: SwitchCosts,
        room: int,
        every: int,
        seed: int,
    ) -> None:
        self._profiles, self._switcher, self._costs, self._every = profiles, switcher, costs, every
        self._names = list(profiles)
        self._seconds = trace.size
        self._end = trace.size * SECOND
        arrivals, self._quantiles = draw_requests(trace, seed)
        self._queue = Queue(arrivals, servers, room)
        self._takes = {name: services[name].nanoseconds(overhead) for name in profiles}
        # One object for each service time there is: making one for each request would take longest.
        self._services = {
            name: _objects(Service(name, 1, float(one), overhead) for one in services[name].seconds)
            for name in profiles
        }
        self._served_by = np.zeros(arrivals.size, np.int32)
        self._active = switcher.current
        self._activations = [(0, self._active)]
        self._ready = {self._active}
        self._told = 0  # up to when the switcher knows of arrivals and answers
        self._inside = 0  # requests, then
        self._unanswered = np.zeros(0, np.int64)  # begun before, and not answered then

    def to_the_end(self) -> None:
        tick, block = self._every, _FIRST_BLOCK
        while tick <= self._end:
            ticks = np.arange(tick, min(self._end, tick + (block - 1) * self._every) + 1, self._every)
            last, changed = self._decide(ticks)
            tick = last + self._every
            if changed:
                tick += self._prepare(last)
            block = _FIRST_BLOCK if changed else min(2 * block, _LARGEST_BLOCK)
        self._serve(self._end)
        self._keep(np.iinfo(np.int64).max)

    def _decide(self, ticks: NDArray[np.int64]) -> tuple[int, bool]:
        """Observes at these moments, until something is to be done; (the last one, whether there is)."""
        until = int(ticks[-1])
        answered = np.concatenate([self._unanswered, self._serve(until)])
        answered = answered[np.argsort(self._queue.finish[answered], kind="stable")]
        done = np.searchsorted(self._queue.finish[answered], ticks, "right").tolist()
        seen = self._services_of(answered[: done[-1]])

        first, stop = np.searchsorted(self._queue.arrivals, [self._told, until], "right").tolist()
        admitted = np.cumsum(~self._queue.refused[first:stop])
        arrived = np.searchsorted(self._queue.arrivals[first:stop], ticks, "right")
        entered = np.concatenate([[0], admitted])[arrived].tolist()

        before = entered_here = done_before = 0
        changed, tick = False, until
        for tick, here, entered_here, done_here in zip(
            ticks.tolist(), arrived.tolist(), entered, done, strict=True
        ):
            decision = self._switcher.observe(
                Observation(
                    tick / SECOND,
                    here - before,
                    self._inside + entered_here - done_here,
                    tuple(seen[done_before:done_here]),
                )
            )
            before, done_before = here, done_here
            changed = decision.variant != self._active or self._ready != self._wanted(self._active)
            if changed:
                break
        self._told, self._inside = tick, self._inside + entered_here - done_before
        self._keep(tick)
        return tick, changed

    def _prepare(self, now: int) -> int:
        """Does what was decided; how long it keeps the service from deciding again."""
        taken = 0
        chosen = self._switcher.current
        if chosen != self._active:
            if chosen in self._ready:
                taken = to_nanoseconds(self._costs.ahead)
            else:
                taken = to_nanoseconds(self._costs.of(chosen))
                self._ready = {self._active, chosen}
            self._serve(now + taken)
            self._keep(now + taken)
            self._active = chosen
            self._activations.append((now + taken, chosen))
        wanted = self._wanted(self._active)
        taken += sum(to_nanoseconds(self._costs.of(name)) for name in wanted - self._ready)
        self._ready = wanted
        return taken

    def _wanted(self, active: str) -> set[str]:
        """The variants to have inflated while ``active`` serves."""
        here = self._names.index(active)
        wanted, room = {active}, self._costs.ahead_bytes
        for place in (here - 1, here + 1):
            if 0 <= place < len(self._names):
                bytes_ = self._profiles[self._names[place]].memory_bytes
                if bytes_ <= room:
                    wanted.add(self._names[place])
                    room -= bytes_
        return wanted

    def _serve(self, until: int) -> NDArray[np.int64]:
        """Tries all up to ``until`` with the variant that is active now."""
        requests = self._queue.candidates(until)
        takes = at_quantiles(self._takes[self._active], self._quantiles[requests])
        return self._queue.serve(requests, takes)

    def _keep(self, until: int) -> None:
        begun = self._queue.keep(until)
        self._served_by[begun] = self._names.index(self._active)
        left = np.concatenate([self._unanswered, begun])
        self._unanswered = left[self._queue.finish[left] > self._told]

    def _services_of(self, requests: NDArray[np.int64]) -> list[Service]:
        """What the switcher is told of answered requests; those not kept yet are the active variant's."""
        kept = np.isin(requests, self._unanswered)
        active = self._names.index(self._active)
        by = np.where(kept, self._served_by[requests], active)
        told = np.empty(requests.size, object)
        for index in np.unique(by).tolist():
            mine = by == index
            told[mine] = at_quantiles(self._services[self._names[index]], self._quantiles[requests[mine]])
        services: list[Service] = told.tolist()
        return services

    def figures(self, objective: int) -> Figures:
        """What came of it, with ``objective`` in nanoseconds; once all requests are answered."""
        queue, names = self._queue, self._names
        refused = queue.refused
        latency = (queue.finish - queue.arrivals)[~refused]
        in_time = ~refused & (queue.finish - queue.arrivals <= objective)
        accuracy = np.array([self._profiles[name].test_accuracy for name in names])
        right = np.where(in_time, accuracy[self._served_by], 0.0)
        second = queue.arrivals // SECOND

        def a_second(weights: NDArray[np.float64] | None = None, of: NDArray[np.int64] = second) -> Any:
            return np.bincount(of, weights, minlength=self._seconds)

        finished = queue.finish[~refused]
        finished = finished[finished <= self._end]
        since, served = zip(*self._activations, strict=True)
        ends = np.arange(1, self._seconds + 1) * SECOND
        # What happens at the very end of a second belongs to it, as an observation then would have it.
        answered = a_second(of=np.maximum(finished - 1, 0) // SECOND)
        entered = a_second((~refused).astype(float)).astype(np.int64)
        at = np.searchsorted(since, ends, "right") - 1
        timeline = Timeline(
            requests=a_second(),
            shed=a_second(refused.astype(float)).astype(np.int64),
            in_time=a_second(in_time.astype(float)).astype(np.int64),
            right=a_second(right),
            answered=answered,
            queue=np.cumsum(entered - answered),
            variant=tuple(served[index] for index in at),
        )
        held = np.diff(np.minimum([*since, self._end], self._end)) / max(self._end, 1)
        share = {
            name: float(sum(part for part, who in zip(held, served, strict=True) if who == name))
            for name in names
        }
        p50, p99 = np.percentile(latency, [50, 99]) / SECOND if latency.size else (math.nan, math.nan)
        total = queue.arrivals.size
        switches = len(self._activations) - 1
        return Figures(
            requests=total,
            answered=int(latency.size),
            shed=int(refused.sum()),
            effective_accuracy=float(right.sum() / total) if total else math.nan,
            slo_attainment=float(in_time.sum() / total) if total else math.nan,
            time_share=share,
            switches=switches,
            switches_per_minute=switches / (self._seconds / 60) if self._seconds else 0.0,
            latency_mean=float(latency.mean() / SECOND) if latency.size else math.nan,
            latency_p50=float(p50),
            latency_p99=float(p99),
            timeline=timeline,
        )


def _objects(services: Iterable[Service]) -> NDArray[np.object_]:
    made = list(services)
    array = np.empty(len(made), object)
    array[:] = made
    return array
