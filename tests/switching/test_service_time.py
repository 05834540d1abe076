import math
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shifter.switching.load import Service
from shifter.switching.service_time import Curve, ServiceTimes
from shifter.values import Profile

from .calibrations import calibration

MakeProfile = Callable[..., Profile]

seconds = st.floats(1e-6, 10)
points = st.dictionaries(st.integers(1, 300), seconds, min_size=1, max_size=6).map(
    lambda drawn: sorted(drawn.items())
)
services = st.lists(
    st.builds(
        Service,
        st.sampled_from(["v0", "v2", "v4"]),
        st.integers(1, 300),
        st.floats(0, 1e4),
        st.floats(0, 1e4),
    ),
    min_size=1,
    max_size=30,
)


def test_it_goes_through_both_latencies_of_the_profile(make_profile: MakeProfile) -> None:
    times = ServiceTimes({"v": make_profile(2.0, 5.5, 0.9)})
    assert times.predict("v", 1) == pytest.approx(0.002)
    assert times.predict("v", 8) == pytest.approx(0.0055)
    assert times.predict("v", 15) == pytest.approx(0.009)


@given(st.floats(0.01, 100), st.floats(0.01, 1000), st.sampled_from([1, 2, 8, 64]), st.floats(1, 500))
def test_it_is_never_below_zero_and_never_falls_with_more_images(
    make_profile: MakeProfile, one: float, batch: float, images: int, n: float
) -> None:
    times = ServiceTimes({"v": make_profile(one, batch, 0.9, batch_images=images)})
    assert 0 < times.predict("v", 1) <= times.predict("v", n) * (1 + 1e-9)


@given(points, st.floats(0, 500), st.floats(0, 500))
def test_a_curve_is_positive_never_falls_and_exceeds_no_batch_that_is_larger(
    points: list[tuple[int, float]], some: float, more: float
) -> None:
    curve = Curve(points)
    assert 0 < curve(some) <= curve(some + more)
    highest = 0.0
    for images, measured in points:
        highest = max(highest, measured)
        assert curve(images) == pytest.approx(highest)
    assert curve(2 * points[-1][0]) > 0
    assert math.isfinite(curve(1e9))


def test_between_measured_sizes_it_is_straight_and_beyond_as_steep_as_before() -> None:
    curve = Curve([(1, 0.002), (2, 0.003), (4, 0.007)])
    assert [curve(n) for n in (1, 1.5, 2, 3, 4)] == pytest.approx([0.002, 0.0025, 0.003, 0.005, 0.007])
    assert curve(6) == pytest.approx(0.011)
    # One size only, or sizes that all took as long: an image more costs as much as each did.
    assert Curve([(4, 0.008)])(8) == pytest.approx(0.016)
    assert Curve([(1, 0.004), (4, 0.004)])(8) == pytest.approx(0.008)


def test_what_was_measured_on_this_node_counts_more_than_the_profile(five: dict[str, Profile]) -> None:
    measured = calibration({"v0": [(1, 0.003), (4, 0.006)], "v9": [(1, 1.0)]})
    times = ServiceTimes(five, measured)
    assert times.predict("v0", 1) == pytest.approx(0.003)
    assert times.predict("v0", 2) == pytest.approx(0.004)
    assert times.predict("v1", 1) == ServiceTimes(five).predict("v1", 1)  # not measured
    times.learn([Service("v0", 1, 0.006)] * 300)
    assert times.predict("v0", 4) == pytest.approx(0.012, rel=0.01)


@given(services, st.sampled_from(["v0", "v1", "v4"]), st.floats(1, 300), st.floats(0, 300), st.booleans())
def test_whatever_is_seen_predictions_stay_positive_and_never_fall_with_more_images(
    five: dict[str, Profile],
    services: list[Service],
    name: str,
    images: float,
    more: float,
    calibrated: bool,
) -> None:
    measured = calibration({"v0": [(1, 0.003), (4, 0.002), (9, 0.1)]}) if calibrated else None
    times = ServiceTimes(five, measured)
    for begin in range(0, len(services), 3):
        times.learn(services[begin : begin + 3])
    assert 0 < times.predict(name, images) <= times.predict(name, images + more) < math.inf


@given(st.floats(0.2, 20), st.floats(0, 0.05), st.sampled_from([1, 3, 20]), st.booleans())
def test_it_converges_to_what_is_observed(
    five: dict[str, Profile], slower: float, overhead: float, at_once: int, calibrated: bool
) -> None:
    curve = Curve([(1, 0.004), (4, 0.009), (16, 0.020)])
    measured = calibration({"v2": [(1, 0.004), (4, 0.009), (16, 0.020)]}) if calibrated else None
    times = ServiceTimes(five, measured)
    expected = curve if calibrated else Curve([(1, 0.004), (8, 0.018)])
    for turn in range(600 // at_once):
        images = (1, 3, 10)[turn % 3]
        times.learn([Service("v2", images, slower * expected(images), overhead)] * at_once)
    for images in (1, 3, 10):
        assert times.predict("v2", images) == pytest.approx(overhead + slower * expected(images), rel=0.02)


def test_a_slower_node_and_a_cost_per_request_are_told_apart(five: dict[str, Profile]) -> None:
    """What was learnt on the smallest variant holds for the largest, sixteen times as slow."""
    times = ServiceTimes(five)
    for _ in range(30):
        times.learn([Service("v0", 1, 0.0025, 0.004)] * 10)
    # A little of it is taken for the variant's own.
    assert times.ratio == pytest.approx(2.5, rel=0.03)
    assert times.predict("v4", 1) == pytest.approx(0.004 + 2.5 * 0.016, rel=0.03)
    assert times.overhead == pytest.approx(0.004, rel=0.01)


stray = st.tuples(st.sampled_from([1.0, 100.0, 1e6]), st.sampled_from([1.0, 100.0, 1e6]))


@given(st.integers(0, 200), stray, st.floats(0.3, 3), st.sampled_from(["v0", "v4"]))
def test_one_stray_request_throws_nothing_off(
    five: dict[str, Profile], before: int, stray: tuple[float, float], ratio: float, other: str
) -> None:
    """Not even the first; and once some are known it changes little, in either correction."""
    times = ServiceTimes(five)
    for _ in range(before):
        times.learn([Service("v2", 1, 0.004 * ratio, 0.001)])
    known = {name: times.predict(name, 1) for name in ("v2", other)}
    engine, overhead = stray
    times.learn([Service("v2", 1, 0.004 * ratio * engine, 0.001 * overhead)])
    for name, seconds in known.items():
        # An overhead is every variant's, so it is to be judged beside the request that showed it.
        added, of = times.predict(name, 1) - seconds, max(seconds, known["v2"])
        assert added <= 1.5 * of
        if before >= 100:
            assert added <= 0.25 * of
    for _ in range(60):
        times.learn([Service("v2", 1, 0.004 * ratio, 0.001)])
    assert times.predict("v2", 1) == pytest.approx(0.004 * ratio + 0.001, rel=0.1)


@given(st.floats(0.5, 3), st.floats(0.5, 3))
def test_it_remembers_how_variants_differ_on_this_node(
    five: dict[str, Profile], small: float, large: float
) -> None:
    """Else a switcher that sees the larger one only as it remembers the smaller goes up in vain, again
    and again. All the while the node may become slower as a whole.
    """
    times = ServiceTimes(five)

    def serve(name: str, ratio: float) -> None:
        expected = five[name].latency.p50_ms / 1e3
        for _ in range(20):
            times.learn([Service(name, 1, expected * ratio)] * 4)

    for _ in range(4):
        serve("v3", large)
        serve("v1", small)
    assert times.predict("v3", 1) == pytest.approx(0.008 * large, rel=0.15)
    serve("v1", 2 * small)
    assert times.predict("v3", 1) == pytest.approx(0.008 * 2 * large, rel=0.25)


def test_a_newer_portfolio_knows_what_was_learnt_of_the_node(five: dict[str, Profile]) -> None:
    times = ServiceTimes(five)
    times.learn([Service("v2", 1, 0.012, 0.002)] * 100)
    new = times.renewed({"v2": five["v4"], "other": five["v3"]}, None)
    for name, expected in (("v2", 0.016), ("other", 0.008)):
        assert new.predict(name, 1) == pytest.approx(times.overhead + 3 * expected, rel=0.05)
    new.learn([Service("other", 1, 0.008)] * 100)
    assert times.predict("v2", 1) == pytest.approx(times.overhead + 0.012, rel=0.02)  # it has its own
    # What was three times the profile says nothing of what is measured on this node.
    calibrated = times.renewed(five, calibration({"v2": [(1, 0.011)]}))
    assert calibrated.predict("v2", 1) == pytest.approx(times.overhead + 0.011)


@pytest.mark.parametrize(
    "nothing",
    [
        [],
        [Service("v0", 0, 0.5, 0.5)],
        [Service("v7", 1, 0.5, 0.5)],
        [Service("v0", 1, math.nan, 0.5), Service("v0", 1, -0.5, 0.5), Service("v0", 1, math.inf, 0.5)],
    ],
)
def test_nothing_is_learnt_from_nothing(five: dict[str, Profile], nothing: Sequence[Service]) -> None:
    times = ServiceTimes(five)
    times.learn(nothing)
    assert (times.ratio, times.overhead) == (1.0, 0.0)
    assert times.predict("v3", 1) == pytest.approx(0.008)


def test_a_clock_that_stands_still_ends_in_no_error(five: dict[str, Profile]) -> None:
    times = ServiceTimes(five)
    for _ in range(20_000):
        times.learn([Service("v0", 1, 0.0)])
    assert 0 < times.predict("v0", 1) < 1e-6
    assert 0 < times.predict("v4", 1) < 0.016
