import math
import tracemalloc
from collections.abc import Iterator

import numpy as np
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


class Poisson:
    """Random arrivals, seen ten times a second, or ten times for each request if these are fewer."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._random = np.random.default_rng(7)
        self.time = 0.0

    def run(self, rate: float, seconds: float) -> Iterator[float]:
        """The moments seen."""
        tick = max(0.1, 0.1 / rate)
        for requests in self._random.poisson(rate * tick, round(seconds / tick)).tolist():
            self.time += tick
            self._load.add(Observation(self.time, requests))
            yield self.time

    def to_the_end(self, rate: float, seconds: float) -> None:
        for _ in self.run(rate, seconds):
            pass


RATES = [0.1, 1, 10, 100, 1000, 10_000]


@pytest.mark.parametrize("rate", RATES)
def test_the_error_of_the_rate_is_that_of_the_requests_it_counts(rate: float) -> None:
    """1/sqrt(N) for N = 50, or the requests of one second if these are more. A hundred windows apart."""
    load, errors = Load(), []
    arrivals, window = Poisson(load), max(1.0, 50 / rate)
    arrivals.to_the_end(rate, 2 * window)
    for _ in range(100):
        arrivals.to_the_end(rate, 1.5 * window)
        errors.append(load.rate / rate - 1)
    deviation = 1 / math.sqrt(max(50, rate))
    assert np.sqrt(np.mean(np.square(errors))) < 1.25 * deviation
    assert abs(np.mean(errors)) < 0.25 * deviation
    assert np.max(np.abs(errors)) < 5 * deviation


@pytest.mark.parametrize("rate", RATES)
def test_a_step_up_is_known_after_fifty_requests_or_a_second(rate: float) -> None:
    load = Load()
    arrivals, window = Poisson(load), max(1.0, 50 / rate)
    arrivals.to_the_end(rate / 20, 20 * window)
    assert load.rate < rate / 4
    arrivals.to_the_end(rate, 1.3 * window)  # fifty requests may take longer by chance
    assert load.rate == pytest.approx(rate, rel=4 / math.sqrt(max(50, rate)))


@pytest.mark.parametrize("rate", RATES)
def test_the_surge_knows_a_step_up_after_thirty_requests(rate: float) -> None:
    load = Load()
    arrivals = Poisson(load)
    arrivals.to_the_end(rate / 20, max(20.0, 1000 / rate))
    arrivals.to_the_end(rate, max(0.2, 45 / rate))
    assert rate / 3 < load.surge < 1.5 * rate


@pytest.mark.parametrize("rate", RATES)
def test_traffic_that_has_stopped_is_known_to_have_stopped(rate: float) -> None:
    """After g seconds of silence the rate is no more than 3/g, and so nothing in the end."""
    load = Load()
    Poisson(load).to_the_end(rate, max(5.0, 100 / rate))
    load.add(Observation(end := 10_000.0, 1))
    for silence in (1, 2, 30, 300):
        load.add(Observation(end + silence))
        assert load.rate <= 3 / silence
    load.add(Observation(end + 601))
    assert (load.rate, load.surge, load.peak) == (0, 0, 0)


@pytest.mark.parametrize("rate", [10, 100, 1000, 10_000])
def test_it_takes_a_second_to_know_that_busy_traffic_has_stopped(rate: float) -> None:
    load = Load()
    arrivals = Poisson(load)
    arrivals.to_the_end(rate, 30)
    load.add(Observation(arrivals.time + 1.5))
    assert load.rate <= 2


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


def test_the_size_of_requests_is_that_of_the_last_ones_answered() -> None:
    load = Load()
    assert load.request_images == 1
    for second in range(20):
        services = tuple(Service("v", images, 0.01) for images in (2, 4, 6, 8, 20))
        load.add(Observation(float(second), requests=5, services=services))
    assert load.rate == pytest.approx(5, rel=0.1)
    assert load.request_images == 8
    load.add(Observation(100.0))
    assert load.rate < 0.05
    assert load.request_images == 8  # the size is remembered, the rate is not
    load.add(Observation(101.0, requests=50, services=(Service("v", 3, 0.01),) * 50))
    assert load.request_images == 3


def test_only_a_queue_that_stays_counts() -> None:
    load = Load()
    for tenth, queue in enumerate([0, 50, 30, 10]):
        load.add(Observation(tenth / 10, queue=queue))
    assert (load.queue, load.standing_queue) == (10, 0)
    for tenth in range(4, 16):
        load.add(Observation(tenth / 10, queue=20 + tenth))
    assert (load.queue, load.standing_queue) == (35, 25)  # the least of the last second


def test_the_peak_outlasts_a_dip() -> None:
    load = Load()
    end = steady(load, 1000, 10)
    end = steady(load, 200, 2, start=end)
    assert load.rate == pytest.approx(200, rel=0.1)
    assert load.peak == pytest.approx(1000, rel=0.1)
    steady(load, 200, 3, start=end)
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


def test_the_flow_is_that_of_the_last_second() -> None:
    load = Load()
    service = Service("v", 1, 0.01)
    for hundredth in range(1, 301):
        load.add(Observation(hundredth / 100, 2, services=(service,)))
    assert load.arrived == pytest.approx(200, abs=4)
    assert load.answered == pytest.approx(100, abs=2)
    load.add(Observation(4.1))
    assert (load.arrived, load.answered) == (0, 0)


def test_memory_does_not_grow_with_observations() -> None:
    """Thousands a second, or at one moment, take no more than a few."""

    def size(per_second: int) -> int:
        load = Load()
        service = (Service("v", 1, 0.01),)
        tracemalloc.start()
        for index in range(10_000):
            load.add(Observation(index / per_second, index % 3, index % 7, service))
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return size

    assert max(size(10), size(1000), size(100_000), size(10**9)) < 200_000


def test_time_does_not_run_backwards() -> None:
    load = Load()
    load.add(Observation(5.0))
    with pytest.raises(AssertionError, match="backwards"):
        load.add(Observation(4.9))
