"""What a replay plays: traces and shapes, cut, scaled and sped up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.replay_trace import SHAPES, USAGE, cut, play, read, shape_of
from jobs.schedule import Schedule
from shifter.errors import DataError, RecipeError

counts = st.lists(st.integers(0, 40), min_size=1, max_size=30).filter(any)


def recorded(numbers: list[int], width: float = 1.0) -> Schedule:
    seconds = np.full(len(numbers), width)
    return Schedule(seconds, np.array(numbers) / width, counted=True)


@given(counts, st.integers(0, 50), st.sampled_from(["poisson", "even"]))
def test_a_recorded_trace_keeps_its_number_in_every_second(numbers: list[int], seed: int, spacing) -> None:
    due = recorded(numbers).due(seed, spacing)
    assert np.all(np.diff(due) >= 0)
    within = np.histogram(due, np.arange(len(numbers) + 1))[0]
    if spacing == "even":
        # One that is due on the very edge may fall on either side of it.
        assert np.all(np.abs(within - numbers) <= 1)
        assert due.size == sum(numbers)
    else:
        assert within.tolist() == numbers


@given(counts, st.floats(0.1, 5), st.floats(0.2, 20))
def test_rate_and_speed_are_scaled_each_by_itself(numbers: list[int], scale: float, speed: float) -> None:
    trace = recorded(numbers)
    played = play(trace, rate_scale=scale, speed=speed)
    assert played.total_s == pytest.approx(trace.total_s / speed)
    assert played.peak == pytest.approx(trace.peak * scale)
    assert played.requests == pytest.approx(trace.requests * scale / speed)
    sent = np.mean([played.due(seed).size for seed in range(40)])
    # Rounded at random, which keeps the mean: half a request a stretch at most, over 40 draws.
    assert abs(sent - played.requests) <= 5 * 0.5 * np.sqrt(len(numbers) / 40) + 1e-6


def test_the_peak_is_set() -> None:
    assert play(recorded([3, 12, 6]), peak_rps=100).rates.tolist() == [25, 100, 50]


@given(counts, st.floats(0, 28), st.floats(0.1, 40))
def test_parts_of_a_trace_have_its_rates(numbers: list[int], start: float, seconds: float) -> None:
    trace = recorded(numbers)
    if start >= trace.total_s:
        with pytest.raises(RecipeError, match=f"lies behind the trace's end: it lasts {trace.total_s:g} s"):
            cut(trace, start, seconds)
        return
    part = cut(trace, start, seconds)
    assert part.total_s == pytest.approx(min(seconds, trace.total_s - start))
    again = cut(trace, 0, start).requests if start else 0.0
    rest = start + seconds
    after = cut(trace, rest, None).requests if rest < trace.total_s else 0.0
    assert again + part.requests + after == pytest.approx(trace.requests)
    assert cut(trace, 0, None).rates.tolist() == trace.rates.tolist()


def test_files_of_seconds_and_of_minutes_are_read(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("second,requests\n5,3\n7,1\n")
    trace = read(str(path))
    assert (trace.rates.tolist(), trace.total_s, trace.counted) == ([3, 0, 1], 3, True)
    path.write_text("minute,requests\n1,60\n2,120\n")
    trace = read(str(path))
    assert (trace.rates.tolist(), trace.total_s) == ([1, 2], 120)
    assert play(trace, speed=60).requests == pytest.approx(3)


def test_shapes_are_what_they_say() -> None:
    assert (read("poisson:20:30").requests, read("poisson:20:30").total_s) == (600, 30)
    ramp = read("ramp:10:30:20")
    assert (ramp.total_s, ramp.requests) == pytest.approx((20, 400))
    assert ramp.rates[0] == pytest.approx(10, abs=0.1)
    assert ramp.rates[-1] == pytest.approx(30, abs=0.1)
    assert np.all(np.diff(ramp.rates) > 0)
    bursts = read("bursts:5:50:10:2:25")
    assert bursts.total_s == 25
    assert [(s, r) for s, r in zip(bursts.seconds, bursts.rates, strict=True)] == [
        (8, 5), (2, 50), (8, 5), (2, 50), (5, 5),
    ]  # fmt: skip
    assert read("steps:5:20,2.5:60").rates.tolist() == [20, 60]
    assert USAGE.keys() == SHAPES.keys()


@pytest.mark.parametrize(
    ("trace", "says"),
    [
        ("nowhere.csv", r"there is no trace nowhere.csv: .*ramp:FROM:TO:SECONDS"),
        ("poison:5:5", "there is no trace poison:5:5"),
        ("poisson:5", r"'poisson:5' is no shape: write poisson:RATE:SECONDS"),
        ("poisson:-5:5", "is no shape"),
        ("poisson:nan:5", "is no shape"),
        ("poisson:5:0", "a segment of 0.0 s"),
        ("ramp:1:2:3:4", "write ramp:FROM:TO:SECONDS"),
        ("ramp:1:2:99999999", "give fewer seconds"),
        ("bursts:1:2:3:3:9", "less than from one to the next"),
        ("steps:5", "is no schedule"),
    ],
)
def test_what_is_no_trace_is_refused_with_the_remedy(trace: str, says: str) -> None:
    with pytest.raises((DataError, RecipeError), match=says):
        read(trace)


@pytest.mark.parametrize(
    ("scaling", "says"),
    [
        ({"rate_scale": -1.0}, "--rate-scale -1: it must be above 0"),
        ({"rate_scale": 0.0}, "--rate-scale 0:"),
        ({"peak_rps": float("nan")}, "--peak-rps nan:"),
        ({"speed": 0.0}, "--speed 0:"),
        ({"rate_scale": 1.0, "peak_rps": 1.0}, "give one of them"),
        ({"rate_scale": 1e6}, "at most 2,000,000; take a part"),
    ],
)
def test_scaling_that_makes_no_sense_is_refused(scaling: dict[str, float], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        play(recorded([5, 6]), **scaling)


def test_a_trace_without_requests_and_parts_that_are_none_are_refused() -> None:
    with pytest.raises(RecipeError, match="nothing to send"):
        play(recorded([0, 0]))
    for start, seconds in ((-1.0, None), (0.0, 0.0), (float("nan"), 1.0)):
        with pytest.raises(RecipeError, match="--start"):
            cut(recorded([1]), start, seconds)


def test_it_is_told_in_a_line() -> None:
    assert shape_of([0.1, 0.2, 1.5], 2.0) == "3 requests in 2 s, 1.5/s, at most 2 in a second"
