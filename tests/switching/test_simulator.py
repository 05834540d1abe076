import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shifter.switching
from shifter.errors import DataError, EngineError
from shifter.switching.figures import Figures
from shifter.switching.policies import Fixed, Policy, Situation, Slo, median
from shifter.switching.samples import ServiceSamples
from shifter.switching.simulator import SwitchCosts, simulate
from shifter.switching.switcher import Observation, Service, Switcher
from shifter.switching.trace import draw_requests
from shifter.values import Profile

from .calibrations import calibration

SECOND = 10**9
OBJECTIVE = 0.05


class Heard:
    """A policy that keeps what it was asked."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.asked: list[Situation] = []

    def start(self, profiles: Mapping[str, Profile]) -> str:
        return self._policy.start(profiles)

    def choose(self, now: Situation) -> tuple[str, str]:
        self.asked.append(now)
        return self._policy.choose(now)


class Restless:
    """Goes to and fro over all variants, so that every kind of switch happens."""

    def __init__(self) -> None:
        self._turn = 0

    def start(self, profiles: Mapping[str, Profile]) -> str:
        return median(profiles)

    def choose(self, now: Situation) -> tuple[str, str]:
        self._turn += 1
        names = list(now.profiles)
        return names[(self._turn * self._turn) % len(names)], "restless"


@dataclass
class One:
    """A request in the reference."""

    arrival: int
    quantile: float
    begin: int | None = None
    finish: int | None = None
    variant: str | None = None
    refused: bool = False


@dataclass
class Reference:
    """The simulation as one would write it down: from event to event, one request at a time."""

    profiles: dict[str, Profile]
    trace: list[int]
    policy: Policy
    servers: int
    services: dict[str, ServiceSamples]
    overhead: float
    costs: SwitchCosts
    room: int
    every: int
    dwell: float
    seed: int
    requests: list[One] = field(default_factory=list)
    activations: list[tuple[int, str]] = field(default_factory=list)

    def run(self) -> None:
        arrivals, quantiles = draw_requests(np.array(self.trace, np.int64), self.seed)
        self.requests = [One(*each) for each in zip(arrivals.tolist(), quantiles.tolist(), strict=True)]
        switcher = Switcher(self.profiles, self.policy, dwell=self.dwell, servers=self.servers)
        active, ready = switcher.current, {switcher.current}
        self.activations = [(0, active)]
        end = len(self.trace) * SECOND
        coming, waiting, computing = list(self.requests), list[One](), list[One]()
        arrived, done = 0, list[One]()
        tick, change = self.every, None
        while True:
            moments = [one.finish for one in computing] + [one.arrival for one in coming[:1]]
            moments += [tick] if tick <= end else []
            moments += [change[0]] if change else []
            if not moments:
                break
            now = min(moments)
            for one in sorted(computing, key=lambda one: (one.finish, one.arrival)):
                if one.finish == now:
                    computing.remove(one)
                    done.append(one)
            while coming and coming[0].arrival == now:
                one = coming.pop(0)
                arrived += 1
                if len(waiting) + len(computing) >= self.room:
                    one.refused = True
                else:
                    waiting.append(one)
            if now == tick:
                told = tuple(Service(one.variant, 1, self._sample(one), self.overhead) for one in done)
                inside = len(waiting) + len(computing)
                wish = switcher.observe(Observation(now / SECOND, arrived, inside, told)).variant
                arrived, done = 0, []
                busy = 0
                if wish != active:
                    if wish in ready:
                        busy = round(self.costs.ahead * SECOND)
                    else:
                        busy = round(self._cold(wish) * SECOND)
                        ready = {active, wish}
                    change = (now + busy, wish)
                neighbours = self._neighbours(wish)
                busy += sum(round(self._cold(name) * SECOND) for name in neighbours - ready)
                ready = neighbours
                tick = now + busy + self.every
            if change and change[0] == now:
                active, change = change[1], None
                self.activations.append((now, active))
            while waiting and len(computing) < self.servers:
                one = waiting.pop(0)
                one.begin, one.variant = now, active
                one.finish = now + max(1, round((self._sample(one) + self.overhead) * SECOND))
                computing.append(one)

    def _sample(self, one: One) -> float:
        seconds = sorted(self.services[one.variant].seconds.tolist())
        return seconds[int(one.quantile * len(seconds))]

    def _cold(self, name: str) -> float:
        return self.costs.cold[name] if isinstance(self.costs.cold, dict) else self.costs.cold

    def _neighbours(self, name: str) -> set[str]:
        names = list(self.profiles)
        place, room = names.index(name), self.costs.ahead_bytes
        found = {name}
        for other in names[max(0, place - 1) : place] + names[place + 1 : place + 2]:
            if self.profiles[other].memory_bytes <= room:
                found.add(other)
                room -= self.profiles[other].memory_bytes
        return found

    def check(self, figures: Figures, objective: float) -> None:
        """Every figure, counted anew."""
        served = [one for one in self.requests if not one.refused]
        latencies = [one.finish - one.arrival for one in served]
        good = [one for one in served if one.finish - one.arrival <= round(objective * SECOND)]
        total = len(self.requests)
        assert (figures.requests, figures.answered) == (total, len(served))
        assert figures.shed == total - len(served)
        right = sum(self.profiles[one.variant].test_accuracy for one in good)
        if total:
            assert figures.effective_accuracy == pytest.approx(right / total, rel=1e-12)
            assert figures.slo_attainment == len(good) / total
        else:
            assert math.isnan(figures.effective_accuracy)
            assert math.isnan(figures.slo_attainment)
        if served:
            assert figures.latency_mean == pytest.approx(np.mean(latencies) / SECOND)
            assert figures.latency_p50 == pytest.approx(np.percentile(latencies, 50) / SECOND)
            assert figures.latency_p99 == pytest.approx(np.percentile(latencies, 99) / SECOND)
        else:
            assert math.isnan(figures.latency_p50)
        end = len(self.trace) * SECOND
        held = dict.fromkeys(self.profiles, 0)
        edges = [*(time for time, _ in self.activations), max(end, self.activations[-1][0])]
        for (begin, name), until in zip(self.activations, edges[1:], strict=True):
            held[name] += max(0, min(until, end) - min(begin, end))
        assert figures.time_share == pytest.approx({name: time / end for name, time in held.items()})
        assert figures.switches == len(self.activations) - 1
        assert figures.switches_per_minute == pytest.approx(figures.switches * 60 / len(self.trace))
        for second in range(len(self.trace)):
            now = (second + 1) * SECOND
            mine = [one for one in self.requests if one.arrival // SECOND == second]
            line = figures.timeline
            assert line.requests[second] == len(mine) == self.trace[second]
            assert line.shed[second] == sum(one.refused for one in mine)
            assert line.in_time[second] == sum(one in good for one in mine)
            assert line.right[second] == pytest.approx(
                sum(self.profiles[one.variant].test_accuracy for one in mine if one in good)
            )
            assert line.answered[second] == sum(now - SECOND < one.finish <= now for one in served)
            inside = [one for one in served if one.arrival < now and not one.finish <= now]
            assert line.queue[second] == len(inside)
            assert line.variant[second] == [name for time, name in self.activations if time <= now][-1]


@settings(deadline=None, max_examples=60)
@given(
    trace=st.lists(st.sampled_from([0, 1, 3, 10, 40, 90]), min_size=1, max_size=8),
    policy=st.sampled_from(
        [
            lambda: Slo(OBJECTIVE),
            Restless,
            lambda: Fixed("v4"),
        ]
    ),
    servers=st.sampled_from([1, 1, 2, 3]),
    spread=st.sampled_from([0.0, 0.5, 3.0]),
    overhead=st.sampled_from([0.0, 0.002]),
    costs=st.builds(
        SwitchCosts,
        st.sampled_from([0.0, 0.03, 0.7, {f"v{index}": 0.01 + 0.2 * index for index in range(5)}]),
        st.sampled_from([0.0, 0.001]),
        st.sampled_from([0, 1000, 2000]),
    ),
    room=st.sampled_from([1, 3, 16, 64]),
    every=st.sampled_from([0.1, 0.25, 1.0]),
    dwell=st.sampled_from([0.0, 0.5, 2.0]),
    seed=st.integers(0, 2**32),
)
def test_it_is_the_queue_from_event_to_event(
    five: dict[str, Profile],
    trace: list[int],
    policy: type[Policy],
    servers: int,
    spread: float,
    overhead: float,
    costs: SwitchCosts,
    room: int,
    every: float,
    dwell: float,
    seed: int,
) -> None:
    services = {
        name: ServiceSamples.of(one.latency.p50_ms / 1e3, spread * one.latency.p50_ms / 1e3)
        for name, one in five.items()
    }
    heard, by_hand = Heard(policy()), Heard(policy())
    figures = simulate(
        five,
        trace,
        heard,
        servers,
        objective=OBJECTIVE,
        services=services,
        overhead=overhead,
        costs=costs,
        max_queue=room,
        decide_every=every,
        dwell=dwell,
        seed=seed,
    )
    reference = Reference(
        five, trace, by_hand, servers, services, overhead, costs, room, round(every * SECOND), dwell, seed
    )
    reference.run()
    # The switcher was asked the same at every decision, to the last bit.
    assert heard.asked == by_hand.asked
    reference.check(figures, OBJECTIVE)


def test_it_is_public() -> None:
    assert shifter.switching.simulate is simulate
    with pytest.raises(AttributeError, match=r"module 'shifter.switching' has no attribute 'simulated'"):
        shifter.switching.simulated  # type: ignore[attr-defined]  # noqa: B018


def test_any_number_of_variants_is_simulated(make_profile: Callable[..., Profile]) -> None:
    many = {
        f"v{index}": make_profile(1.0 + index, 4.5 * (1.0 + index), 0.5 + index / 1000)
        for index in range(200)
    }
    figures = simulate(many, [10] * 5, Fixed("v199"), objective=10.0)
    assert figures.effective_accuracy == pytest.approx(0.699)


def test_the_seed_says_it_all(five: dict[str, Profile]) -> None:
    trace = np.random.default_rng(3).poisson(60, 40)

    def figures(seed: int) -> Figures:
        return simulate(five, trace, Slo(OBJECTIVE), objective=OBJECTIVE, seed=seed)

    assert figures(7) == figures(7)
    assert np.array_equal(figures(7).timeline.right, figures(7).timeline.right)
    assert figures(7) != figures(8)


def test_an_empty_trace_has_no_answers_and_still_decisions(five: dict[str, Profile]) -> None:
    figures = simulate(five, [0] * 20, Slo(OBJECTIVE), objective=OBJECTIVE)
    assert (figures.requests, figures.answered, figures.shed) == (0, 0, 0)
    assert math.isnan(figures.effective_accuracy)
    assert math.isnan(figures.latency_p99)
    assert figures.timeline.variant[0] == "v2"
    assert figures.timeline.variant[-1] == "v4", "with nothing to do, the most accurate serves"
    nothing = simulate(five, [], Slo(OBJECTIVE), objective=OBJECTIVE)
    assert (nothing.requests, nothing.switches, nothing.switches_per_minute) == (0, 0, 0.0)
    assert nothing.timeline.variant == ()


def test_at_overload_a_fixed_variant_answers_its_capacity_and_sheds_the_rest(
    five: dict[str, Profile],
) -> None:
    """16 ms a request are 62.5 a second, of 200 that come; a full queue of 64 takes 1.024 s."""
    figures = simulate(five, [200] * 60, Fixed("v4"), objective=OBJECTIVE)
    assert figures.answered == pytest.approx(62.5 * 60 + 64, abs=2)
    assert figures.timeline.queue[2:].tolist() == pytest.approx([64] * 58, abs=1)
    assert 0.95 * 1.024 < figures.latency_p50 <= 64 * 0.016
    assert figures.slo_attainment < 0.001
    switched = simulate(five, [200] * 60, Slo(OBJECTIVE), objective=OBJECTIVE)
    assert switched.slo_attainment > 0.95


def test_a_dear_switch_is_paid_in_late_answers(five: dict[str, Profile]) -> None:
    trace = [5] * 10 + [300] * 10

    def figures(costs: SwitchCosts) -> Figures:
        return simulate(five, trace, Slo(OBJECTIVE), objective=OBJECTIVE, costs=costs)

    free, dear = figures(SwitchCosts(0.0, 0.0)), figures(SwitchCosts(2.0, 2.0))
    assert dear.slo_attainment < free.slo_attainment


def test_a_calibration_is_what_the_switcher_expects(five: dict[str, Profile]) -> None:
    expected = dict.fromkeys(five, 0.25)
    heard = Heard(Fixed(next(iter(five))))
    known = calibration({name: [(1, seconds)] for name, seconds in expected.items()})
    simulate(five, [0], heard, objective=OBJECTIVE, calibration=known)
    assert heard.asked[0].service_seconds == pytest.approx(expected)


def test_a_day_is_simulated(five: dict[str, Profile]) -> None:
    seconds = np.arange(86_400)
    trace = np.random.default_rng(0).poisson(20 - 19 * np.cos(seconds / 86_400 * 2 * np.pi))
    figures = simulate(five, trace, Slo(OBJECTIVE), objective=OBJECTIVE, decide_every=1.0)
    assert figures.requests == trace.sum() == figures.answered + figures.shed
    line = figures.timeline
    assert np.array_equal(np.cumsum(line.requests - line.shed - line.answered), line.queue)
    assert sum(figures.time_share.values()) == pytest.approx(1.0)
    assert line.right.sum() / trace.sum() == pytest.approx(figures.effective_accuracy)


@pytest.mark.parametrize(
    "settings_",
    [
        {"objective": 0.0},
        {"objective": math.nan},
        {"objective": math.inf},
        {"overhead": -1.0},
        {"overhead": math.inf},
        {"max_queue": 0},
        {"decide_every": 0.0},
        {"decide_every": 1e-10},
        {"decide_every": math.inf},
        {"costs": SwitchCosts({"v2": 0.1})},
        {"servers": 0},
        {"dwell": -1.0},
    ],
)
def test_settings_out_of_range_are_refused(five: dict[str, Profile], settings_: dict[str, Any]) -> None:
    with pytest.raises(EngineError):
        simulate(five, [1], Slo(0.1), **{"objective": 0.1, **settings_})


@pytest.mark.parametrize(
    "costs",
    [{"cold": -1.0}, {"cold": 1e300}, {"cold": {"v0": math.nan}}, {"ahead": -1.0}, {"ahead_bytes": -1}],
)
def test_costs_out_of_range_are_refused(costs: dict[str, float]) -> None:
    with pytest.raises(EngineError, match="0 seconds or more"):
        SwitchCosts(**costs)


def test_a_variant_without_service_times_is_named(five: dict[str, Profile]) -> None:
    some = {"v0": ServiceSamples([0.1])}
    with pytest.raises(EngineError, match="v1, v2, v3, v4"):
        simulate(five, [1], Slo(0.1), objective=0.1, services=some)


@pytest.mark.parametrize("trace", [[1, -1], [1.5], [[1, 2]], [math.nan], [1e9]])
def test_what_is_no_trace_is_refused(five: dict[str, Profile], trace: list[int]) -> None:
    with pytest.raises(DataError, match="requests per second"):
        simulate(five, trace, Slo(0.1), objective=0.1)
