"""Rate, time left and cost of training, as its epochs come in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.progress import Training, clock

EPOCH = {"images": 500, "images_left": 9500, "seconds": 2.0, "workers": 3, "device": "cuda"}


def test_time_left_is_of_what_is_left_at_the_pace_of_this_start() -> None:
    """A run that is resumed begins with few images left: what others trained does not count."""
    training = Training(EPOCH, now=100.0)
    assert training.images_per_second == 250
    assert training.seconds_left(100.0) == pytest.approx(9500 / 250)
    # Two seconds of training, then one between two rounds: the pace is that of all five seconds.
    training.take({**EPOCH, "images_left": 9000}, now=103.0)
    assert training.images_per_second == 250
    assert training.seconds_left(103.0) == pytest.approx(9000 * 5 / 1000)
    assert training.seconds_left(105.0) == pytest.approx(9000 * 5 / 1000 - 2)
    assert training.seconds_left(1e6) == 0


def test_cost_counts_every_worker_since_the_first_epoch_began() -> None:
    training = Training(EPOCH, now=100.0)
    assert training.worker_seconds(100.0) == 6
    assert training.worker_seconds(101.0) == 9
    assert training.unit == "GPU-s"
    training.take({**EPOCH, "device": "cpu"}, now=102.0)
    assert training.worker_seconds(102.0) == 12
    assert training.unit == "CPU-s"


@given(st.lists(st.tuples(st.floats(0, 1e4), st.integers(0, 10**9)), min_size=1, max_size=10))
def test_no_figure_is_ever_negative_or_not_a_number(epochs: list[tuple[float, int]]) -> None:
    now, training = 0.0, None
    for seconds, images in epochs:
        now += seconds
        event = {**EPOCH, "seconds": seconds, "images": images}
        if training is None:
            training = Training(event, now)
        else:
            training.take(event, now)
        assert all(figure >= 0 for figure in training.figures(now).values())


def test_a_clock_reads_in_hours_minutes_and_seconds() -> None:
    assert [clock(s) for s in (0.4, 83, 7384)] == ["0:00:00", "0:01:23", "2:03:04"]
