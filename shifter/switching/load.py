"""What a serving process sees of its load, and the estimate of it that policies decide on."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

_SHORTEST = 1.0
_LONGEST = 30.0
_CALM = 5.0
_FEW_REQUESTS = 30
# The relative error of a rate from N arrivals is 1/sqrt(N): 14 % here, and a burst of ten weighs 20 %.
_ENOUGH_REQUESTS = 50


@dataclass(frozen=True)
class Service:
    """One request that was answered.

    Args:
        variant: the variant that answered it.
        images: how many it carried.
        seconds: time of the engine's call. overhead: time that the server spent on the request
            besides (decoding it, encoding its answer), whichever the variant. Waiting counts in
            neither.
    """

    variant: str
    images: int
    seconds: float
    overhead: float = 0.0


@dataclass(frozen=True)
class Observation:
    """What happened since the observation before.

    Args:
        time: seconds on any clock that does not run backwards.
        requests: how many arrived.
        queue: requests inside now, waiting or being worked on.
        services: the requests answered.
        free_bytes: what variants may take besides the package; None if that is not known.
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
    """Rate, request size and standing queue, over a sliding window.

    The window is the shortest stretch of past time that holds `_ENOUGH_REQUESTS` requests, but no
    shorter than `_SHORTEST` and no longer than `_LONGEST` seconds. So a high rate is known within
    a second; a low one is averaged over enough time that ten requests at once do not look like a
    flood; and when traffic stops the window grows, so that the rate falls, to zero in the end.

    The standing queue is the least length seen within `_SHORTEST` seconds: a burst that drains by
    itself leaves none (the idea of CoDel, Nichols and Jacobson 2012).

    The peak is the highest rate of the last `_CALM` seconds. Random arrivals make any rate dip now
    and then; load that has truly fallen is one whose peak has fallen. The surge is the rate of the
    last `_FEW_REQUESTS` requests, if that is higher: how high a rate is going that has just risen.
    """

    def __init__(self) -> None:
        self._arrivals: deque[tuple[float, float, int]] = deque()  # from, to, requests
        self._queues: deque[tuple[float, int]] = deque()
        self._rates: deque[tuple[float, float]] = deque()  # falling, so that the first is the peak
        self._sizes: deque[int] = deque(maxlen=_ENOUGH_REQUESTS)
        self._start: float | None = None
        self._time = 0.0
        self.rate = 0.0
        """Requests per second."""
        self.peak = 0.0
        """Requests per second, at most, of late."""
        self.surge = 0.0
        """Requests per second, at the latest."""
        self.request_images = 1.0
        """Mean images of the last requests answered."""
        self.queue = 0
        """Standing queue, in requests."""

    def add(self, seen: Observation) -> None:
        """Takes in what happened since the last call; every estimate then stands at ``seen.time``."""
        if self._start is None:
            self._start = self._time = seen.time
        assert seen.time >= self._time, f"time runs backwards: {seen.time} after {self._time}"
        if seen.requests:
            self._arrivals.append((self._time, seen.time, seen.requests))
        self._time = seen.time
        while self._arrivals and self._arrivals[0][1] <= seen.time - _LONGEST:
            self._arrivals.popleft()

        requests, seconds = self._window(_ENOUGH_REQUESTS, _SHORTEST)
        self.rate = requests / max(seconds, _SHORTEST)
        requests, seconds = self._window(_FEW_REQUESTS, 0.0)
        risen = requests >= _FEW_REQUESTS and seconds > 0
        self.surge = max(self.rate, requests / seconds) if risen else self.rate

        while self._rates and self._rates[-1][1] <= self.rate:
            self._rates.pop()
        self._rates.append((seen.time, self.rate))
        while self._rates[0][0] < seen.time - _CALM:
            self._rates.popleft()
        self.peak = self._rates[0][1]

        self._sizes.extend(service.images for service in seen.services)
        if self._sizes:
            self.request_images = sum(self._sizes) / len(self._sizes)

        self._queues.append((seen.time, seen.queue))
        while self._queues[0][0] < seen.time - _SHORTEST:
            self._queues.popleft()
        self.queue = min(queue for _, queue in self._queues)

    def _window(self, enough: int, shortest: float) -> tuple[int, float]:
        """(requests, seconds) of the shortest stretch up to now with ``enough`` requests.

        No shorter than ``shortest``, nor longer than `_LONGEST` but for one observation after a
        long gap, which cannot be cut.
        """
        assert self._start is not None
        requests = 0
        begin = max(self._start, self._time - _LONGEST)
        for since, until, some in reversed(self._arrivals):
            if requests >= enough and until <= self._time - shortest:
                begin = until
                break
            requests += some
            begin = min(begin, since)
            if requests >= enough and since <= self._time - shortest:
                begin = since
                break
        return requests, self._time - begin
