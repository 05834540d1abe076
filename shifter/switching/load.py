"""What a serving process sees of its load, and the estimate of it that policies decide on."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

_SHORTEST = 1.0
_LONGEST = 600.0
_CALM = 3.0
_FEW_REQUESTS = 30
# From N arrivals a rate has a relative standard error of 1/sqrt(N), 14 % here. A burst of ten weighs 20 %.
_ENOUGH_REQUESTS = 50
# Traffic of 3/g requests per second leaves a gap of g seconds with a probability of exp(-3), 5 %.
_MISSED_REQUESTS = 3.0
# What happens within so many seconds is one event, so that memory does not grow with observations.
_GRAIN = 0.01


@dataclass(frozen=True)
class Service:
    """One call of the engine, and the requests that it answered.

    Args:
        variant: the variant that answered them.
        images: how many they carried together.
        seconds: time of the engine's call. overhead: time that the server spent on each request
            besides (decoding it, encoding its answer), whichever the variant. Waiting counts in
            neither.
        requests: how many; none, if the call was only to see how long it takes.
    """

    variant: str
    images: int
    seconds: float
    overhead: float = 0.0
    requests: int = 1


@dataclass(frozen=True)
class Observation:
    """What happened since the observation before.

    Args:
        time: seconds on any clock that does not run backwards.
        requests: how many arrived, those included that were refused at once.
        queue: requests inside now, waiting or being worked on; those of one call count as one.
        services: what was answered.
        free_bytes: what variants may take besides the package, the one that serves included; None
            if that is not known.
    """

    time: float
    requests: int = 0
    queue: int = 0
    services: tuple[Service, ...] = ()
    free_bytes: int | None = None

    def __post_init__(self) -> None:
        assert self.requests >= 0, self
        assert self.queue >= 0, self


class Load:
    """Rate, request size and queue, over sliding windows.

    The window of the rate is the shortest stretch of past time that holds `_ENOUGH_REQUESTS`
    requests, but no shorter than `_SHORTEST` and no longer than `_LONGEST` seconds. So for Poisson
    arrivals at r per second, from 0.1 on, its relative standard error is 1/sqrt(max(50, r)); a
    step up is known after 50 requests at the new rate, or after a second if these take less; and
    ten requests at once do not look like a flood. After g seconds (at least one) without a request
    the rate is no more than 3/g, and nothing in the end.

    The surge is the rate of the last `_FEW_REQUESTS` requests less two standard errors, if that is
    higher: a rate that has surely risen, as far as it has risen at least. The peak is the highest
    of the last `_CALM` seconds. Random arrivals make any rate dip now and then; load that has
    truly fallen is one whose peak has fallen.

    The standing queue is the least length seen within `_SHORTEST` seconds: a burst that drains by
    itself leaves none (the idea of CoDel, Nichols and Jacobson 2012).

    Each call takes constant time on average, and memory is bounded whatever the number of calls.
    """

    def __init__(self) -> None:
        self._steady = _Window(_ENOUGH_REQUESTS, _SHORTEST)
        self._latest = _Window(_FEW_REQUESTS, 0.0)
        self._peaks = _Extreme(_CALM)
        self._standing = _Extreme(_SHORTEST)
        self._arrived = _Count()
        self._answered = _Count()
        self._sizes: deque[float] = deque(maxlen=_ENOUGH_REQUESTS)
        self._start: float | None = None
        self._time = 0.0
        self._last_request = 0.0
        self.rate = 0.0
        """Requests per second."""
        self.surge = 0.0
        """Requests per second, at the latest."""
        self.peak = 0.0
        """Requests per second, at most, of late."""
        self.request_images = 1.0
        """Mean images of the last requests answered."""
        self.queue = 0
        """Requests inside."""
        self.standing_queue = 0
        """Requests that were inside all the time of late."""
        self.arrived = 0
        """Requests of the last second."""
        self.answered = 0
        """Answers of the last second."""

    def add(self, seen: Observation) -> None:
        """Takes in what happened since the last call; every estimate then stands at ``seen.time``."""
        now = seen.time
        if self._start is None:
            self._start = self._time = self._last_request = now
        assert now >= self._time, f"time runs backwards: {now} after {self._time}"
        if seen.requests:
            self._last_request = now
            self._steady.add(self._time, now, seen.requests)
            self._latest.add(self._time, now, seen.requests)
        self._time = now

        requests, seconds = self._steady.until(now, self._start)
        self.rate = requests / max(seconds, _SHORTEST)
        silence = now - self._last_request
        if silence >= _SHORTEST:
            self.rate = min(self.rate, _MISSED_REQUESTS / silence)
        requests, seconds = self._latest.until(now, self._start)
        risen = requests >= _FEW_REQUESTS and seconds > 0
        surely = (requests - 2 * math.sqrt(requests)) / seconds if risen else 0.0
        self.surge = max(self.rate, surely)
        self.peak = -self._peaks.least(now, -self.surge)

        for service in seen.services:
            self._sizes.extend([service.images / max(service.requests, 1)] * service.requests)
        if self._sizes:
            self.request_images = sum(self._sizes) / len(self._sizes)

        self.queue = seen.queue
        self.standing_queue = int(self._standing.least(now, seen.queue))
        self.arrived = self._arrived.add(now, seen.requests)
        self.answered = self._answered.add(now, sum(service.requests for service in seen.services))


class _Window:
    """The shortest stretch up to now that holds ``enough`` requests and ``shortest`` seconds."""

    def __init__(self, enough: int, shortest: float) -> None:
        self._enough = enough
        self._shortest = shortest
        self._parts: deque[tuple[float, float, int]] = deque()  # from, to, requests
        self._requests = 0

    def add(self, since: float, until: float, requests: int) -> None:
        self._requests += requests
        if self._parts and until - self._parts[-1][0] <= _GRAIN:
            since, _, before = self._parts.pop()
            requests += before
        self._parts.append((since, until, requests))

    def until(self, now: float, start: float) -> tuple[int, float]:
        """(requests, seconds); where there are not enough, of all since ``start``, or `_LONGEST`.

        Longer than that is only one observation after a long gap, which cannot be cut.
        """
        parts = self._parts
        while parts and (
            parts[0][1] <= now - _LONGEST
            or (self._requests - parts[0][2] >= self._enough and parts[0][1] <= now - self._shortest)
        ):
            self._requests -= parts.popleft()[2]
        begin = now - self._shortest if self._requests >= self._enough else max(start, now - _LONGEST)
        return self._requests, now - (min(begin, parts[0][0]) if parts else begin)


class _Extreme:
    """The least value of the last ``seconds``."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._values: deque[tuple[float, float]] = deque()  # rising, so that the first is the least

    def least(self, now: float, value: float) -> float:
        """After ``value``, which is that of now."""
        values = self._values
        while values and values[-1][1] >= value:
            values.pop()
        if not values or now - values[-1][0] > _GRAIN:
            values.append((now, value))
        while values[0][0] < now - self._seconds:
            values.popleft()
        return values[0][1]


class _Count:
    """How many in the last second."""

    def __init__(self) -> None:
        self._parts: deque[tuple[float, int]] = deque()
        self._sum = 0

    def add(self, now: float, some: int) -> int:
        parts = self._parts
        if some:
            self._sum += some
            at, before = parts.pop() if parts and now - parts[-1][0] <= _GRAIN else (now, 0)
            parts.append((at, before + some))
        while parts and parts[0][0] <= now - _SHORTEST:
            self._sum -= parts.popleft()[1]
        return self._sum
