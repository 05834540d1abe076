"""What was answered and refused since the last export, counted on the event loop: about 2 µs a request."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter, defaultdict
from functools import partial
from typing import Final

from serve_app.observer import Answered, Cause

_FINE: Final = (1.0, 1.5, 2.0, 3.0, 5.0, 7.5)
_COARSE: Final = (1.0, 2.0, 5.0)


def _decades(steps: tuple[float, ...], first: int, last: int) -> tuple[float, ...]:
    """``steps`` times each power of ten, up to 10 to the ``last``; rounded, as they become labels."""
    below = (float(f"{step}e{power}") for power in range(first, last) for step in steps)
    return (*below, 10.0**last)


LATENCY_BOUNDS: Final = _decades(_FINE, -3, 1)
"""Seconds, 1 ms to 10 s; two neighbours differ by at most two thirds, which bounds a quantile's error."""
ENGINE_BOUNDS: Final = _decades(_COARSE, -4, 1)
SWITCH_BOUNDS: Final = (*_decades(_COARSE, -3, 1), 20.0, 50.0)
IMAGES_BOUNDS: Final = tuple(float(2**power) for power in range(9))


class Binned:
    """A histogram: ``counts[i]`` of what is at most ``bounds[i]`` and above the one before, then the rest."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0.0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float, times: float = 1.0) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times


class Tally:
    """Counts; not safe to be used by several threads at once.

    A call of the engine is told by each request that was in its batch, so each counts for its share of
    the images: all of them together make one call.

    Args:
        objective_s: above it, an answer is late.
    """

    def __init__(self, objective_s: float = math.inf) -> None:
        self.objective_s = objective_s
        self.answered: Counter[str] = Counter()
        self.images: Counter[str] = Counter()
        self.refused: Counter[Cause] = Counter()
        self.late = 0
        self.latency = Binned(LATENCY_BOUNDS)
        self.engine: defaultdict[str, Binned] = defaultdict(partial(Binned, ENGINE_BOUNDS))
        self.batches = Binned(IMAGES_BOUNDS)

    def add(self, one: Answered) -> None:
        self.answered[one.variant] += 1
        self.images[one.variant] += one.images
        self.late += one.seconds > self.objective_s
        self.latency.add(one.seconds)
        share = one.images / one.batch
        self.engine[one.variant].add(one.engine_s, share)
        self.batches.add(one.batch, share)
