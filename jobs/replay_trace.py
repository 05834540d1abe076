"""What a replay plays: a recorded trace or a shape, cut, scaled and sped up."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from jobs.schedule import Schedule, Segment, parse_schedule
from shifter.errors import DataError, RecipeError
from shifter.switching.trace import read_counts

MOST_REQUESTS = 2_000_000
"""In one replay: each leaves a record in memory."""

_RAMP_STRETCH_S = 0.1
_MOST_STRETCHES = 1_000_000


def read(trace: str) -> Schedule:
    """The file or the shape that ``trace`` names; times and rates are its own.

    Raises:
        DataError: if it names a file that is not there, or is no trace.
        RecipeError: if it is a shape that is wrong.
    """
    kind, colon, rest = trace.partition(":")
    if colon and kind in SHAPES:
        return SHAPES[kind](rest)
    path = Path(trace)
    if not path.exists():
        raise DataError(
            f"there is no trace {trace}: give a CSV file with the columns second,requests or "
            f"minute,requests, or a shape: {', '.join(USAGE.values())}"
        )
    counts, width_s = read_counts(path)
    seconds = np.full(counts.size, float(width_s))
    return Schedule(seconds, counts / width_s, counted=True)


def _numbers(kind: str, text: str, count: int) -> list[float]:
    parts = text.split(":")
    number = r"[0-9]+(\.[0-9]*)?|\.[0-9]+"
    if len(parts) != count or not all(re.fullmatch(number, part) for part in parts):
        raise RecipeError(
            f"'{kind}:{text}' is no shape: write {USAGE[kind]}, numbers of 0 or more, seconds above 0"
        )
    return [float(part) for part in parts]


def _stretches(seconds: float, width: float) -> int:
    stretches = math.ceil(seconds / width)
    if stretches > _MOST_STRETCHES:
        raise RecipeError(
            f"{seconds:g} s in stretches of {width:g} s are {stretches} of them: at most {_MOST_STRETCHES}; "
            "give fewer seconds"
        )
    return stretches


def _poisson(text: str) -> Schedule:
    rate, seconds = _numbers("poisson", text, 2)
    return Schedule.of([Segment(seconds, rate)])


def _ramp(text: str) -> Schedule:
    start, end, seconds = _numbers("ramp", text, 3)
    count = max(1, _stretches(Segment(seconds, start).seconds, _RAMP_STRETCH_S))
    rates = start + (end - start) * (np.arange(count) + 0.5) / count
    return Schedule(np.full(count, seconds / count), rates)


def _bursts(text: str) -> Schedule:
    low, high, every, lasting, seconds = _numbers("bursts", text, 5)
    if not 0 < lasting < every:
        raise RecipeError(
            f"bursts of {lasting:g} s, one every {every:g} s: they last longer than 0 s and less "
            "than from one to the next"
        )
    count = _stretches(Segment(seconds, low).seconds, every)
    return cut(Schedule.of([Segment(every - lasting, low), Segment(lasting, high)] * count), 0.0, seconds)


def _steps(text: str) -> Schedule:
    return Schedule.of(parse_schedule(text))


SHAPES: dict[str, Callable[[str], Schedule]] = {
    "poisson": _poisson,
    "ramp": _ramp,
    "bursts": _bursts,
    "steps": _steps,
}
USAGE = {
    "poisson": "poisson:RATE:SECONDS",
    "ramp": "ramp:FROM:TO:SECONDS",
    "bursts": "bursts:LOW:HIGH:EVERY_S:LASTING_S:SECONDS",
    "steps": "steps:SECONDS:RATE,SECONDS:RATE,…",
}


def cut(schedule: Schedule, start: float, seconds: float | None) -> Schedule:
    """The part from ``start`` on, of ``seconds`` or until the end; a stretch may be cut in two.

    Raises:
        RecipeError: if that is no part of it.
    """
    if not (0 <= start < math.inf) or (seconds is not None and not 0 < seconds < math.inf):
        raise RecipeError(f"--start {start} and --seconds {seconds}: 0 or more, and above 0")
    total = schedule.total_s
    if start >= total:
        raise RecipeError(f"--start {start:g} lies behind the trace's end: it lasts {total:g} s")
    end = total if seconds is None else min(total, start + seconds)
    edges = np.concatenate([[0.0], np.cumsum(schedule.seconds)])
    left, right = np.maximum(edges[:-1], start), np.minimum(edges[1:], end)
    kept = right > left
    return Schedule((right - left)[kept], schedule.rates[kept], schedule.counted)


def play(
    schedule: Schedule, *, rate_scale: float | None = None, peak_rps: float | None = None, speed: float = 1.0
) -> Schedule:
    """The schedule with its rates and its time scaled, each by itself.

    Args:
        rate_scale: factor of the requests a second; 1 by default.
        peak_rps: instead, the highest rate.
        speed: the trace's time passes so many times faster. Requests a second stay as they are: a
            day at a speed of 24 is an hour at the day's rates, with a 24th of its requests.

    Raises:
        RecipeError: if a factor is not above 0, both are given, or nothing or too much is left to send.
    """
    for name, value in (("--rate-scale", rate_scale), ("--peak-rps", peak_rps), ("--speed", speed)):
        if value is not None and not 0 < value < math.inf:
            raise RecipeError(f"{name} {value:g}: it must be above 0")
    if rate_scale is not None and peak_rps is not None:
        raise RecipeError("--rate-scale and --peak-rps both scale the rates: give one of them")
    if schedule.peak == 0:
        raise RecipeError("there is no request in the trace, or in the part of it: there is nothing to send")
    factor = peak_rps / schedule.peak if peak_rps is not None else rate_scale or 1.0
    played = Schedule(schedule.seconds / speed, schedule.rates * factor, schedule.counted)
    if played.requests > MOST_REQUESTS:
        raise RecipeError(
            f"that would be {played.requests:,.0f} requests: at most {MOST_REQUESTS:,}; take a part with "
            "--seconds, play it faster with --speed, or lower the rates with --rate-scale"
        )
    return played


def shape_of(due: Sequence[float], seconds: float) -> str:
    """``1,234 requests in 60 s, 20.6/s, at most 41 in a second``."""
    busiest = np.bincount(np.asarray(due, np.float64).astype(np.int64)).max(initial=0)
    mean = len(due) / seconds
    return f"{len(due):,} requests in {seconds:,.4g} s, {mean:,.1f}/s, at most {busiest:,} in a second"
