"""When what failed for want of something that may come back is tried again."""

from __future__ import annotations

import math


class Backoff:
    """Waits between tries of each of several things: a first one, then twice as long after each failure.

    Args:
        first_s: seconds after the first failure. longest_s: the most that it waits.
    """

    def __init__(self, first_s: float = 1.0, longest_s: float = 30.0) -> None:
        self._first, self._longest = first_s, longest_s
        self._waits: dict[str, tuple[float, float]] = {}

    def failed(self, name: str, now: float) -> None:
        """Takes note of a failure."""
        _, last = self._waits.get(name, (now, 0.0))
        wait = min(2 * last or self._first, self._longest)
        self._waits[name] = (now + wait, wait)

    def worked(self, name: str) -> None:
        """Forgets its failures."""
        self._waits.pop(name, None)

    def until(self, name: str) -> float:
        """The time at which it may be tried again; of what did not fail, one long past."""
        return self._waits[name][0] if name in self._waits else -math.inf
