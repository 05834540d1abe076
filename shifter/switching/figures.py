"""What a simulation came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Timeline:
    """One element per second of the trace.

    Args:
        requests: arrived in that second. Of these, shed: refused, the queue being full; in_time:
            answered within the objective; right: of those, how many are right, by the accuracy of
            the variants that answered.
        answered: finished in that second, whenever they arrived.
        queue: requests inside at the end of the second.
        variant: name of the variant serving at the end of the second.
    """

    requests: NDArray[np.int64]
    shed: NDArray[np.int64]
    in_time: NDArray[np.int64]
    right: NDArray[np.float64]
    answered: NDArray[np.int64]
    queue: NDArray[np.int64]
    variant: tuple[str, ...]


@dataclass(frozen=True)
class Figures:
    """Figures of one simulation; shares of no requests, and times of no answers, are NaN.

    Args:
        requests: all that arrived; each was answered, in the end, or shed.
        effective_accuracy: answers right *and* in time, over all requests. Of the answers of a
            variant as many count as right as its accuracy says.
        slo_attainment: answers in time, over all requests.
        time_share: of each variant, how much of the trace's time it was the one serving.
        switches_per_minute: over the trace's time.
        latency_mean, latency_p50, latency_p99: seconds from arrival to answer, of those answered.
    """

    requests: int
    answered: int
    shed: int
    effective_accuracy: float
    slo_attainment: float
    time_share: Mapping[str, float]
    switches: int
    switches_per_minute: float
    latency_mean: float
    latency_p50: float
    latency_p99: float
    timeline: Timeline = field(repr=False, compare=False)
