"""How much longer variants take here than expected, learnt while serving."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

# What is believed before anything is seen weighs as much as so many requests: that the node is as
# fast as expected, hardly anything; that it is so for every variant alike, rather more.
_NODE_WORTH = 0.25
_OWN_WORTH = 10
# After about so many requests the node may be another one; how variants differ on it stays longer.
_MEMORY = 50
_OWN_MEMORY = 1000

OUTLIER = 5.0
"""A request that took more than so many times what was predicted counts as that many times."""
STEP = 1.5
"""One request changes a prediction by at most this factor, the very first one included."""
_SHORTEST = 1e-3
_ITERATIONS = 8


class Ratios:
    """Seen over expected time, per variant: a factor of the node's times one of the variant's own.

    A node is slower or busier than the one that measured, for every variant about alike; and some
    variants suffer more from it than others (small caches). Were there one factor for all, a
    switcher would forget at each switch what it learnt before, and might go up and down again for
    ever. Were there only one for each, it would know nothing of those that it has not tried.

    The factors' logarithms are random effects, jointly normal, filtered as Kalman's; the covariance
    is kept, so that what the next variant shows also tells how much of the last one's excess was
    the node's. An observation is as of a gamma distribution with that mean: so it is the mean time
    that is estimated, from which capacity follows, and not the mean of its logarithm; what is
    expected is a mean as well, where the node was calibrated.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._index = {name: index for index, name in enumerate(names, start=1)}
        size = len(self._index) + 1
        self._logs = np.zeros(size)
        self._covariance = np.diag([1 / _NODE_WORTH, *[1 / _OWN_WORTH] * (size - 1)])

    def renewed(self, names: Iterable[str]) -> Ratios:
        """For other variants on the same node."""
        new = Ratios(names)
        new._logs[0], new._covariance[0, 0] = self._logs[0], self._covariance[0, 0]
        return new

    @property
    def node(self) -> float:
        """The factor that all variants share."""
        return math.exp(self._logs[0])

    def of(self, name: str) -> float:
        """The factor of a variant, whether it was seen or not."""
        return math.exp(self._logs[0] + self._logs[self._index[name]])

    def learn(self, name: str, ratios: Sequence[float]) -> None:
        """Takes in seen over expected time, above 0, of requests that one variant answered."""
        # However many were answered at once: they share what the node did just then.
        count = min(len(ratios), _MEMORY)
        own, now = self._index[name], self.of(name)
        self._covariance[0, 0] += count / _MEMORY**2
        self._covariance[own, own] += count / _OWN_MEMORY**2
        mean = sum(min(max(ratio / now, _SHORTEST), OUTLIER) for ratio in ratios) / len(ratios)
        along = self._covariance[0] + self._covariance[own]
        variance = float(along[0] + along[own])
        limit = count * math.log(STEP)
        step = min(max(_most_likely(mean, count, variance), -limit), limit)
        self._logs += along * (step / variance)
        self._covariance -= along[:, None] * (along * (count / (1 + count * variance)))


def _most_likely(mean: float, count: int, variance: float) -> float:
    """The likeliest x of normal(0, variance), given ``count`` of gamma with mean e^x, whose mean is ``mean``.

    The root of a rising concave function, by Newton's method from its left, which cannot overshoot.
    """
    x = min(0.0, math.log(mean))
    for _ in range(_ITERATIONS):
        seen = count * mean * math.exp(-x)
        step = (seen - count - x / variance) / (seen + 1 / variance)
        x += step
        if abs(step) < 1e-6:
            break
    return x
