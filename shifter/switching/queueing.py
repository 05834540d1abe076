"""A bounded first-come-first-served queue, computed in blocks: what the simulator's requests wait for.

Times are whole nanoseconds, so that a block computed at once is equal, to the last bit, to one
computed request by request.
"""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.int64]


class Queue:
    """Requests in the order of arrival, on ``servers`` servers; one that finds ``room`` inside is refused.

    Inside are those that wait and those being computed. How long a request takes is settled when
    it begins, so a block is first tried (`serve`), then kept up to some moment (`keep`): what had
    not begun by then waits, and may take another time in the next block.

    Args:
        arrivals: of all requests, ascending, in nanoseconds.

    Attributes:
        begin, finish: nanoseconds; meaningless for what is refused or has not been served.
        refused: whether a request was.
    """

    def __init__(self, arrivals: Times, servers: int, room: int) -> None:
        assert servers >= 1 <= room, (servers, room)
        self.arrivals = arrivals
        self.begin = np.zeros(arrivals.size, np.int64)
        self.finish = np.zeros(arrivals.size, np.int64)
        self.refused = np.zeros(arrivals.size, np.bool_)
        self._room = room
        self._free = [0] * servers  # a heap: when each server is free
        self._waiting = np.zeros(0, np.int64)
        self._stop = 0
        self._tried = self._waiting

    def candidates(self, until: int) -> NDArray[np.int64]:
        """The requests that a block to ``until`` is about: those waiting, and those that arrive by then."""
        stop = int(np.searchsorted(self.arrivals, until, "right"))
        return np.concatenate([self._waiting, np.arange(self._stop, stop)])

    def serve(self, requests: NDArray[np.int64], seconds: Times) -> NDArray[np.int64]:
        """Tries a block: `candidates`, and the time that each would take; those admitted.

        Fills `begin`, `finish` and `refused` for them.
        """
        arrivals = self.arrivals[requests]
        admitted = np.ones(requests.size, np.bool_)
        if len(self._free) == 1:
            finish, full = self._at_once(arrivals, seconds)
            begin = finish - seconds
        else:
            full = 0
            finish, begin = np.empty_like(arrivals), np.empty_like(arrivals)
        if full < requests.size:
            self._one_by_one(full, arrivals, seconds, begin, finish, admitted)
        self.begin[requests], self.finish[requests], self.refused[requests] = begin, finish, ~admitted
        self._tried = requests[admitted]
        return self._tried

    def keep(self, until: int) -> NDArray[np.int64]:
        """Keeps of the block just tried what has begun before ``until``, and who had arrived by then.

        Returns the requests that have begun, in that order.
        """
        tried = self._tried
        # Begins ascend in the order of arrival: first come, first served.
        begun = tried[: int(np.searchsorted(self.begin[tried], until, "left"))]
        if len(self._free) == 1:
            if begun.size:
                self._free = [int(self.finish[begun[-1]])]
        else:
            for finish in self.finish[begun].tolist():
                heapq.heapreplace(self._free, finish)
        self._stop = max(self._stop, int(np.searchsorted(self.arrivals, until, "right")))
        rest = tried[begun.size :]
        self._waiting = rest[rest < self._stop]
        return begun

    def _at_once(self, arrivals: Times, seconds: Times) -> tuple[Times, int]:
        """(when each finishes on one server if all are admitted, the first for which there is no room).

        Lindley's recursion ``finish = max(arrival, finish before) + seconds``, unrolled to a sum
        and a running maximum.
        """
        done = np.cumsum(seconds)
        start = np.maximum(arrivals, self._free[0])
        finish: Times = done + np.maximum.accumulate(start - (done - seconds)) if done.size else done
        before = np.arange(arrivals.size)
        inside = before - np.searchsorted(finish, arrivals, "right") + (self._free[0] > arrivals)
        # Those that wait from the block before are let in again: no more are inside than when they came.
        over = np.flatnonzero(inside >= self._room)
        return finish, int(over[0]) if over.size else arrivals.size

    def _one_by_one(
        self,
        first: int,
        arrivals: Times,
        seconds: Times,
        begin: Times,
        finish: Times,
        admitted: NDArray[np.bool_],
    ) -> None:
        """From ``first`` on: where several servers or a full queue make each depend on those before."""
        free = list(self._free)
        # What has been begun and is not finished; then also what is admitted here.
        inside = [*free, *finish[:first].tolist()]
        if first:  # one server only
            free = [int(finish[first - 1])]
        heapq.heapify(inside)
        for index, (arrival, takes) in enumerate(
            zip(arrivals[first:].tolist(), seconds[first:].tolist(), strict=True), first
        ):
            while inside and inside[0] <= arrival:
                heapq.heappop(inside)
            if len(inside) >= self._room:
                admitted[index] = False
                continue
            begin[index] = start = max(arrival, free[0])
            finish[index] = end = start + takes
            heapq.heapreplace(free, end)
            heapq.heappush(inside, end)
