"""How long a variant takes for a request: from its profile, corrected by what is seen while serving."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

from shifter.switching.load import Service
from shifter.values import Profile

# What is known is worth at most so many requests, so that newer ones replace it; the profile is worth
# a few at first.
_MEMORY = 50
_PRIOR = 5


class ServiceTimes:
    """Seconds that a server spends on a request of n images: ``overhead + ratio * (a + b * n)``.

    ``a + b * n`` goes through the two latencies of the variant's profile (one image, and a batch).
    Two corrections are learnt, from quantities that are measured apart and so cannot be mistaken
    for one another: ``ratio``, engine time seen over engine time profiled, because a node is
    slower or busier than the one that profiled by about the same factor for every variant; and
    ``overhead``, because decoding a request costs the same whichever variant computes it. One
    ratio over everything would, where the overhead is larger than a small variant's computation,
    predict a large variant many times too slow, and the switcher would never go back up.
    """

    def __init__(self, profiles: Mapping[str, Profile]) -> None:
        self._lines = {name: _line(profile) for name, profile in profiles.items()}
        self._worth = _PRIOR
        self.ratio = 1.0
        self.overhead = 0.0

    def learn(self, services: Iterable[Service]) -> None:
        """Takes in answered requests, of whichever variants."""
        known = [service for service in services if service.images > 0]
        if not known:
            return
        profiled = sum(self._profiled(service.variant, service.images) for service in known)
        weight = len(known) / (self._worth + len(known))
        self._worth = min(self._worth + len(known), _MEMORY)
        self.ratio += weight * (sum(service.seconds for service in known) / profiled - self.ratio)
        self.overhead += weight * (sum(service.overhead for service in known) / len(known) - self.overhead)

    def predict(self, variant: str, images: float) -> float:
        """Seconds of a server's time that a request of ``images`` images takes."""
        return self.overhead + self.ratio * self._profiled(variant, images)

    def renewed(self, profiles: Mapping[str, Profile]) -> ServiceTimes:
        """For other variants, with what was learnt of the node."""
        new = copy.copy(self)
        new._lines = {name: _line(profile) for name, profile in profiles.items()}
        return new

    def _profiled(self, variant: str, images: float) -> float:
        fixed, per_image = self._lines[variant]
        return fixed + per_image * images


def _line(profile: Profile) -> tuple[float, float]:
    """(a, b) in seconds, neither negative; where the two latencies do not allow it, on the slow side."""
    one = profile.latency.p50_ms / 1e3
    if profile.batch_images == 1:
        return 0.0, one
    batch = profile.batch_latency.p50_ms / 1e3
    per_image = max(0.0, (batch - one) / (profile.batch_images - 1))
    if per_image > one:
        return 0.0, batch / profile.batch_images
    return one - per_image, per_image
