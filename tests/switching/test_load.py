import pytest
from hypothesis import given
from hypothesis import strategies as st

from shifter.switching.load import Load, Observation, Service


def steady(load: Load, rate: float, seconds: float, start: float = 0.0, tick: float = 0.1) -> float:
    """Evenly spaced requests; returns the end."""
    total = 0
    for index in range(1, round(seconds / tick) + 1):
        due = round(index * tick * rate)
        load.add(Observation(start + index * tick, due - total))
        total = due
    return start + round(seconds / tick) * tick


@pytest.mark.parametrize("rate", [0.1, 1, 10, 100, 10_000])
def test_a_steady_rate_is_found_from_low_to_high(rate: float) -> None:
    load = Load()
    steady(load, rate, 60)
    assert load.rate == pytest.approx(rate, rel=0.35 if rate < 1 else 0.05)


@pytest.mark.parametrize("ambient", [0.1, 1, 10])
def test_ten_requests_at_once_do_not_look_like_a_flood(ambient: float) -> None:
    load = Load()
    end = steady(load, ambient, 60)
    load.add(Observation(end + 0.01, 10))
    assert load.rate < 2 * ambient + 0.5


def test_a_rise_is_known_within_a_second_and_a_half() -> None:
    load = Load()
    end = steady(load, 10, 30)
    steady(load, 500, 1.5, start=end)
    assert load.rate > 400


def test_traffic_that_has_stopped_is_known_to_have_stopped() -> None:
    load = Load()
    end = steady(load, 1000, 10)
    load.add(Observation(end + 2))
    assert load.rate < 100
    load.add(Observation(end + 31))
    assert load.rate == 0


def test_the_size_of_requests_is_that_of_the_last_ones_answered() -> None:
    load = Load()
    assert load.request_images == 1
    for second in range(20):
        services = tuple(Service("v", images, 0.01) for images in (2, 4, 6, 8, 20))
        load.add(Observation(float(second), requests=5, services=services))
    assert load.rate == pytest.approx(5, rel=0.1)
    assert load.request_images == 8
    load.add(Observation(100.0))
    assert (load.rate, load.request_images) == (0, 8)  # the size is remembered, the rate is not
    load.add(Observation(101.0, requests=50, services=(Service("v", 3, 0.01),) * 50))
    assert load.request_images == 3


def test_only_a_queue_that_stays_counts() -> None:
    load = Load()
    for tenth, queue in enumerate([0, 50, 30, 10]):
        load.add(Observation(tenth / 10, queue=queue))
    assert load.queue == 0
    for tenth in range(4, 16):
        load.add(Observation(tenth / 10, queue=20 + tenth))
    assert load.queue == 25  # the least of the last second


def test_the_peak_outlasts_a_dip() -> None:
    load = Load()
    end = steady(load, 1000, 10)
    end = steady(load, 200, 4, start=end)
    assert load.rate == pytest.approx(200, rel=0.1)
    assert load.peak == pytest.approx(1000, rel=0.1)
    steady(load, 200, 4, start=end)
    assert load.peak == pytest.approx(200, rel=0.1)


def test_one_observation_after_a_long_gap_is_averaged_over_the_gap() -> None:
    load = Load()
    load.add(Observation(0.0))
    load.add(Observation(100.0, 1000))
    assert load.rate == pytest.approx(10)


@given(st.lists(st.tuples(st.floats(0, 50), st.integers(0, 300)), max_size=60))
def test_the_rate_is_never_more_than_arrived_in_its_window(steps: list[tuple[float, int]]) -> None:
    load, time, arrived = Load(), 0.0, 0
    for gap, requests in steps:
        time += gap
        arrived += requests
        load.add(Observation(time, requests))
        assert 0 <= load.rate <= arrived
        assert load.peak >= load.rate


def test_time_does_not_run_backwards() -> None:
    load = Load()
    load.add(Observation(5.0))
    with pytest.raises(AssertionError, match="backwards"):
        load.add(Observation(4.9))
