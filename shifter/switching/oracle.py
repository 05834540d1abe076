"""The most that anybody could make of a trace who knew it beforehand: what policies are judged against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from shifter.errors import EngineError
from shifter.switching.samples import ServiceSamples, at_quantiles, of_profiles
from shifter.switching.trace import SECOND, draw_requests, to_nanoseconds, whole
from shifter.values import Profile

_STEPS = 2000  # of which the objective is divided


def oracle(
    profiles: Mapping[str, Profile],
    trace: Sequence[int] | NDArray[np.int64],
    servers: int = 1,
    *,
    objective: float,
    hold: float | None = None,
    services: Mapping[str, ServiceSamples] | None = None,
    overhead: float = 0.0,
    seed: int = 0,
    block: int | None = None,
) -> NDArray[np.float64]:
    """The most answers right and in time, per ``block`` seconds of the trace (of all, if None).

    The oracle knows every arrival and every service time, which are those of `simulate` with the
    same arguments; may refuse any request; and chooses variants at no cost: for each request anew,
    or, with ``hold``, one for all that arrive within each so many seconds. Requests have the same
    objective, so serving them in the order of arrival is best (earliest deadline first), and what
    is left to choose is a dynamic programme over requests, whose state is when the server is free.

    That time is rounded down, by less than 1/2000 of the objective for a request, and each block
    begins with an empty queue: both can only add. So without ``hold`` no policy is above it, and
    nobody could do more but for those two. Several servers are counted as one as fast as all of
    them, except that no answer takes less than its service time: no policy is above that either.

    Returns:
        One number of right answers for each block that has begun.

    Raises:
        EngineError, DataError: as `simulate` does.
    """
    if not (objective > 0 and (hold is None or hold > 0) and (block is None or block >= 1) and servers >= 1):
        raise EngineError(
            "the objective and hold are above 0 seconds, block and servers at least 1: "
            f"{objective}, {hold}, {block}, {servers}"
        )
    counts, times = whole(trace), of_profiles(profiles, services)
    arrivals, quantiles = draw_requests(counts, seed)
    takes = np.stack([at_quantiles(times[name].nanoseconds(overhead), quantiles) for name in profiles], 1)
    accuracy = [profile.test_accuracy for profile in profiles.values()]
    length = (block or max(1, counts.size)) * SECOND
    limit = to_nanoseconds(objective)
    turns = arrivals // to_nanoseconds(hold) if hold else np.arange(arrivals.size)
    found = []
    for begin in range(0, counts.size * SECOND, length):
        part = slice(*np.searchsorted(arrivals, [begin, begin + length]))
        found.append(_most_right(arrivals[part], turns[part], takes[part], accuracy, limit, servers))
    return np.array(found)


def _most_right(
    arrivals: NDArray[np.int64],
    turns: NDArray[np.int64],
    takes: NDArray[np.int64],
    accuracy: Sequence[float],
    objective: int,
    servers: int,
) -> float:
    """Backwards through the requests; those of one turn have one variant."""
    step = max(1, objective // _STEPS)
    values = np.zeros(objective // step + 2)
    stop = arrivals.size
    grid = [*(arrivals // step).tolist(), 0]
    grid[-1] = grid[stop - 1]
    while stop:
        begin = int(np.searchsorted(turns, turns[stop - 1]))
        requests = list(
            zip(arrivals[begin:stop].tolist(), grid[begin:stop], grid[begin + 1 : stop + 1], strict=True)
        )
        chains = []
        for each, gain in zip(takes[begin:stop].T.tolist(), accuracy, strict=True):
            chain = values
            for (arrival, here, after), alone in zip(reversed(requests), reversed(each), strict=True):
                chain = _before(chain, arrival, here, after, alone, gain, step, objective, servers)
            chains.append(chain)
        values = np.max(chains, axis=0)
        stop = begin
    return float(values[0])


def _before(
    values: NDArray[np.float64],
    arrival: int,
    here: int,
    after: int,
    alone: int,
    gain: float,
    step: int,
    objective: int,
    servers: int,
) -> NDArray[np.float64]:
    """The values before one request, from those after it.

    ``values[j]`` is the most that is still to be had if the server is free j steps after the one
    in which the next request arrives (``after``), or, if j is 0, when it arrives. ``here`` is the
    step of this one, and ``alone`` its service time.
    """
    best = np.empty_like(values)  # it is refused
    passed = min(after - here, values.size)
    best[:passed] = values[0]
    best[passed:] = values[: values.size - passed]
    if alone <= objective:
        busy = alone // servers
        # The server is free at the arrival …
        done = max(0, (arrival + busy) // step - after)
        best[0] = max(best[0], gain + values[done])
        # … or at a later step, from which it still ends in time.
        stop = (arrival + objective - busy) // step - here + 1
        by = here + busy // step - after
        idle = min(max(1, 1 - by), stop)  # before, it is free again when the next arrives
        if idle > 1:
            np.maximum(best[1:idle], gain + values[0], out=best[1:idle])
        if stop > idle:
            np.maximum(best[idle:stop], values[idle + by : stop + by] + gain, out=best[idle:stop])
    return best
