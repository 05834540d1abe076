"""How long a variant takes for a request: as measured before, corrected by what is seen while serving."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from shifter.switching.load import Service
from shifter.switching.ratios import OUTLIER, Ratios
from shifter.values import Profile

if TYPE_CHECKING:
    from shifter.switching.calibration import Calibration

# The overhead known is worth at most so many requests, so that newer ones replace it; none, a few at first.
_MEMORY = 50
_PRIOR = 5
# No clock tells less of a call, and no call lasts longer.
_SHORTEST = 1e-9
_LONGEST = 1e6


class ServiceTimes:
    """Seconds that a server spends on a request of n images: ``overhead + ratio * expected(n)``.

    ``expected`` goes through the times measured on this node, if there is a calibration, or else
    through the two latencies of the variant's profile (`Curve`). Two corrections are learnt, from
    quantities that are measured apart and so cannot be mistaken for one another: ``ratio``, engine
    time seen over engine time expected, mostly of the node and partly of the variant (`Ratios`);
    and ``overhead``, because decoding a request costs the same whichever variant computes it. One
    ratio over everything would, where the overhead is larger than a small variant's computation,
    predict a large variant many times too slow, and the switcher would never go back up.

    Args:
        calibration: of the threads that the service uses. A variant that it lacks has its profile.
    """

    def __init__(self, profiles: Mapping[str, Profile], calibration: Calibration | None = None) -> None:
        measured = {} if calibration is None else calibration.seconds()
        self._expected = {
            name: Curve(measured.get(name) or _of_profile(profile)) for name, profile in profiles.items()
        }
        self._is_calibrated = calibration is not None
        self._ratios = Ratios(profiles)
        self._worth = _PRIOR
        self.overhead = 0.0

    @property
    def ratio(self) -> float:
        """Engine time seen over engine time expected, as far as it is the node's."""
        return self._ratios.node

    def learn(self, services: Iterable[Service]) -> None:
        """Takes in answered requests; those of variants that are not here are none."""
        known = [s for s in services if s.variant in self._expected and s.images > 0 and _is_time(s.seconds)]
        self._learn_overhead([s for s in known if s.requests and _is_time(s.overhead)])
        by_variant: dict[str, list[float]] = {}
        for service in known:
            expected = self._expected[service.variant](service.images)
            ratio = max(service.seconds, _SHORTEST) / expected
            by_variant.setdefault(service.variant, []).append(ratio)
        for name, ratios in by_variant.items():
            self._ratios.learn(name, ratios)

    def predict(self, variant: str, images: float) -> float:
        """Seconds of a server's time that a request of ``images`` images takes; never less for more."""
        return self.overhead + self.engine(variant, images)

    def engine(self, variant: str, images: float) -> float:
        """Seconds of one call of the engine with so many images."""
        return self.ratio_of(variant) * self.expected(variant, images)

    def expected(self, variant: str, images: float) -> float:
        """The same as measured beforehand, whatever was seen since."""
        return self._expected[variant](images)

    def ratio_of(self, variant: str) -> float:
        """Engine time seen over engine time expected."""
        return self._ratios.of(variant)

    def renewed(self, profiles: Mapping[str, Profile], calibration: Calibration | None) -> ServiceTimes:
        """For the variants of another portfolio, with what was learnt of the node."""
        new = ServiceTimes(profiles, calibration)
        new.overhead, new._worth = self.overhead, self._worth
        if new._is_calibrated == self._is_calibrated:  # else the ratios are over different things
            new._ratios = self._ratios.renewed(profiles)
        return new

    def _learn_overhead(self, known: Sequence[Service]) -> None:
        if not known:
            return
        # One stray request counts as far beyond the prediction as it may in the ratio.
        requests = sum(s.requests for s in known)
        mean = sum(s.requests * min(s.overhead, self._most_overhead(s)) for s in known) / requests
        weight = requests / (self._worth + requests)
        self._worth = min(self._worth + requests, _MEMORY)
        self.overhead += weight * (mean - self.overhead)

    def _most_overhead(self, service: Service) -> float:
        predicted = self.predict(service.variant, service.images / service.requests)
        return self.overhead + (OUTLIER - 1) * predicted


class Curve:
    """Seconds by the number of images, through measured points, straight between them.

    Never falls: a larger batch that was measured to be faster takes as long as the smaller one.
    Before the first point as there; after the last as steep as overall, or as the last stretch if
    that is steeper.

    Args:
        points: (images, seconds), the images ascending and different.
    """

    def __init__(self, points: Sequence[tuple[int, float]]) -> None:
        self._images = [float(images) for images, _ in points]
        self._seconds: list[float] = []
        for _, seconds in points:
            self._seconds.append(max(seconds, _SHORTEST, *self._seconds[-1:]))
        self._beyond = max(self._slope(0), self._slope(-2)) if len(points) > 1 else 0.0
        if self._beyond == 0:
            self._beyond = self._seconds[-1] / self._images[-1]

    def __call__(self, images: float) -> float:
        at = bisect_right(self._images, images)
        if at == 0:
            return self._seconds[0]
        start, seconds = self._images[at - 1], self._seconds[at - 1]
        if at == len(self._images):
            return seconds + self._beyond * (images - start)
        share = (images - start) / (self._images[at] - start)
        # Not the sum of one end and a part: rounded, that may exceed the other end.
        return (1 - share) * seconds + share * self._seconds[at]

    def _slope(self, since: int) -> float:
        return (self._seconds[-1] - self._seconds[since]) / (self._images[-1] - self._images[since])


def _of_profile(profile: Profile) -> list[tuple[int, float]]:
    one = (1, profile.latency.p50_ms / 1e3)
    if profile.batch_images == 1:
        return [one]
    return [one, (profile.batch_images, profile.batch_latency.p50_ms / 1e3)]


def _is_time(seconds: float) -> bool:
    return math.isfinite(seconds) and 0 <= seconds <= _LONGEST
