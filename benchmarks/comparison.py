"""Interleaved comparisons: two ways to do the same, in turns, judged by the ratios of neighbours.

Machines are shared and noisy; what disturbs one of a pair is likely to disturb the other.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from shifter.run import provenance


@dataclass(frozen=True)
class Figure:
    """The median of a few measurements, with a 95 % interval by bootstrap (10,000 resamples)."""

    median: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: list[float]) -> Figure:
        array = np.asarray(values)
        drawn = np.random.default_rng(0).choice(array, (10_000, array.size))
        low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
        return cls(float(np.median(array)), float(low), float(high), array.size)

    def __str__(self) -> str:
        return f"{self.median:.3g} [{self.low:.3g}, {self.high:.3g}]"


@dataclass(frozen=True)
class Row:
    """One measured claim.

    Args:
        ratio: what is judged. target: what it should be, with its sign (``>= 1.3``); empty where
            nothing is asked of it.
        figures: what the ratio was made of, by name.
        notes: what a reader needs to know besides.
    """

    name: str
    ratio: Figure
    target: str
    figures: Mapping[str, Figure]
    notes: Mapping[str, Any]

    @property
    def met(self) -> bool | None:
        """Whether the median holds the target; None without one."""
        if not self.target:
            return None
        sign, value = self.target.split()
        return self.ratio.median >= float(value) if sign == ">=" else self.ratio.median <= float(value)

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {figure}" for name, figure in self.figures.items())
        verdict = f", wanted {self.target}: {'met' if self.met else 'missed'}" if self.target else ""
        return f"{self.name}: {self.ratio}{verdict} (n={self.ratio.n}; {parts})"


def in_turns(
    one: Callable[[], float], other: Callable[[], float], repetitions: int
) -> tuple[list[float], list[float]]:
    """Measures ``one`` and ``other`` alternately, each first as often as the other."""
    ones: list[float] = []
    others: list[float] = []
    for turn in range(repetitions):
        first, second = ((one, ones), (other, others))[:: 1 if turn % 2 == 0 else -1]
        for measure, found in (first, second):
            found.append(measure())
    return ones, others


def in_rotation(ways: Mapping[str, Callable[[], float]], repetitions: int) -> dict[str, list[float]]:
    """Measures several ways one after another, again and again, each in every place as often."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for turn in range(repetitions):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            found[name].append(ways[name]())
    return found


def compared(
    name: str,
    target: str,
    what: tuple[str, str],
    measured: tuple[list[float], list[float]],
    **notes: Any,
) -> Row:
    """The row of ``measured[0] / measured[1]``, pair by pair."""
    ratios = [a / b for a, b in zip(*measured, strict=True)]
    figures = {part: Figure.of(values) for part, values in zip(what, measured, strict=True)}
    return Row(name, Figure.of(ratios), target, figures, notes)


def _anywhere(command: str) -> str:
    """Without where files lie, which is no part of what was measured."""
    words = ["", *command.split()]
    kept = [word for before, word in pairwise(words) if "--out" not in (before, word)]
    return " ".join("FOLDER" if Path(word).is_absolute() else word for word in kept)


def save(row: Row, path: Path, command: str) -> None:
    """Appends a row to a file of JSON lines, with where it comes from."""
    facts = provenance(seed=0)
    facts["load_before"] = os.getloadavg()[0]
    facts["platform"] = platform.platform(terse=True)
    facts["torchvision"] = metadata.version("torchvision")
    path.parent.mkdir(parents=True, exist_ok=True)
    line = {"command": _anywhere(command), **asdict(row), "met": row.met, "provenance": facts}
    with path.open("a") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
