"""Traces of requests: how many arrived in each second."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shifter.errors import DataError

SECOND = 1_000_000_000
"""Nanoseconds."""

_MOST_SECONDS = 10_000_000
_MOST_REQUESTS = 10_000_000


def read_trace(path: Path) -> NDArray[np.int64]:
    """Requests per second from a CSV file of ``second,requests`` rows, ascending; seconds not named had none.

    The first second named is the first of the trace.

    Raises:
        DataError: with the number of the line, if a row is not that.
    """
    return _parse(path, _lines(path), "second")


def read_counts(path: Path) -> tuple[NDArray[np.int64], int]:
    """(requests, seconds that each number is of): like `read_trace`, of ``minute,requests`` rows as well."""
    lines = _lines(path)
    unit = "minute" if lines and lines[0].partition(",")[0].strip() == "minute" else "second"
    return _parse(path, lines, unit), {"second": 1, "minute": 60}[unit]


def _lines(path: Path) -> list[str]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return file.read().splitlines()
    except OSError as error:
        raise DataError(f"the trace {path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise DataError(f"the trace {path} is no text: a CSV file of second,requests is wanted") from None


def _parse(path: Path, lines: Sequence[str], unit: str) -> NDArray[np.int64]:
    def refuse(number: int, why: str) -> DataError:
        return DataError(f"{path}, line {number}: {why}; a trace has the columns {unit},requests")

    if not lines or [name.strip() for name in lines[0].split(",")] != [unit, "requests"]:
        raise refuse(1, f"the heading is {lines[0] if lines else ''!r}")
    seconds: list[int] = []
    counts: list[int] = []
    for number, row in enumerate(lines[1:], 2):
        found = re.fullmatch(r"\s*([0-9]{1,18})\s*,\s*([0-9]{1,18})\s*", row)
        if found is None:
            raise refuse(number, f"{row!r} is not two whole numbers")
        second, requests = int(found[1]), int(found[2])
        if seconds and second <= seconds[-1]:
            raise refuse(number, f"{unit} {second} comes after {unit} {seconds[-1]}")
        if seconds and second - seconds[0] >= _MOST_SECONDS:
            raise refuse(number, f"{unit} {second} makes the trace longer than {_MOST_SECONDS} {unit}s")
        if requests > _MOST_REQUESTS:
            raise refuse(number, f"{requests} requests in a {unit} are more than {_MOST_REQUESTS}")
        seconds.append(second)
        counts.append(requests)
    if not seconds:
        return np.zeros(0, np.int64)
    trace = np.zeros(seconds[-1] - seconds[0] + 1, np.int64)
    trace[np.array(seconds) - seconds[0]] = counts
    return trace


def whole(trace: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    """Requests per second as an array.

    Raises:
        DataError: naming the second, if one is no whole number of at least 0.
    """
    given = np.asarray(trace, np.float64)
    bad = np.flatnonzero(~((given >= 0) & (given <= _MOST_REQUESTS) & (given == np.floor(given))))
    if given.ndim != 1 or bad.size:
        where = f"second {bad[0]}: {given.flat[bad[0]]:g}" if bad.size else f"shape {given.shape}"
        raise DataError(
            f"a trace is requests per second, whole numbers of at most {_MOST_REQUESTS}; it has {where}"
        )
    return given.astype(np.int64)


def scale_to_peak(
    trace: NDArray[np.int64], peak: float, *, quantile: float = 1.0, seed: int = 0
) -> NDArray[np.int64]:
    """The trace times a factor, so that ``peak`` requests are that quantile of its seconds (1: the most).

    Fractions of a request are rounded up or down at random, up as often as the fraction says, so
    that the mean is kept also where a second has few.

    Raises:
        DataError: if nothing arrives in the second that should become the peak.
    """
    if not (peak > 0 and 0 <= quantile <= 1):
        raise DataError(f"the peak is above 0 requests and a quantile of the seconds: {peak}, {quantile}")
    now = float(np.quantile(trace, quantile)) if trace.size else 0.0
    if now <= 0:
        raise DataError(f"quantile {quantile:g} of the trace has no requests: there is nothing to scale")
    scaled = trace * (peak / now)
    whole = np.floor(scaled)
    up = np.random.default_rng(seed).random(trace.size) < scaled - whole
    rounded: NDArray[np.int64] = (whole + up).astype(np.int64)
    return rounded


def to_nanoseconds(seconds: float) -> int:
    """The nearest whole number of them."""
    return round(seconds * SECOND)


def draw_requests(trace: NDArray[np.int64], seed: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(when requests arrive, which quantile of its service time each takes).

    Arrivals are nanoseconds from the start of the trace, ascending. Within its second each comes
    at any moment, as in a Poisson process of which the count is known.
    """
    random = np.random.default_rng(seed)
    second = np.repeat(np.arange(trace.size, dtype=np.int64), trace)
    drawn = second * SECOND + random.integers(0, SECOND, second.size)
    drawn.sort()
    return drawn, random.random(drawn.size)
