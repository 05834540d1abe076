"""How long a variant takes for a request, as a distribution."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from shifter.errors import EngineError
from shifter.values import Latency, Profile

_QUANTILES = 1000


_Any = TypeVar("_Any", bound=np.generic)


def at_quantiles(ascending: NDArray[_Any], quantiles: NDArray[np.float64]) -> NDArray[_Any]:
    """The elements at these quantiles, from 0 to below 1, of which each is as likely as any other."""
    return ascending[(quantiles * ascending.size).astype(np.int64)]


class ServiceSamples:
    """Measured times of one variant's calls, each as likely; what stands in for them if there are none.

    Args:
        seconds: at least one, all above zero. Kept in ascending order.

    Raises:
        EngineError: if one is not.
    """

    def __init__(self, seconds: Sequence[float] | NDArray[np.float64]) -> None:
        self.seconds: NDArray[np.float64] = np.sort(np.asarray(seconds, np.float64))
        if (
            self.seconds.ndim != 1
            or not self.seconds.size
            or not 0 < self.seconds[0] <= self.seconds[-1] < 1e6
        ):
            raise EngineError(f"service times are one or more, each above 0 seconds: {seconds}")

    @classmethod
    def of_latency(cls, latency: Latency) -> Self:
        """A logarithmic normal distribution with that median and that 99th percentile."""
        sigma = math.log(latency.p99_ms / latency.p50_ms) / NormalDist().inv_cdf(0.99)
        return cls._log_normal(latency.p50_ms / 1e3, sigma)

    @classmethod
    def of(cls, mean: float, deviation: float = 0.0) -> Self:
        """A logarithmic normal distribution with that mean and standard deviation, in seconds."""
        if not (0 < mean < math.inf and 0 <= deviation < math.inf):
            raise EngineError(
                f"a mean above 0 seconds and a deviation of 0 or more are wanted: {mean}, {deviation}"
            )
        sigma = math.sqrt(math.log1p((deviation / mean) ** 2))
        made = cls._log_normal(mean * math.exp(-(sigma**2) / 2), sigma)
        return cls(made.seconds * (mean / made.mean))

    @classmethod
    def _log_normal(cls, median: float, sigma: float) -> Self:
        if sigma == 0:
            return cls([median])
        normal = NormalDist()
        levels = ((place + 0.5) / _QUANTILES for place in range(_QUANTILES))
        return cls([median * math.exp(sigma * normal.inv_cdf(level)) for level in levels])

    @property
    def mean(self) -> float:
        """Seconds."""
        return float(self.seconds.mean())

    def plus(self, others: Sequence[ServiceSamples]) -> ServiceSamples:
        """Of one call of each, one after another, quantile by quantile: a slow moment is slow for all."""
        levels = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
        parts = [at_quantiles(one.seconds, levels) for one in (self, *others)]
        return ServiceSamples(np.sum(parts, axis=0))

    def nanoseconds(self, overhead: float = 0.0) -> NDArray[np.int64]:
        """With ``overhead`` seconds added to each; whole, and at least one."""
        return np.maximum(1, np.rint((self.seconds + overhead) * 1e9)).astype(np.int64)


def of_profiles(
    profiles: Mapping[str, Profile], measured: Mapping[str, ServiceSamples] | None
) -> Mapping[str, ServiceSamples]:
    """What was measured of each variant; without, what the latencies of the profiles say.

    Raises:
        EngineError: if a variant was not measured, others being so.
    """
    if measured is None:
        return {name: ServiceSamples.of_latency(profile.latency) for name, profile in profiles.items()}
    missing = [name for name in profiles if name not in measured]
    if missing:
        raise EngineError(f"no service times are given for {', '.join(missing)}; give all of them, or none")
    return measured
