"""How many channels each activation keeps: what must stay, and what fills it up to a width that works.

Kept channels are those that somebody needs, and carriers. To them come channels that will hold
zeros: an activation that is read has at least one, the groups of a grouped convolution have equally
many, and widths are rounded up to a multiple, since odd widths are slow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from shifter.pruning.analyse import Analysis, LayerFacts
from shifter.pruning.carriers import Carriers, Wants
from shifter.pruning.demand import Demands
from shifter.pruning.network import Arrange, Bools, Ints, LayerNode, Legality, Network, Node
from shifter.pruning.reasons import Needed, Reason
from shifter.pruning.spaces import Spaces, is_depthwise


class Kept:
    """Which units stay, and why each does."""

    def __init__(self, spaces: Spaces) -> None:
        self.spaces = spaces
        self.units: Bools = np.zeros(spaces.count, np.bool_)
        self._reasons: list[Reason] = []
        self._reason: Ints = np.zeros(spaces.count, np.int64)

    def add(self, units: Ints, reason: Reason) -> None:
        """Keeps ``units``; the first reason that is given for one stands."""
        new = units[~self.units[units]]
        if new.size:
            self._reason[new] = len(self._reasons)
            self._reasons.append(reason)
            self.units[new] = True

    def reasons(self, units: Ints) -> list[Reason]:
        """Why each of some units that stay does."""
        return [self._reasons[number] for number in self._reason[units].tolist()]

    def channels(self, name: str) -> Bools:
        """Which channels of an activation stay."""
        return self.units[self.spaces.units[name]]


def keep_needed(network: Network, analysis: Analysis, spaces: Spaces, demands: Demands) -> Kept:
    """The units that somebody needs the varying value of, and those that are pinned."""
    kept = Kept(spaces)
    for pinned, why in spaces.pinned:
        kept.add(pinned, why)
    for node in network.nodes:
        if not isinstance(node, LayerNode) or not node.follows:
            continue
        source, units = analysis.channels[node.inputs[0]], spaces.units[node.inputs[0]]
        demanded, name = demands[node.layer.name], node.layer.name
        kept.add(units[demanded & ~source.constant], Needed(name))
        if is_depthwise(analysis.layers[name]):
            kept.add(
                units[demanded & source.counted],
                f"a constant, to which {name} gives a border",
            )
    return kept


def keep_carriers(kept: Kept, carriers: Carriers, wants: Wants) -> None:
    """Adds the carriers' units."""
    for reader, wanted in wants.items():
        for want in wanted:
            unit = kept.spaces.units[want.source][carriers[want]]
            kept.add(
                np.array([unit]),
                f"stands for the constants that {reader} reads: padding keeps them out of its bias",
            )


def fill_up(
    network: Network, layers: Mapping[str, LayerFacts], kept: Kept, round_to: int, legality: Legality
) -> None:
    """Adds channels of zeros until every width is one that works."""
    grouped = [
        node for node in network.nodes
        if isinstance(node, LayerNode) and node.layer.groups > 1 and node.follows
        and not is_depthwise(layers[node.layer.name])
    ]  # fmt: skip
    balanced = np.zeros(kept.spaces.count, np.bool_)
    for node in grouped:
        for name in (node.inputs[0], node.output):
            balanced[kept.spaces.units[name]] = True
    members = _members(kept.spaces, balanced)
    while True:
        before = kept.units.copy()
        alive = find_alive(network, kept, legality)
        _balance_all(grouped, alive, kept, round_to)
        for name in alive:
            units = kept.spaces.units[name]
            if units.size and not kept.units[units].any():
                kept.add(units[:1], "every layer keeps at least one channel")
                # At once: what a group reads should be of that group.
                _balance_all(grouped, alive, kept, round_to)
        for units in members:
            stay = kept.units[units]
            target = min(units.size, -(-int(stay.sum()) // round_to) * round_to)
            kept.add(units[~stay][: target - int(stay.sum())], f"widths go up to a multiple of {round_to}")
        if np.array_equal(before, kept.units):
            return


def find_alive(network: Network, kept: Kept, legality: Legality) -> dict[str, None]:
    """Activations that are still read: not those of a branch that has become constant or empty."""
    alive = dict.fromkeys(network.outputs)
    for node in reversed(network.nodes):
        if node.outputs and not any(name in alive for name in node.outputs):
            continue
        alive |= dict.fromkeys(node.outputs)
        alive |= dict.fromkeys(inputs_left(node, kept, legality))
    return alive


def inputs_left(node: Node, kept: Kept, legality: Legality) -> tuple[str, ...]:
    """The inputs that an operator still reads."""
    if isinstance(node, Arrange) and node.op == "Concat" and legality == "onnx":
        left = tuple(name for name in node.inputs if kept.channels(name).any())
        return left or node.inputs[:1]
    return node.inputs


def _balance_all(grouped: Sequence[LayerNode], alive: Mapping[str, None], kept: Kept, round_to: int) -> None:
    for node in reversed(grouped):
        if node.output in alive:
            _balance(node, kept, round_to)


def _balance(node: LayerNode, kept: Kept, round_to: int) -> None:
    """Gives every group that is left as many channels as the one that has most."""
    groups = node.layer.groups
    step = round_to // math.gcd(round_to, groups)
    sides = [kept.spaces.units[name].reshape(groups, -1) for name in (node.inputs[0], node.output)]
    left = np.any([kept.units[side].any(axis=1) for side in sides], axis=0)
    for side in sides:
        size = side.shape[1]
        most = int(kept.units[side].sum(axis=1).max())
        target = min(size, max(1, -(-most // step) * step))
        for units in side[left]:
            stay = kept.units[units]
            kept.add(
                units[~stay][: max(0, target - int(stay.sum()))],
                f"the groups of {node.layer.name} are of one size",
            )


def _members(spaces: Spaces, balanced: Bools) -> list[Ints]:
    """The units of each space whose width is rounded: not those that groups settle."""
    used = np.zeros(spaces.count, np.bool_)
    for units in spaces.units.values():
        used[units] = True
    order = np.argsort(spaces.space, kind="stable")
    bounds = np.flatnonzero(np.diff(spaces.space[order])) + 1
    found = [members[used[members]] for members in np.split(order, bounds)]
    return [units for units in found if units.size and not balanced[units].any()]
