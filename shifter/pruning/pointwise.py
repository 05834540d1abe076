"""Functions of one activation, however many operators they are made of, and between which numbers they lie.

Activation functions are often exported as several operators: x / (1 + |x|), or one formula above a
threshold and another below it. What is made of one activation by operators that work on every number by
itself is again such an operator, whatever the operators are. An operator that is not defined everywhere
is one of them if what it reads is known to be in its domain: a channel that holds nothing may be any number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from shifter.pruning.functions import COMBINE
from shifter.pruning.network import Float64s

Function = Callable[[Float64s], Float64s]
Bounds = tuple[float, float]

ANYTHING: Bounds = (-math.inf, math.inf)
TINY = math.ulp(0.0)
"""The lower bound of what is above zero, if only in theory."""

RANGES: Mapping[str, Bounds] = {
    **dict.fromkeys(("Abs", "Relu", "Sqrt"), (0.0, math.inf)),
    **dict.fromkeys(("Exp", "Softplus"), (TINY, math.inf)),
    **dict.fromkeys(("Cos", "Erf", "Sign", "Sin", "Softsign", "Tanh"), (-1.0, 1.0)),
    "HardSigmoid": (0.0, 1.0),
    "Sigmoid": (TINY, 1.0),
}
"""By operator: between which numbers its results lie, where that is less than anything."""


def is_away_from_zero(bounds: Bounds) -> bool:
    """Whether it is safe to divide by what lies there."""
    return bounds[0] > 0 or bounds[1] < 0


DOMAINS: Mapping[str, Callable[[Bounds], bool]] = {
    "Log": lambda bounds: bounds[0] > 0,
    "Reciprocal": is_away_from_zero,
    "Sqrt": lambda bounds: bounds[0] >= 0,
}
"""By operator: whether it is defined for all that it may read."""


def is_power_defined(base: Bounds, exponent: float) -> bool:
    """Whether every number that may be read has such a power."""
    if exponent != round(exponent) and base[0] < 0:
        return False
    return exponent >= 0 or is_away_from_zero(base)


def combined(op: str, one: Bounds, other: Bounds) -> Bounds:
    """Bounds of a sum, product, ... of two; each takes its extremes where its operands do."""
    if op not in COMBINE or (op == "Div" and not is_away_from_zero(other)):
        return ANYTHING
    with np.errstate(all="ignore"):
        corners = COMBINE[op](np.repeat(one, 2), np.tile(other, 2))
    if np.isnan(corners).any():
        return ANYTHING
    return float(corners.min()), float(corners.max())


@dataclass
class Pointwise:
    """Which activations are functions of which others, number by number."""

    _sources: dict[str, tuple[str, Function]] = field(default_factory=dict)
    _bounds: dict[str, Bounds] = field(default_factory=dict)

    def bounds(self, name: str) -> Bounds:
        """Between which numbers an activation is known to lie."""
        return self._bounds.get(name, ANYTHING)

    def add(self, name: str, source: str, function: Function, bounds: Bounds = ANYTHING) -> None:
        """Notes that an activation is this function of another one."""
        self._sources[name] = source, function
        self._bounds[name] = bounds

    def common(self, names: Sequence[str]) -> tuple[str, dict[str, Function]] | None:
        """The nearest activation of which all of these are functions, and which function each is."""
        made = [self._made_of(name) for name in names]
        shared = [name for name in made[0] if all(name in one for one in made)]
        if not shared:
            return None
        nearest = shared[0]  # the last that was made is the first that is met on the way back
        return nearest, {name: one[nearest] for name, one in zip(names, made, strict=True)}

    def _made_of(self, name: str) -> dict[str, Function]:
        """Itself and what it is a function of, nearest first."""
        found: dict[str, Function] = {name: lambda x: x}
        while name in self._sources:
            source, function = self._sources[name]
            found[source] = _after(found[name], function)
            name = source
        return found


def _after(outer: Function, inner: Function) -> Function:
    return lambda x: outer(inner(x))
