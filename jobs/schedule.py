"""When requests are due: rates over time, and arrivals drawn from them. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from shifter.errors import RecipeError

Spacing = Literal["poisson", "even"]


@dataclass(frozen=True)
class Segment:
    """So many requests a second for so many seconds."""

    seconds: float
    rate: float

    def __post_init__(self) -> None:
        if not (self.seconds > 0 and math.isfinite(self.seconds)):
            raise RecipeError(f"a segment of {self.seconds} s: it must last longer than 0 s")
        if not (self.rate >= 0 and math.isfinite(self.rate)):
            raise RecipeError(f"a segment of {self.rate} requests/s: the rate must be 0 or more")


def parse_schedule(text: str) -> list[Segment]:
    """Reads ``5:20,5:60``: 5 s at 20 requests/s, then 5 s at 60.

    Raises:
        RecipeError: if the text is nothing like that.
    """
    try:
        pairs = [part.split(":") for part in text.split(",")]
        return [Segment(float(seconds), float(rate)) for seconds, rate in pairs]
    except ValueError as error:
        raise RecipeError(
            f"{text!r} is no schedule: write SECONDS:RATE,… as in 5:20,5:60 ({error})"
        ) from error


@dataclass(frozen=True, eq=False)
class Schedule:
    """Rates over time, one stretch after another.

    Args:
        seconds, rates: of each stretch; requests/s.
        counted: a stretch has the number of requests that it says, at random moments, instead of a
            random number: what is known of a recorded trace, and of no rate.
    """

    seconds: NDArray[np.float64]
    rates: NDArray[np.float64]
    counted: bool = False

    @classmethod
    def of(cls, segments: Sequence[Segment]) -> Self:
        return cls(
            np.array([s.seconds for s in segments], np.float64),
            np.array([s.rate for s in segments], np.float64),
        )

    @property
    def total_s(self) -> float:
        return float(self.seconds.sum())

    @property
    def requests(self) -> float:
        """Expected."""
        return float(self.seconds @ self.rates)

    @property
    def peak(self) -> float:
        """The highest rate; 0 of nothing."""
        return float(self.rates.max(initial=0.0))

    def due(self, seed: int, spacing: Spacing = "poisson") -> NDArray[np.float64]:
        """When requests are due, in seconds from the start, ascending.

        Arrivals of unit rate, random or even, are mapped through the inverse of the expected count
        up to each moment, which makes them follow the rates. Where the numbers are known, each
        arrival comes at any moment of its stretch; fractions of a request are rounded up or down at
        random, up as often as the fraction says.
        """
        moments = np.concatenate([[0.0], np.cumsum(self.seconds)])
        per_stretch = self.seconds * self.rates
        expected = np.concatenate([[0.0], np.cumsum(per_stretch)])
        total = expected[-1]
        random = np.random.default_rng(seed)
        if spacing == "even":
            counts = np.arange(math.floor(total + 0.5)) + 0.5
        elif self.counted:
            # Seven tenths times ten is seven, whatever the last bit says.
            near = np.round(per_stretch, 9)
            whole = np.floor(near)
            whole += random.random(whole.size) < near - whole
            stretch = np.repeat(np.arange(whole.size), whole.astype(np.int64))
            drawn = moments[stretch] + random.random(stretch.size) * self.seconds[stretch]
            return np.sort(drawn)
        else:
            counts = np.cumsum(random.exponential(size=math.ceil(total + 10 * math.sqrt(total) + 10)))
        due: NDArray[np.float64] = np.interp(counts[counts < total], expected, moments)
        return due
