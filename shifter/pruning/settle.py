"""What a plan shows that the next one may use: operands that are the same for every image.

Once such an operand is a constant of the graph, its channels need not stay or go with those that it was
added to, and what computed it is nobody's reader any more: so more may go.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np

from shifter.pruning.analyse import Analysis
from shifter.pruning.network import Bools, Fixed, Float64s, Join, Network
from shifter.pruning.widths import Kept

NEUTRAL = {
    ("Add", 0): 0.0,
    ("Add", 1): 0.0,
    ("Sub", 1): 0.0,
    ("Mul", 0): 1.0,
    ("Mul", 1): 1.0,
    ("Div", 1): 1.0,
}
"""By operator and position: the operand that changes nothing."""


def find_fixed(
    network: Network, analysis: Analysis, kept: Kept, needed: Mapping[str, Bools], never: Collection[str]
) -> dict[str, int]:
    """By Join: the position of an operand that is the same for every image, as far as anything needs it."""
    found: dict[str, int] = {}
    for node in network.nodes:
        if not isinstance(node, Join) or node.name in never:
            continue
        whole = network.values[node.output]
        for position, name in enumerate(node.inputs):
            rest = node.inputs[1 - position]
            matters = _matters(
                node.op, analysis, name, rest, kept.channels(node.output) & needed[node.output]
            )
            if network.values[rest].is_as_large_as(whole) and analysis.channels[name].flat[matters].all():
                found[node.name] = position
                break
    return found


def fix(network: Network, found: Mapping[str, int]) -> Network:
    """The network in which these operands are constants."""

    def fixed(node: Join) -> Fixed:
        position = found[node.name]
        operand, rest = node.inputs[position], node.inputs[1 - position]
        return Fixed(node.op, node.name, (rest,), node.outputs, position, operand)

    nodes = (fixed(n) if isinstance(n, Join) and n.name in found else n for n in network.nodes)
    return replace(network, nodes=tuple(nodes))


def find_unsound(
    network: Network, analysis: Analysis, kept: Kept, needed: Mapping[str, Bools]
) -> frozenset[str]:
    """Constants that would not do: some channel that is no constant turned out to be needed after all."""
    return frozenset(
        node.name
        for node in network.nodes
        if isinstance(node, Fixed)
        and not analysis.channels[node.operand].flat[_needed_of(node, analysis, kept, needed)].all()
    )


def constant_of(node: Fixed, analysis: Analysis, kept: Kept, needed: Mapping[str, Bools]) -> Float64s:
    """The operand's value in each channel that is kept; where nothing needs it, one that does nothing."""
    matters = _needed_of(node, analysis, kept, needed)
    neutral = NEUTRAL.get((node.op, node.position), 0.0)
    values = np.where(matters, analysis.channels[node.operand].value, neutral)
    return np.asarray(values[kept.channels(node.output)])


def does_nothing(node: Fixed, values: Float64s) -> bool:
    """True if an operator gives back its other operand."""
    neutral = NEUTRAL.get((node.op, node.position))
    return neutral is not None and bool((values == neutral).all())


def _needed_of(node: Fixed, analysis: Analysis, kept: Kept, needed: Mapping[str, Bools]) -> Bools:
    wanted = kept.channels(node.output) & needed[node.output]
    return _matters(node.op, analysis, node.operand, node.inputs[0], wanted)


def _matters(op: str, analysis: Analysis, name: str, rest: str, wanted: Bools) -> Bools:
    """Where an operand's value counts: not where it multiplies what is zero, unless both are."""
    if op != "Mul":
        return wanted
    one, other = analysis.channels[name].is_zero, analysis.channels[rest].is_zero
    return np.asarray(wanted & (one | ~other))
