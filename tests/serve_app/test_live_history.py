"""The history that the page draws: what each second counts, and how much is remembered."""

from __future__ import annotations

import random
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.live_history import KEPT_SECONDS, History, Latencies
from serve_app.observer import Answered
from shifter.switching.host import Status, Switch


class Clock:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def history(clock: Clock) -> History:
    return History("4x", clock=clock, now=lambda: clock.seconds + 1_700_000_000)


def status(queue: int, active: str = "4x") -> Status:
    nothing: dict[str, Any] = {
        **{"pinned": None, "rate": 0.0, "waiting": 0, "computing": 0, "memory_bytes": 0},
        **{"usable": (), "ready": (), "switches": (), "inflations": ()},
    }
    return Status(
        portfolio=cast(Any, None), since=0.0, active=active, reason="the test", queue=queue, **nothing
    )


def answered(seconds: float) -> Answered:
    return Answered("4x", 1, seconds, seconds)


def switch(after: str, error: str | None = None) -> Switch:
    return Switch(0.0, "4x", after, "the test", 0.1, False, error)


def test_a_second_counts_what_ended_in_it_and_is_told_once_it_is_over(history: History, clock: Clock) -> None:
    history.answered(answered(0.010))
    history.answered(answered(0.020))
    history.refused("queue", "")
    history.refused("request", "")
    history.ticked(status(queue=5))
    history.ticked(status(queue=3))
    assert history.since(0)[1:] == (0, [])
    clock.seconds += 1.25
    begin, following, (second,) = history.since(0)
    assert (begin, following) == (1_700_001_000, 1)
    assert (second.answered, second.refused) == (2, {"queue": 1, "request": 1})
    assert (second.queue, second.variant) == (5, "4x")
    assert second.p50_ms == pytest.approx(10, rel=0.025)
    assert second.p99_ms == 20
    assert second.arrived == 2 + 2 + 3


def test_arrivals_are_counted_once_whenever_they_end(history: History, clock: Clock) -> None:
    history.ticked(status(queue=10))
    clock.seconds += 1
    for _ in range(4):
        history.answered(answered(0.001))
    history.ticked(status(queue=8))
    clock.seconds += 1
    for _ in range(8):
        history.answered(answered(0.001))
    history.ticked(status(queue=0))
    clock.seconds += 1
    assert [second.arrived for second in history.since(0)[2]] == [10, 2, 0]


def test_a_silent_second_has_no_latency_and_keeps_what_stays(history: History, clock: Clock) -> None:
    history.ticked(status(queue=2))
    clock.seconds += 3
    _, following, seconds = history.since(0)
    assert following == len(seconds) == 3
    assert [(s.answered, s.p50_ms, s.p99_ms) for s in seconds] == [(0, None, None)] * 3
    assert [s.queue for s in seconds] == [2, 2, 2]
    assert [s.arrived for s in seconds] == [2, 0, 0]


def test_the_variant_is_that_at_the_end_and_a_failed_switch_is_none(history: History, clock: Clock) -> None:
    history.switched(switch("1x", error="no memory"))
    clock.seconds += 1
    history.switched(switch("1x"))
    clock.seconds += 1
    history.ticked(status(queue=0, active="16x"))
    clock.seconds += 1
    assert [second.variant for second in history.since(0)[2]] == ["4x", "1x", "16x"]


def test_it_tells_only_what_is_new_and_forgets_what_is_old(history: History, clock: Clock) -> None:
    for _ in range(KEPT_SECONDS + 50):
        history.answered(answered(0.001))
        clock.seconds += 1
    begin, following, seconds = history.since(0)
    assert following == KEPT_SECONDS + 50
    assert len(seconds) == KEPT_SECONDS
    assert begin == pytest.approx(1_700_001_000 + 50)
    begin, following, seconds = history.since(following - 3)
    assert (len(seconds), begin) == (3, pytest.approx(1_700_001_000 + following - 3))
    for nothing_new in (following, following + 10**30):
        assert history.since(nothing_new)[1:] == (following, [])


def test_after_a_long_silence_it_is_bounded_and_the_numbers_go_on(history: History, clock: Clock) -> None:
    history.answered(answered(0.001))
    clock.seconds += 10**7
    begin, following, seconds = history.since(0)
    assert following == 10**7
    assert len(seconds) == KEPT_SECONDS
    assert not any(second.answered for second in seconds)
    assert begin + KEPT_SECONDS == pytest.approx(1_700_001_000 + 10**7)


@given(st.lists(st.tuples(st.sampled_from("ardt"), st.floats(0, 3)), max_size=60))
def test_sums_are_those_of_what_happened(events: list[tuple[str, float]]) -> None:
    """Whatever the order: each request that ended is in exactly one second, and arrived once."""
    clock = Clock()
    history = History("4x", clock=clock)
    inside = ended = refused = arrived = 0
    for kind, pause in events:
        clock.seconds += pause
        if kind == "a":
            arrived, inside = arrived + 1, inside + 1
        elif kind == "d" and inside:
            inside, ended = inside - 1, ended + 1
            history.answered(answered(0.001))
        elif kind == "r":
            arrived, refused = arrived + 1, refused + 1
            history.refused("queue", "")
        history.ticked(status(queue=inside))
    clock.seconds += 1
    seconds = history.since(0)[2]
    assert sum(s.answered for s in seconds) == ended
    assert sum(s.refused.get("queue", 0) for s in seconds) == refused
    assert sum(s.arrived for s in seconds) == arrived


@pytest.mark.parametrize("number", [1, 2, 99, 100, 1000])
def test_quantiles_are_those_of_the_latencies(number: int) -> None:
    drawn = np.random.default_rng(number).lognormal(-4, 2, number)
    latencies = Latencies()
    for seconds in drawn:
        latencies.add(float(seconds))
    for share in (0.5, 0.99):
        exact = float(np.quantile(drawn, share, method="inverted_cdf"))
        assert latencies.quantile(share) == pytest.approx(exact, rel=0.026)


def test_a_histogram_is_of_so_many_bins_whatever_it_is_given() -> None:
    latencies = Latencies()
    assert latencies.quantile(0.5) is None
    drawn = random.Random(0)
    for _ in range(20_000):
        latencies.add(10 ** drawn.uniform(-9, 9))
    latencies.add(0.0)
    assert len(latencies._bins) <= 331
    assert latencies.quantile(1.0) == latencies._longest
