import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shifter.errors import EngineError
from shifter.switching.samples import ServiceSamples, at_quantiles, of_profiles
from shifter.values import Latency, Profile


@given(st.floats(1e-5, 10), st.floats(0, 1))
def test_a_mean_and_a_deviation_are_kept(mean: float, relative: float) -> None:
    made = ServiceSamples.of(mean, relative * mean)
    assert made.mean == pytest.approx(mean)
    # The tail of a thousand quantiles is a little shorter.
    assert np.std(made.seconds) == pytest.approx(relative * mean, rel=0.1, abs=1e-9 * mean)


@given(st.floats(0.01, 1000), st.floats(1, 4))
def test_a_median_and_a_99th_percentile_are_kept(median: float, tail: float) -> None:
    latency = Latency(median, median, median, tail * median, 100)
    seconds = ServiceSamples.of_latency(latency).seconds
    assert np.median(seconds) == pytest.approx(median / 1e3, rel=0.01)
    assert np.quantile(seconds, 0.99) == pytest.approx(tail * median / 1e3, rel=0.02)


def test_measured_times_are_each_as_likely() -> None:
    made = ServiceSamples([0.3, 0.1, 0.2])
    assert made.seconds.tolist() == [0.1, 0.2, 0.3]
    drawn = at_quantiles(made.seconds, np.random.default_rng(0).random(30_000))
    assert [np.mean(drawn == one) for one in made.seconds] == pytest.approx([1 / 3] * 3, abs=0.01)
    assert at_quantiles(made.seconds, np.array([0.0, 1 - 1e-16])).tolist() == [0.1, 0.3]
    assert made.nanoseconds(0.001).tolist() == [101_000_000, 201_000_000, 301_000_000]


def test_calls_one_after_another_add_up() -> None:
    both = ServiceSamples.of(0.1, 0.02).plus([ServiceSamples.of(0.2, 0.1), ServiceSamples([1.0])])
    assert both.mean == pytest.approx(1.3)


def test_without_measurements_the_profiles_say(five: dict[str, Profile]) -> None:
    assert [one.mean for one in of_profiles(five, None).values()] == pytest.approx(
        [0.001, 0.002, 0.004, 0.008, 0.016]
    )


@pytest.mark.parametrize("seconds", [[], [0.0], [-1.0, 1.0], [float("nan")], [float("inf")], [[1.0]]])
def test_what_is_no_time_is_refused(seconds: list[float]) -> None:
    with pytest.raises(EngineError):
        ServiceSamples(seconds)


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 0.0), (-1.0, 1.0), (1.0, -1.0), (float("nan"), 0.0)])
def test_what_is_no_distribution_is_refused(mean: float, deviation: float) -> None:
    with pytest.raises(EngineError):
        ServiceSamples.of(mean, deviation)
