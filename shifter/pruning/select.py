"""Module 6, the portfolio post-processor: keeps the variants that nothing beats.

A variant beats another if it is no larger, no slower and no less accurate, and better in one of
the three. Latencies whose 95 % intervals overlap are not told apart. Of near-twins the less
accurate goes. Accuracy is that of the validation images, never of the test images. One that is not
exact (:attr:`Exactness.refusal`) is no candidate.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import NamedTuple

from shifter.errors import InexactError
from shifter.values import Discarded, Profile, Search


def select(
    profiles: Mapping[str, Profile], *, accuracy_tolerance: float = 0.0, size_tolerance: float = 0.0
) -> tuple[tuple[str, ...], tuple[Discarded, ...]]:
    """Splits variants into those kept, largest first, and those discarded, each with what beats it.

    Args:
        accuracy_tolerance, size_tolerance: two variants whose latencies are not told apart, whose
            validation accuracies differ by no more than the first, and whose bytes by no more than
            the second (a fraction of the larger), are near-twins. 0 and 0 find none but equals.

    Raises:
        InexactError: if no variant is exact.
    """
    front = pareto_front(profiles)
    kept, discarded = list(front.optimal), dict(front.discarded)
    kept.sort(key=lambda name: (-profiles[name].validation_accuracy, profiles[name].tensor_bytes, name))
    distinct: list[str] = []
    for name in kept:  # the most accurate first, so that of twins the better one stays
        twin = next(
            (o for o in distinct if _twins(profiles[o], profiles[name], accuracy_tolerance, size_tolerance)),
            None,
        )
        if twin is None:
            distinct.append(name)
        else:
            reason = f"nearly the same as {twin}: size and accuracy within the tolerance"
            discarded[name] = Discarded(name, twin, reason)
    distinct.sort(key=lambda name: (-profiles[name].tensor_bytes, name))
    order = list(profiles)
    return tuple(distinct), tuple(sorted(discarded.values(), key=lambda d: order.index(d.name)))


class Front(NamedTuple):
    """The variants that nothing beats (the paper's *optimal* ones), and the others with what beats them."""

    optimal: tuple[str, ...]
    discarded: Mapping[str, Discarded]


def pareto_front(profiles: Mapping[str, Profile]) -> Front:
    """The exact Pareto front over size, latency and accuracy; near-twins are all in it.

    Raises:
        InexactError: if no variant is exact.
    """
    refusals = {name: profile.exactness.refusal for name, profile in profiles.items()}
    discarded = {name: Discarded(name, None, why) for name, why in refusals.items() if why}
    if len(discarded) == len(profiles):
        raise InexactError(
            "no variant can be published: " + "; ".join(f"{d.name}: {d.reason}" for d in discarded.values())
        )
    kept: list[str] = []

    def order_of_beating(name: str) -> tuple[int, float, float]:
        one = profiles[name]
        return one.tensor_bytes, -one.validation_accuracy, one.latency.p50_ms

    # Whatever beats a variant comes before it in this order, and only what is kept may beat: "not told
    # apart" is not transitive, and a variant must not go for one that is itself not there.
    for name in sorted((name for name in profiles if name not in discarded), key=order_of_beating):
        best = next((rival for rival in kept if _beats(profiles[rival], profiles[name])), None)
        if best is None:
            kept.append(name)
        else:
            discarded[name] = Discarded(name, best, _why(best, profiles[best], profiles[name]))
    return Front(tuple(kept), discarded)


def search_efficiency(profiles: Mapping[str, Profile], searched: int) -> Search:
    """The search as the paper's Table III counts it: optimal variants over searched ones.

    Every round is one search of the architecture, and trains a network of the dense one's size.

    Args:
        searched: rounds that were trained, one that became no variant included.

    Raises:
        InexactError: if no variant is exact.
    """
    assert searched >= len(profiles), f"{len(profiles)} variants of {searched} rounds"
    optimal = pareto_front(profiles).optimal
    nonzero = [profile.nonzero_parameters for profile in profiles.values()]
    accuracies = [profiles[name].test_accuracy for name in optimal]
    return Search(
        searched=searched,
        optimal=optimal,
        min_parameters=min(nonzero),
        mean_parameters=statistics.fmean(nonzero),
        max_parameters=max(nonzero),
        trained_parameters=searched * max(profile.dense_parameters for profile in profiles.values()),
        mean_accuracy=statistics.fmean(accuracies),
        accuracy_deviation=statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0,
    )


def _beats(rival: Profile, profile: Profile) -> bool:
    slower, faster = _slower(rival, profile), _slower(profile, rival)
    smaller = rival.tensor_bytes < profile.tensor_bytes
    better = rival.validation_accuracy > profile.validation_accuracy
    no_worse = (
        rival.tensor_bytes <= profile.tensor_bytes
        and rival.validation_accuracy >= profile.validation_accuracy
        and not slower
    )
    return no_worse and (smaller or better or faster)


def _slower(one: Profile, other: Profile) -> bool:
    return one.latency.is_slower_than(other.latency)


def _twins(one: Profile, other: Profile, accuracy_tolerance: float, size_tolerance: float) -> bool:
    sizes = sorted((one.tensor_bytes, other.tensor_bytes))
    return (
        not _slower(one, other)
        and not _slower(other, one)
        and abs(one.validation_accuracy - other.validation_accuracy) <= accuracy_tolerance
        and sizes[1] - sizes[0] <= size_tolerance * sizes[1]
    )


def _why(rival_name: str, rival: Profile, profile: Profile) -> str:
    size = "smaller" if rival.tensor_bytes < profile.tensor_bytes else "no larger"
    speed = "faster" if _slower(profile, rival) else "no slower"
    right = "more accurate" if rival.validation_accuracy > profile.validation_accuracy else "no less accurate"
    return f"{rival_name} is {size}, {speed} and {right}"
