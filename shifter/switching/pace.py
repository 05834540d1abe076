"""How long calls of the engine take just now, for deadlines; the switcher looks further back."""

from __future__ import annotations

from collections import deque

from shifter.switching.service_time import ServiceTimes

LOOKED_AT = 5
"""So many calls are looked at, without the quickest and the slowest: one that was held up tells nothing."""


class Pace:
    """Predicts calls of one portfolio's variants: as the switcher does, times what the last few calls show.

    Not for several threads at once; of the switcher's it reads single numbers.
    """

    def __init__(self, times: ServiceTimes) -> None:
        self._times = times
        self._last: deque[tuple[str | None, float]] = deque([(None, 1.0)] * LOOKED_AT, LOOKED_AT)

    @property
    def overhead(self) -> float:
        """Seconds of a request besides the engine's."""
        return self._times.overhead

    def seconds(self, variant: str, images: int) -> float:
        """Of one call."""
        return self._times.engine(variant, images) * self._factor()

    def saw(self, variant: str, images: int, seconds: float) -> None:
        """Takes in a call."""
        self._last.append((variant, seconds / self._times.expected(variant, images)))

    def _factor(self) -> float:
        seen = sorted(ratio / self._ratio(name) for name, ratio in self._last)[1:-1]
        return sum(seen) / len(seen)

    def _ratio(self, variant: str | None) -> float:
        return 1.0 if variant is None else self._times.ratio_of(variant)
