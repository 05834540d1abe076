"""What holds every variant inflated at once: model ensembles, which switching is judged against.

Their memory is the sum over the variants; what they save is the switch. Each function gives what
`simulate` takes in place of a portfolio's profiles and service times.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from shifter.switching.samples import ServiceSamples
from shifter.values import Profile

NAME = "ensemble"


def alternating_times(profiles: Mapping[str, Profile]) -> dict[str, ServiceSamples]:
    """Service times when each call is another variant's turn, so that none finds itself in the caches.

    Those of the profiles; the hot ones where there is no other variant to alternate with.
    """
    return {
        name: ServiceSamples.of_latency(one.alternating_latency or one.latency)
        for name, one in profiles.items()
    }


def voting(
    profiles: Mapping[str, Profile], times: Mapping[str, ServiceSamples], accuracy: float | None = None
) -> tuple[dict[str, Profile], dict[str, ServiceSamples]]:
    """The paper's ensemble (§IV-D): all compute every request, and the most confident answer is given.

    Args:
        times: of each variant, the others having run before (`alternating_times`).
        accuracy: of the most confident answers; that of the most accurate variant if not known.

    Returns:
        A portfolio of one variant, which is all of them, and its service times.
    """
    best = max(profiles.values(), key=lambda profile: profile.test_accuracy)
    first, *others = (times[name] for name in profiles)
    known = best.test_accuracy if accuracy is None else accuracy
    whole = replace(
        best,
        tensor_bytes=sum(profile.tensor_bytes for profile in profiles.values()),
        memory_bytes=sum(profile.memory_bytes for profile in profiles.values()),
        test_accuracy=known,
    )
    return {NAME: whole}, {NAME: first.plus(others)}
