from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shifter.errors import EngineError
from shifter.switching.policies import Policy, Situation
from shifter.switching.service_time import ServiceTimes
from shifter.switching.switcher import Decision, Fixed, Observation, Service, Slo, Switcher, Trend
from shifter.values import Profile

OBJECTIVE = 0.05
DWELL = 2.0

POLICIES = [Slo(OBJECTIVE), Trend(), Fixed("v3")]

steps = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.0, 1e-9, 0.01, 0.1, 1.0, 40.0, 1e9]),  # since the one before
        st.sampled_from([0, 1, 10, 100, 10**9]),  # requests
        st.sampled_from([0, 1, 40, 10**9]),  # queue
        st.sampled_from(["serving", "v0", "v4", "unknown"]),  # who answered
        st.sampled_from([0, 1, 20]),  # how many
        st.sampled_from([0, 1, 9, 10**6]),  # images of each
        st.sampled_from([0.0, 1e-300, 1e-6, 1e-3, 0.1, 1e6]),  # seconds of each, overhead
        st.sampled_from([0.0, 1e-3, 5.0]),
        st.sampled_from([None, None, None, -1, 0, 300, 10**12]),  # free bytes
    ),
    min_size=1,
    max_size=60,
)
Step = tuple[float, int, int, str, int, int, float, float, int | None]


def decisions(switcher: Switcher, steps: Sequence[Step]) -> Iterator[tuple[Observation, Decision]]:
    time = 0.0
    for gap, requests, queue, by, answered, images, seconds, overhead, free in steps:
        time += gap
        variant = switcher.current if by == "serving" else by
        services = (Service(variant, images, seconds, overhead),) * answered
        seen = Observation(time, requests, queue, services, free)
        yield seen, switcher.observe(seen)


def sized(make_profile: Callable[..., Profile]) -> dict[str, Profile]:
    """Five variants of 100, 200, …, 1600 bytes."""
    return {
        f"v{index}": make_profile(2.0**index, 4.5 * 2**index, 0.9 + index / 50, memory_bytes=100 * 2**index)
        for index in range(5)
    }


@pytest.mark.parametrize("policy", POLICIES)
@given(steps=steps)
def test_no_observations_leave_the_portfolio_or_switch_twice_within_the_dwell(
    make_profile: Callable[..., Profile], policy: Policy, steps: list[Step]
) -> None:
    """But for memory that is short; and the same observations decide the same."""
    profiles = sized(make_profile)
    switcher, again = Switcher(profiles, policy, dwell=DWELL), Switcher(profiles, policy, dwell=DWELL)
    current, switched = switcher.current, 0.0
    for seen, decision in decisions(switcher, steps):
        assert again.observe(seen) == decision
        assert decision.variant in profiles
        if decision.variant != current:
            free = seen.free_bytes
            short = free is not None and profiles[current].memory_bytes > free
            assert short or seen.time - switched >= DWELL
            current, switched = decision.variant, seen.time
        assert switcher.current == current


@pytest.mark.parametrize("policy", POLICIES[:2])
@given(steps=steps)
def test_what_serves_fits_the_memory_there_is(
    make_profile: Callable[..., Profile], policy: Policy, steps: list[Step]
) -> None:
    profiles = sized(make_profile)
    switcher = Switcher(profiles, policy, dwell=DWELL)
    for seen, decision in decisions(switcher, steps):
        if seen.free_bytes is not None:
            assert profiles[decision.variant].memory_bytes <= max(100, seen.free_bytes)


rates = st.floats(0, 3000)


@given(
    rates=st.tuples(rates, rates, rates).map(sorted),
    more=st.floats(0, 3000),
    current=st.sampled_from([f"v{index}" for index in range(5)]),
    accuracies=st.permutations([0.3, 0.91, 0.92, 0.92, 0.95]),
    objective=st.sampled_from([0.001, 0.02, 0.05, 0.5, 10.0]),
    waiting=st.sampled_from([0, 3, 50, 5000]),
    servers=st.integers(1, 4),
)
@settings(max_examples=300)
def test_more_load_never_chooses_a_more_accurate_variant(
    make_profile: Callable[..., Profile],
    rates: Sequence[float],
    more: float,
    current: str,
    accuracies: Sequence[float],
    objective: float,
    waiting: int,
    servers: int,
) -> None:
    profiles = {f"v{index}": make_profile(2.0**index, 9.0**index, accuracies[index]) for index in range(5)}
    seconds = {name: profile.latency.p50_ms / 1e3 for name, profile in profiles.items()}

    def chosen(more: float) -> str:
        rate, surge, peak = (rate + more for rate in rates)
        now = Situation(profiles, current, seconds, rate, surge, peak, waiting, servers=servers)
        return Slo(objective).choose(now)[0]

    less, greater = chosen(0.0), chosen(more)
    # When nothing is answered in time the fastest serves, whatever its accuracy.
    assert profiles[greater].validation_accuracy <= profiles[less].validation_accuracy or greater == "v0"


@given(low=rates, more=rates)
@settings(max_examples=40)
def test_of_two_services_under_steady_load_the_busier_has_the_smaller_variant(
    five: dict[str, Profile], low: float, more: float
) -> None:
    def settled(rate: float) -> int:
        switcher = Switcher(five, Slo(OBJECTIVE), dwell=DWELL)
        requests = round(rate * 10)
        for tick in range(20):
            decision = switcher.observe(Observation(tick * 10.0, requests))
        return list(five).index(decision.variant)

    assert settled(low + more) <= settled(low)


def test_memory_that_is_short_is_not_waited_for(make_profile: Callable[..., Profile]) -> None:
    switcher = Switcher(sized(make_profile), Slo(OBJECTIVE), dwell=DWELL)
    assert switcher.observe(Observation(0.0, free_bytes=2000)).variant == "v2"
    assert switcher.observe(Observation(3.0, free_bytes=2000)).variant == "v4"
    decision = switcher.observe(Observation(3.1, free_bytes=500))
    assert decision == Decision("v2", "v4 takes 1600 bytes of memory, and variants may take 500", 0.0)
    # That was a switch, so the next one waits; and what there is no memory for is not chosen.
    assert switcher.observe(Observation(4.0, free_bytes=900)).variant == "v2"
    assert switcher.observe(Observation(6.0, free_bytes=900)).variant == "v3"
    # The smallest serves where none fits; no memory is spared by anything else.
    assert switcher.observe(Observation(6.1, free_bytes=0)).variant == "v0"
    held = Switcher(sized(make_profile), Fixed("v4"))
    assert held.observe(Observation(0.0, free_bytes=0)).variant == "v4"


@pytest.mark.parametrize("policy", POLICIES[:2])
def test_it_goes_up_three_times_a_minute_in_the_long_run(five: dict[str, Profile], policy: Policy) -> None:
    """Whatever the load does: here it alternates between none and too much, every four seconds."""
    switcher = Switcher(five, policy, dwell=DWELL)
    names = list(five)
    seen = [switcher.current]
    for tenth in range(36_000):
        busy = tenth // 40 % 2
        seen.append(switcher.observe(Observation(tenth / 10, 200 * busy, 1000 * busy)).variant)
    ups = sum(names.index(after) > names.index(before) for before, after in pairwise(seen))
    assert 100 < ups <= 3 * 60 + 3


def test_trend_follows_whether_the_answers_keep_up(five: dict[str, Profile]) -> None:
    profiles = {name: five[name] for name in ("v0", "v1", "v2")}
    seconds = dict.fromkeys(profiles, 0.01)

    def choose(current: str, standing: int, arrived: int, answered: int) -> tuple[str, str]:
        now = Situation(profiles, current, seconds, standing=standing, arrived=arrived, answered=answered)
        return Trend().choose(now)

    flow = "9 answered and 9 arrived in the last second, and"
    assert choose("v1", 0, 9, 9) == ("v2", f"{flow} none had to wait throughout: ahead, so one size up")
    assert choose("v1", 4, 9, 9) == ("v0", f"{flow} 4 waited throughout: falling behind, so one size down")
    assert choose("v1", 4, 9, 10)[0] == "v1"
    assert choose("v2", 0, 9, 9)[0] == "v2"
    assert choose("v0", 4, 9, 5)[0] == "v0"


def test_trend_goes_to_and_fro_between_two_variants_no_faster_than_the_dwell(
    five: dict[str, Profile],
) -> None:
    """A load of 90 a second lies between v3, which does 125, and v4, which does 62."""
    switcher = Switcher(five, Trend(), dwell=DWELL)
    server = Server(five, switcher, ratio=1.0, overhead=0.0)
    server.run(np.arange(1, 60 * 90) / 90, until=60)
    assert {decision.variant for time, decision in server.decisions if time > 10} == {"v3", "v4"}
    switches = server.switches()
    assert len(switches) >= 4
    assert min(np.diff(switches)) >= DWELL - 1e-9


class Server:
    """One server, first come first served, computing in the times of the profiles."""

    def __init__(
        self, profiles: dict[str, Profile], switcher: Switcher, ratio: float, overhead: float
    ) -> None:
        self._profiles, self._switcher = profiles, switcher
        self._ratio, self._overhead = ratio, overhead
        self.decisions: list[tuple[float, Decision]] = []
        self.delays: list[float] = []
        self._free = 0.0

    def run(self, arrivals: Sequence[float], until: float, tick: float = 0.1) -> None:
        waiting: deque[float] = deque()
        computing: deque[tuple[float, Service]] = deque()
        position = 0
        variant = self._switcher.current
        for index in range(1, round(until / tick) + 1):
            now, arrived = index * tick, 0
            while position < len(arrivals) and arrivals[position] <= now:
                waiting.append(arrivals[position])
                position, arrived = position + 1, arrived + 1
            while waiting and max(self._free, waiting[0]) < now:
                engine = self._profiles[variant].latency.p50_ms / 1e3 * self._ratio
                begin = waiting.popleft()
                self._free = max(self._free, begin) + engine + self._overhead
                self.delays.append(self._free - begin)
                computing.append((self._free, Service(variant, 1, engine, self._overhead)))
            done = []
            while computing and computing[0][0] <= now:
                done.append(computing.popleft()[1])
            queue = len(waiting) + len(computing)
            decision = self._switcher.observe(Observation(now, arrived, queue, tuple(done)))
            self.decisions.append((now, decision))
            variant = decision.variant

    def switches(self, since: float = 0.0) -> list[float]:
        return [
            time for (_, a), (time, b) in pairwise(self.decisions) if a.variant != b.variant and time >= since
        ]


@given(rate=st.floats(1, 900), ratio=st.floats(0.3, 4), overhead=st.sampled_from([0.0, 0.001, 0.01]))
@settings(max_examples=40, deadline=None)
def test_a_steady_load_never_flaps(
    five: dict[str, Profile], rate: float, ratio: float, overhead: float
) -> None:
    """Whatever the node's speed. Learning it may take a late step, but none is taken back."""
    server = Server(five, Switcher(five, Slo(OBJECTIVE), dwell=DWELL), ratio, overhead)
    server.run(np.arange(1, 60 * rate) / rate, until=60)
    assert len(server.switches()) <= 5
    assert len(server.switches(since=20)) <= 1


def test_it_goes_down_and_up_again_and_answers_in_time(five: dict[str, Profile]) -> None:
    random = np.random.default_rng(5)
    parts = [start + np.sort(random.random(20 * rate)) * 20 for start, rate in ((0, 10), (20, 200), (40, 10))]
    switcher = Switcher(five, Slo(OBJECTIVE), dwell=DWELL)
    server = Server(five, switcher, ratio=1.0, overhead=0.0)
    server.run(np.concatenate(parts), until=60)
    serving = {round(time): decision.variant for time, decision in server.decisions}
    assert (serving[19], serving[59]) == ("v4", "v4")
    assert serving[39] in ("v1", "v2")
    assert np.mean(np.array(server.delays) <= OBJECTIVE) > 0.95
    held = Server(five, Switcher(five, Fixed("v4")), ratio=1.0, overhead=0.0)
    held.run(np.concatenate(parts), until=60)
    assert held.switches() == []
    assert np.mean(np.array(held.delays) <= OBJECTIVE) < 0.5


def test_an_overload_goes_several_sizes_down_in_one_switch(five: dict[str, Profile]) -> None:
    switcher = Switcher(five, Slo(OBJECTIVE), dwell=DWELL)
    for tenth in range(100):
        decision = switcher.observe(Observation(tenth / 10, 1))
    assert decision.variant == "v4"
    seen = [decision.variant]
    for tenth in range(100, 150):
        seen.append(switcher.observe(Observation(tenth / 10, 80)).variant)
    assert list(dict.fromkeys(seen)) == ["v4", "v0"]


def test_a_standing_queue_alone_is_reason_enough(five: dict[str, Profile]) -> None:
    switcher = Switcher(five, Slo(OBJECTIVE), dwell=0.0)
    for second in range(5):
        decision = switcher.observe(Observation(float(second), 1, queue=20))
    # Twenty waiting take 40 ms on v1, 80 ms on v2.
    assert decision.variant == "v1"


def test_large_requests_count_by_their_images(five: dict[str, Profile]) -> None:
    """Ten requests a second of 16 images are another load than ten of one."""
    times = ServiceTimes(five)
    chosen = []
    for requests, size in ((10, 1), (10, 16)):
        switcher = Switcher(five, Slo(OBJECTIVE), dwell=0.0)
        for second in range(40):
            seconds = times.predict(switcher.current, size)
            services = (Service(switcher.current, size, seconds),) * requests
            decision = switcher.observe(Observation(float(second), requests, services=services))
        chosen.append(decision.variant)
    assert chosen == ["v4", "v1"]


@pytest.mark.parametrize(
    ("current", "rate", "waiting", "chosen", "reason"),
    [
        (
            "slow",
            10.0,
            0,
            "slow",
            "at 10 requests/s slow is 40% busy and answers 99.6% in time: "
            "none promises more right answers in time",
        ),
        (
            "slow",
            20.0,
            0,
            "quick",
            "at 20 requests/s slow is 80% busy and answers 62.2% in time; "
            "at 22 requests/s quick would be 22% busy and answer 100.0% in time",
        ),
        (
            "slow",
            10.0,
            4,
            "quick",
            "at 10 requests/s slow is 40% busy and answers 83.0% in time, 4 waiting; "
            "at 11 requests/s quick would be 11% busy and answer 100.0% in time, 4 waiting",
        ),
        (
            "slow",
            30.0,
            0,
            "quick",
            "at 30 requests/s slow needs 120% of the time there is; "
            "at 33 requests/s quick would be 33% busy and answer 100.0% in time",
        ),
        (
            "quick",
            5.0,
            0,
            "slow",
            "at 7.2 requests/s slow would be 29% busy and answer 100.0% in time: "
            "there is room for a more accurate variant",
        ),
        (
            "quick",
            200.0,
            0,
            "quick",
            "at 200 requests/s quick needs 200% of the time there is: too slow, but no variant is faster",
        ),
    ],
)
def test_reasons_read_as_sentences(
    five: dict[str, Profile], current: str, rate: float, waiting: int, chosen: str, reason: str
) -> None:
    profiles = {"quick": five["v0"], "slow": five["v4"]}
    seconds = {"quick": 0.01, "slow": 0.04}
    now = Situation(profiles, current, seconds, rate, 1.1 * rate, 1.2 * rate, waiting)
    assert Slo(0.1).choose(now) == (chosen, reason)


def test_an_objective_shorter_than_every_service_leaves_the_fastest(five: dict[str, Profile]) -> None:
    seconds = {name: profile.latency.p50_ms / 1e3 for name, profile in five.items()}
    assert Slo(0.0005).choose(Situation(five, "v2", seconds, rate=1.0)) == (
        "v0",
        "at 0 requests/s v0 would take 1.0 ms of 0.5 ms allowed: too slow, but no variant is faster",
    )


def test_fixed_never_moves(five: dict[str, Profile]) -> None:
    switcher = Switcher(five, Fixed("v3"), dwell=0.0)
    for second in range(20):
        assert switcher.observe(Observation(float(second), 9000, 10**6)).variant == "v3"


def test_it_starts_at_the_median_size(five: dict[str, Profile]) -> None:
    names = list(five)
    for count, start in ((1, "v0"), (2, "v0"), (3, "v1"), (4, "v1"), (5, "v2")):
        some = {name: five[name] for name in names[:count]}
        assert Switcher(some, Slo(OBJECTIVE)).current == start


def test_a_variant_that_does_not_run_is_not_chosen_again(five: dict[str, Profile]) -> None:
    switcher = Switcher(five, Slo(OBJECTIVE), dwell=DWELL)
    for second in range(4):
        switcher.observe(Observation(float(second)))
    assert switcher.current == "v4"
    switcher.exclude("v4", serving="v2")
    assert switcher.current == "v2"
    assert {switcher.observe(Observation(float(second))).variant for second in range(4, 9)} == {"v3"}


def test_a_day_second_by_second_replays(five: dict[str, Profile]) -> None:
    switcher = Switcher(five, Slo(OBJECTIVE), dwell=DWELL)
    seconds = np.arange(86_400)
    rate = 250 - 249 * np.cos(seconds / 86_400 * 2 * np.pi)
    arrivals = np.random.default_rng(0).poisson(rate).tolist()
    seen = [
        switcher.observe(Observation(float(second), count)).variant for second, count in enumerate(arrivals)
    ]
    assert (seen[3600], seen[43_200], seen[-3600]) == ("v4", "v0", "v4")
    assert set(seen) == set(five)
    assert sum(a != b for a, b in pairwise(seen)) < 200


@pytest.mark.parametrize(
    "make",
    [
        lambda five: Switcher({}, Slo(OBJECTIVE)),
        lambda five: Switcher(five, Slo(OBJECTIVE), dwell=-1),
        lambda five: Switcher(five, Slo(OBJECTIVE), servers=0),
        lambda five: Slo(0),
        lambda five: Slo(float("inf")),
        lambda five: Slo(float("nan")),
    ],
)
def test_settings_out_of_range_are_refused(five: dict[str, Profile], make: Callable[..., object]) -> None:
    with pytest.raises(EngineError):
        make(five)


def test_an_unknown_variant_is_refused_with_the_known_ones(five: dict[str, Profile]) -> None:
    with pytest.raises(EngineError, match=r"'v9'.*v0, v1, v2, v3, v4"):
        Switcher(five, Fixed("v9"))
