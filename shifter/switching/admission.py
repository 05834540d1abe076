"""Whether a request can be answered in time, from what is computed and what waits. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from shifter.errors import OverloadError
from shifter.switching.batching import Seconds, useful, work_s

# How much longer the wait for those before may turn out to be than predicted.
_CAUTION = 1.2


def wait_s(
    seconds: Seconds,
    images: int,
    computing: Sequence[float],
    waiting: Iterable[tuple[Seconds, int]],
    *,
    servers: int,
    most_images: int,
    patience: float = math.inf,
) -> float:
    """Predicted seconds until an answer; of a request with ``patience``, those that it should have left.

    They are more: calls may take longer than predicted, and those that come later join its own.

    Args:
        seconds: of the variant's calls. images: of the request.
        computing: seconds that each call under way goes on for.
        waiting: of each variant, its calls' seconds, and the images that wait for it.
    """
    waiting = list(waiting)
    if len(computing) < servers and not any(number for _, number in waiting):
        return seconds(images)
    most = useful(most_images, patience, seconds)
    work = sum(computing) + sum(work_s(number, most, its) for its, number in waiting)
    if patience < math.inf:
        return _CAUTION * work / servers + seconds(max(images, most))
    before = sum(number for its, number in waiting if its is seconds)
    joined = work_s(before + images, most, seconds) - work_s(before, most, seconds)
    return max(seconds(images), (work + joined) / servers)


def late() -> OverloadError:
    """For one that is too late at its turn."""
    return OverloadError("it could not be answered in time: ask again later, or send fewer", 1)


def refused(wait_s: float, patience_s: float) -> OverloadError:
    """For one that would be too late."""
    retry_after_s = max(1, math.ceil(wait_s - patience_s))
    return OverloadError(
        f"it would be answered in {wait_s:.3g} s, not within {patience_s:.3g} s: "
        f"ask again in {retry_after_s} s, or send fewer",
        retry_after_s,
    )
