"""What happened in each second of the last quarter of an hour, for whoever looks."""

from __future__ import annotations

import math
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from serve_app.observer import Answered, Cause
from shifter.switching.host import Status, Switch

KEPT_SECONDS = 900

# Bins of a latency: each 5 % above the one before, from 10 µs to 100 s.
_FIRST_S, _GROWTH, _BINS = 1e-5, math.log(1.05), 331


class Latencies:
    """A histogram of latencies, of so many bins whatever their number."""

    def __init__(self) -> None:
        self._bins: Counter[int] = Counter()
        self._number = 0
        self._longest = 0.0

    def add(self, seconds: float) -> None:
        """Counts one."""
        index = 0 if seconds <= _FIRST_S else int(math.log(seconds / _FIRST_S) / _GROWTH)
        self._bins[min(index, _BINS - 1)] += 1
        self._number += 1
        self._longest = max(self._longest, seconds)

    def quantile(self, share: float) -> float | None:
        """Seconds within which ``share`` of them lie, 2.5 % off at most; None of none."""
        wanted, seen = math.ceil(share * self._number), 0
        if wanted >= self._number:
            return self._longest if self._number else None
        for index in sorted(self._bins):
            seen += self._bins[index]
            if seen >= wanted:
                return min(_FIRST_S * math.exp((index + 0.5) * _GROWTH), self._longest)
        raise AssertionError("bins hold as many as were counted")


@dataclass(frozen=True, slots=True)
class Second:
    """One second of a service.

    Args:
        arrived: requests; see `History`. answered, refused (by cause): those that ended in this second.
        p50_ms, p99_ms: of those answered; None of none.
        queue: the most requests that were inside at a look at the load.
        variant: what served at the end.
    """

    arrived: int
    answered: int
    refused: dict[Cause, int]
    p50_ms: float | None
    p99_ms: float | None
    queue: int
    variant: str


class History:
    """An observer (`serve_app.observer.Observer`) that remembers the last `KEPT_SECONDS` seconds.

    Seconds are numbered from 0, which is the one in which it was made. Nobody tells of arrivals: they
    are the requests that ended and those that are inside, less those that were so a second ago.

    Args:
        active: the variant that serves at first.
        clock: seconds, for the numbers. now: seconds since the epoch, which may jump.
    """

    def __init__(
        self,
        active: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.id = uuid.uuid4().hex
        self._clock, self._now = clock, now
        self._origin = clock()
        self._lock = threading.Lock()  # told on two threads
        self._seconds: deque[Second] = deque(maxlen=KEPT_SECONDS)
        self._current = 0
        self._variant = active
        self._inside = self._most_inside = 0
        self._ended = self._arrived = 0
        self._begin()

    def answered(self, answered: Answered) -> None:
        with self._lock:
            self._roll()
            self._answered += 1
            self._ended += 1
            self._latencies.add(answered.seconds)

    def refused(self, cause: Cause, request_id: str) -> None:
        with self._lock:
            self._roll()
            self._refused[cause] += 1
            self._ended += 1

    def switched(self, switch: Switch) -> None:
        with self._lock:
            self._roll()
            if switch.error is None:
                self._variant = switch.after

    def ticked(self, status: Status) -> None:
        with self._lock:
            self._roll()
            self._variant = status.active
            self._inside = status.queue
            self._most_inside = max(self._most_inside, status.queue)

    def since(self, number: int) -> tuple[float, int, list[Second]]:
        """The seconds that are over, from that number on.

        Returns:
            When the first of them began, in seconds since the epoch; the number of the one after the
            last; and the seconds. Those that are no longer remembered are left out.
        """
        with self._lock:
            self._roll()
            kept = list(self._seconds)[max(0, number - (self._current - len(self._seconds))) :]
            age = self._clock() - self._origin - self._current + len(kept)
            return self._now() - age, self._current, kept

    def _begin(self) -> None:
        self._answered = 0
        self._refused: Counter[Cause] = Counter()
        self._latencies = Latencies()
        self._most_inside = self._inside

    def _roll(self) -> None:
        """Ends the seconds that are over."""
        number = int(self._clock() - self._origin)
        # After a long silence, those that would be forgotten at once are not written.
        for _ in range(min(number - self._current, KEPT_SECONDS + 1)):
            self._seconds.append(self._end())
            self._begin()
        self._current = max(number, self._current)

    def _end(self) -> Second:
        arrived = max(0, self._ended + self._inside - self._arrived)
        self._arrived += arrived
        p50, p99 = self._latencies.quantile(0.5), self._latencies.quantile(0.99)
        return Second(
            arrived=arrived,
            answered=self._answered,
            refused=dict(self._refused),
            p50_ms=None if p50 is None else 1e3 * p50,
            p99_ms=None if p99 is None else 1e3 * p99,
            queue=self._most_inside,
            variant=self._variant,
        )
