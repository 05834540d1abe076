from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shifter.switching.oracle import oracle
from shifter.switching.policies import Fixed, Slo
from shifter.switching.samples import ServiceSamples
from shifter.switching.simulator import SwitchCosts, simulate
from shifter.switching.trace import draw_requests
from shifter.values import Profile

OBJECTIVE = 0.5


def best_of_all(
    arrivals: list[int], takes: list[list[int]], accuracy: list[float], objective: int, turns: list[int]
) -> float:
    """Every choice of a variant for each turn, and of who is refused, one after another."""
    most = 0.0
    kinds = sorted(set(turns))
    for variants in product(range(len(accuracy)), repeat=len(kinds)):
        for served in product([False, True], repeat=len(arrivals)):
            free, right = 0, 0.0
            for arrival, times, turn, serve in zip(arrivals, takes, turns, served, strict=True):
                if serve:
                    variant = variants[kinds.index(turn)]
                    free = max(free, arrival) + times[variant]
                    right += accuracy[variant] * (free - arrival <= objective)
            most = max(most, right)
    return most


@settings(deadline=None, max_examples=40)
@given(
    trace=st.lists(st.integers(0, 4), min_size=1, max_size=3).filter(lambda trace: 0 < sum(trace) <= 5),
    milliseconds=st.lists(st.integers(20, 700), min_size=1, max_size=3, unique=True).map(sorted),
    hold=st.sampled_from([None, 1.0]),
    seed=st.integers(0, 1000),
)
def test_nobody_does_better_and_somebody_nearly_as_well(
    make_profile: Callable[..., Profile],
    trace: list[int],
    milliseconds: list[int],
    hold: float | None,
    seed: int,
) -> None:
    profiles = {
        f"v{place}": make_profile(float(ms), 9.0 * ms, 0.5 + 0.1 * place)
        for place, ms in enumerate(milliseconds)
    }
    arrivals, _ = draw_requests(np.array(trace), seed)
    takes = [[ms * 10**6 for ms in milliseconds]] * arrivals.size
    accuracy = [profile.test_accuracy for profile in profiles.values()]
    turns = (arrivals // 10**9).tolist() if hold else list(range(arrivals.size))

    def best(objective: int) -> float:
        return best_of_all(arrivals.tolist(), takes, accuracy, objective, turns)

    found = oracle(profiles, trace, objective=OBJECTIVE, hold=hold, seed=seed).sum()
    assert found >= best(500_000_000) - 1e-9
    # It rounds by less than a step of 0.25 ms for each request.
    assert found <= best(500_000_000 + 250_000 * (arrivals.size + 1)) + 1e-9


@settings(deadline=None, max_examples=15)
@given(
    trace=st.lists(st.integers(0, 200), min_size=1, max_size=20),
    servers=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_no_policy_is_above_it(five: dict[str, Profile], trace: list[int], servers: int, seed: int) -> None:
    services = {name: ServiceSamples.of(one.latency.p50_ms / 1e3, 2e-3) for name, one in five.items()}
    bound = oracle(five, trace, servers, objective=0.05, services=services, seed=seed, block=4)
    assert bound.size == -(-len(trace) // 4)
    free = SwitchCosts(cold=0.0, ahead=0.0)
    for policy in (Slo(0.05), Fixed("v0"), Fixed("v2"), Fixed("v4")):
        figures = simulate(
            five, trace, policy, servers, objective=0.05, services=services, costs=free, seed=seed
        )
        right = figures.timeline.right
        for place, most in enumerate(bound):
            # A block may begin with a queue for the policy, and never does for the oracle.
            assert right[4 * place : 4 * place + 4].sum() <= most + 1e-9


def test_holding_longer_is_never_better(five: dict[str, Profile]) -> None:
    trace = np.random.default_rng(1).poisson(90, 30)
    found = [oracle(five, trace, objective=0.05, hold=hold).sum() for hold in (None, 0.1, 1.0, 5.0, 30.0)]
    assert found == sorted(found, reverse=True)
    assert found[0] > found[-1]
    fixed = [simulate(five, trace, Fixed(name), objective=0.05).timeline.right.sum() for name in five]
    assert found[-1] >= max(fixed) - 1e-9


def test_with_time_enough_every_answer_is_the_most_accurate_variants(five: dict[str, Profile]) -> None:
    trace = [1, 0, 2, 1]
    assert oracle(five, trace, objective=2.0).sum() == pytest.approx(4 * five["v4"].test_accuracy)
    assert oracle(five, [], objective=2.0).sum() == 0
    assert oracle(five, [0, 0], objective=2.0, block=1).tolist() == [0, 0]
