"""What a request asks of the variant that answers it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from shifter.errors import NeedsError
from shifter.values import Profile


@dataclass(frozen=True)
class Needs:
    """Both are to be met, and nothing is asked by default.

    Args:
        variant: the name of the one that is to answer.
        min_accuracy: the least validation accuracy that it may have, 0 to 1; the one that policies and
            the report go by.

    Raises:
        NeedsError: if that is no name, or no accuracy.
    """

    variant: str | None = None
    min_accuracy: float | None = None

    def __post_init__(self) -> None:
        name: object = self.variant
        least: object = self.min_accuracy
        if name is not None and not (isinstance(name, str) and name):
            raise NeedsError(f"a variant is asked for by its name, not {name!r}")
        is_share = isinstance(least, int | float) and not isinstance(least, bool) and 0 <= least <= 1
        if least is not None and not is_share:
            raise NeedsError(f"an accuracy is a number from 0 to 1, not {least!r}")

    def __bool__(self) -> bool:
        return self != Needs()

    def met_by(self, profiles: Mapping[str, Profile], usable: Collection[str]) -> tuple[str, ...]:
        """The variants that meet them, the fastest first by profile.

        Args:
            profiles: all of the portfolio. usable: those of them that can serve on this node.

        Raises:
            NeedsError: if there are none, with what there is.
        """
        if self.variant is not None and self.variant not in profiles:
            raise NeedsError(
                f"no variant is called {self.variant!r}; the portfolio has {', '.join(profiles)}"
            )
        met = [name for name, profile in profiles.items() if self._allow(name, profile)]
        found = sorted((name for name in met if name in usable), key=lambda n: profiles[n].latency.p50_ms)
        if found:
            return tuple(found)
        if met:
            raise NeedsError(
                f"{', '.join(met)} cannot serve on this node, by its memory or its engine; "
                f"{', '.join(usable)} can"
            )
        if self.variant is not None:
            has = profiles[self.variant].validation_accuracy
            raise NeedsError(f"{self.variant} has an accuracy of {has:g}: {self.min_accuracy:g} is asked for")
        best = max(profiles, key=lambda name: profiles[name].validation_accuracy)
        raise NeedsError(
            f"no variant has an accuracy of {self.min_accuracy:g}; the highest is "
            f"{profiles[best].validation_accuracy:g}, of {best}"
        )

    def _allow(self, name: str, profile: Profile) -> bool:
        return self.variant in (None, name) and profile.validation_accuracy >= (self.min_accuracy or 0.0)
