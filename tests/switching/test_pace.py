"""How long calls take just now: one that was held up tells nothing, and a few tell all."""

from __future__ import annotations

import pytest

from shifter.switching.pace import LOOKED_AT, Pace
from shifter.switching.service_time import ServiceTimes
from shifter.switching.switcher import Service
from shifter.values import Profile


def test_it_begins_with_what_the_switcher_expects(five: dict[str, Profile]) -> None:
    times = ServiceTimes(five)
    times.learn([Service("v2", 1, 0.012, 0.002)] * 300)
    pace = Pace(times)
    assert pace.seconds("v4", 3) == times.predict("v4", 3) - times.overhead
    assert pace.overhead == times.overhead == pytest.approx(0.002, rel=0.05)


def test_one_call_that_was_held_up_changes_nothing_and_some_slow_ones_everything(
    five: dict[str, Profile],
) -> None:
    pace = Pace(ServiceTimes(five))
    pace.saw("v2", 1, 4.0)
    assert pace.seconds("v2", 1) == pytest.approx(0.004)
    for _ in range(LOOKED_AT):
        pace.saw("v2", 8, 3 * 0.018)
    assert pace.seconds("v2", 1) == pytest.approx(0.012)
    assert pace.seconds("v0", 8) == pytest.approx(3 * 0.0045)
    for _ in range(LOOKED_AT - 1):
        pace.saw("v0", 1, 0.001)
    assert pace.seconds("v2", 8) == pytest.approx(0.018)


def test_what_the_switcher_learns_of_the_same_calls_counts_once(five: dict[str, Profile]) -> None:
    times = ServiceTimes(five)
    pace = Pace(times)
    for _ in range(LOOKED_AT):
        pace.saw("v2", 1, 0.012)
    for _ in range(3):
        times.learn([Service("v2", 1, 0.012)] * 20)
        assert pace.seconds("v2", 1) == pytest.approx(0.012)
