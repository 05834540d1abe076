import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shifter.switching import ratios
from shifter.switching.policies import Slo
from shifter.switching.ratios import OUTLIER, STEP, Ratios
from shifter.switching.switcher import Observation, Service, Switcher
from shifter.values import Profile

NAMES = ("a", "b", "c")


@given(
    st.lists(
        st.tuples(st.sampled_from(NAMES), st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=80)),
        max_size=40,
    )
)
def test_whatever_is_seen_factors_are_positive_and_lie_between_what_was_believed_and_seen(
    seen: list[tuple[str, list[float]]],
) -> None:
    learnt = Ratios(NAMES)
    lowest = highest = 1.0
    for name, some in seen:
        learnt.learn(name, some)
        lowest, highest = min(lowest, *some), max(highest, *some)
        assert 0 < learnt.of(name) < math.inf
        assert lowest / 2 <= learnt.of(name) <= highest * 2


@given(st.sampled_from([1, 30, 300]), st.floats(1, 1e9))
def test_one_request_never_counts_for_more_than_an_outlier(before: int, ratio: float) -> None:
    learnt, strayed = Ratios(NAMES), Ratios(NAMES)
    for _ in range(before):
        learnt.learn("a", [1.0])
        strayed.learn("a", [1.0])
    learnt.learn("a", [min(ratio, OUTLIER)])
    strayed.learn("a", [ratio])
    assert strayed.of("a") == learnt.of("a") <= STEP
    first = Ratios(NAMES)
    first.learn("b", [ratio])
    assert first.of("b") <= STEP * (1 + 1e-9)


def test_the_mean_is_learnt_and_not_the_median() -> None:
    """Capacity follows from the mean: one request in ten of four times the length counts."""
    learnt = Ratios(NAMES)
    random = np.random.default_rng(0)
    of = []
    for _ in range(400):
        learnt.learn("a", np.where(random.random(20) < 0.1, 4.0, 1.0).tolist())
        of.append(learnt.of("a"))
    assert np.mean(of[50:]) == pytest.approx(1.3, rel=0.05)


def test_what_is_believed_of_the_unseen_is_mostly_what_the_seen_have_in_common() -> None:
    learnt = Ratios(NAMES)
    for _ in range(50):
        learnt.learn("a", [2.0] * 5)
    assert learnt.of("c") == pytest.approx(2.0, rel=0.05)
    for _ in range(50):
        learnt.learn("b", [4.0] * 5)
    assert 2.0 < learnt.of("c") < 4.2
    assert learnt.of("a") < learnt.of("b")


@pytest.mark.parametrize(("worth", "fewest", "most"), [(ratios._OWN_WORTH, 1, 4), (1e9, 10, 100)])
def test_a_node_that_is_slow_for_large_variants_only_makes_no_switcher_flap(
    five: dict[str, Profile], monkeypatch: pytest.MonkeyPatch, worth: float, fewest: int, most: int
) -> None:
    """As it does if the variants have hardly a factor of their own."""
    monkeypatch.setattr(ratios, "_OWN_WORTH", worth)
    random = np.random.default_rng(0)
    switcher = Switcher(five, Slo(0.05), dwell=2.0)
    serving, rate = [switcher.current], 45
    for tick in range(1, 1200):
        requests = int(random.poisson(rate / 10))
        expected = five[switcher.current].latency.p50_ms / 1e3
        actual = expected * (2.0 if switcher.current in ("v3", "v4") else 1.0)
        services = (Service(switcher.current, 1, actual),) * requests
        serving.append(switcher.observe(Observation(tick / 10, requests, 0, services)).variant)
    assert serving[-1] in ("v2", "v3")
    assert fewest <= sum(a != b for a, b in pairwise(serving)) <= most
