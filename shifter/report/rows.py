"""What the report says of each variant, before any markup."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shifter.values import Discarded, Profile


@dataclass(frozen=True)
class Row:
    """One variant and its fate: ``discarded`` is None for one that the selection kept."""

    name: str
    profile: Profile
    discarded: Discarded | None

    @property
    def is_kept(self) -> bool:
        return self.discarded is None

    @property
    def nonzero_share(self) -> float:
        """Non-zero parameters over the dense network's."""
        return self.profile.nonzero_parameters / self.profile.dense_parameters

    @property
    def structural_share(self) -> float:
        """Structural parameters over the dense network's."""
        return self.profile.structural_parameters / self.profile.dense_parameters


def rows(
    variants: Sequence[tuple[str, Profile]], kept: Collection[str], discarded: Sequence[Discarded]
) -> list[Row]:
    """Each variant with its fate, in the order given.

    Raises:
        AssertionError: unless every variant is either kept or discarded, once.
    """
    names = [name for name, _ in variants]
    fates = sorted([*kept, *(d.name for d in discarded)])
    assert fates == sorted(names) == sorted(set(names)), (
        f"every variant is kept or discarded, once: variants {names}, kept or discarded {fates}"
    )
    reasons = {d.name: d for d in discarded}
    return [Row(name, profile, reasons.get(name)) for name, profile in variants]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A nested mapping as (dotted path, text), in its own order: ``("data.size", "8")``."""
    lines: list[tuple[str, str]] = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            lines += flatten(value, f"{prefix}{key}.")
        else:
            lines.append((f"{prefix}{key}", "–" if value is None else str(value)))
    return lines


def quantity(number: float) -> str:
    """Three figures and a decimal prefix: 1234567 is ``1.23 M``; below 1000 as it is."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        # 999,999 is 1 M, not 1000 k.
        if abs(number) >= 0.9995 * size and abs(number) >= 1000:
            scaled = number / size
            digits = 2 if abs(scaled) < 9.995 else 1 if abs(scaled) < 99.95 else 0
            return f"{scaled:.{digits}f} {unit}"
    return f"{number:g}"


def known(number: float | None) -> str:
    """A :func:`quantity`, or a dash where it is not known."""
    return "–" if number is None else quantity(number)


def share(fraction: float) -> str:
    """A fraction as a percentage: two significant figures below 1 %, one decimal above."""
    percent = 100 * fraction
    return f"{percent:.2g} %" if 0 < abs(percent) < 0.995 else f"{percent:.1f} %"


def milliseconds(value: float) -> str:
    """Three significant figures, microseconds at the finest, never in exponent notation."""
    digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2 if value >= 0.9995 else 3
    return f"{value:.{digits}f}"


def bound(value: float | None) -> str:
    """An end of an interval: :func:`milliseconds`, or ``?`` where too few samples know it."""
    return "?" if value is None else milliseconds(value)
