from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shifter.switching.load import Service
from shifter.switching.service_time import ServiceTimes
from shifter.values import Profile

MakeProfile = Callable[..., Profile]


def test_it_goes_through_both_latencies_of_the_profile(make_profile: MakeProfile) -> None:
    times = ServiceTimes({"v": make_profile(2.0, 5.5, 0.9)})
    assert times.predict("v", 1) == pytest.approx(0.002)
    assert times.predict("v", 8) == pytest.approx(0.0055)


@given(st.floats(0.01, 100), st.floats(0.01, 1000), st.sampled_from([1, 2, 8, 64]), st.floats(1, 500))
def test_it_is_never_below_zero_and_never_falls_with_more_images(
    make_profile: MakeProfile, one: float, batch: float, images: int, n: float
) -> None:
    times = ServiceTimes({"v": make_profile(one, batch, 0.9, batch_images=images)})
    assert 0 < times.predict("v", 1) <= times.predict("v", n) * (1 + 1e-9)


def test_a_slower_node_and_a_cost_per_request_are_told_apart(five: dict[str, Profile]) -> None:
    """What was learnt on the smallest variant holds for the largest, sixteen times as slow."""
    times = ServiceTimes(five)
    for _ in range(30):
        times.learn([Service("v0", 1, 0.0025, 0.004)] * 10)
    assert times.ratio == pytest.approx(2.5, rel=0.01)
    assert times.predict("v4", 1) == pytest.approx(0.004 + 2.5 * 0.016, rel=0.01)


def test_one_stray_request_changes_little(five: dict[str, Profile]) -> None:
    times = ServiceTimes(five)
    times.learn([Service("v2", 1, 0.004)] * 100)
    times.learn([Service("v2", 1, 0.040)])
    assert times.ratio == pytest.approx(1.0, abs=0.2)


def test_nothing_is_learnt_from_nothing(five: dict[str, Profile]) -> None:
    times = ServiceTimes(five)
    times.learn([])
    times.learn([Service("v0", 0, 0.5, 0.5)])
    assert (times.ratio, times.overhead) == (1.0, 0.0)
