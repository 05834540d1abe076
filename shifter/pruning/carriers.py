"""Carriers: one channel that stands for all constants where they cannot fold into a bias.

Before a padded convolution, and behind a pooling that counts its padding, what a constant channel
contributes depends on the position, but in the same way for all of them. One channel of the same
kind, a filter of zeros whose bias b gives act(b) != 0, is kept, and read by the weights that sum up
what all of them contributed.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from shifter.pruning.analyse import Analysis, Channels, LayerFacts
from shifter.pruning.demand import Demands
from shifter.pruning.network import Bools, Ints, Layer, LayerNode, Network
from shifter.pruning.spaces import Spaces, is_depthwise


@dataclass(frozen=True)
class Want:
    """Constants that a group of a convolution reads and cannot fold: of which activation, among which
    of its channels (``first`` to ``last``, exclusive), and of which border profile.
    """

    source: str
    first: int
    last: int
    profile: int


Wants = dict[str, dict[Want, Ints]]
"""By layer: what it wants carried, and which channels each want is of."""

Carriers = Mapping[Want, int]
"""The channel that serves each want."""


def absorbs_constants(layer: Layer) -> bool:
    """True if a constant input contributes the same at every position, so that it folds into the bias."""
    return not layer.padded


def folds(layer: Layer, source: Channels) -> Bools:
    """Channels whose constant, as this layer reads it, folds into its bias."""
    if not absorbs_constants(layer):
        return np.zeros(source.constant.size, np.bool_)
    return source.flat & source.counted


def wants_of(
    layer: Layer, name: str, facts: LayerFacts, source: Channels, demanded: Bools
) -> dict[Want, Ints]:
    """What this layer wants carried, and the channels to carry."""
    if is_depthwise(facts):
        return {}
    counted = np.flatnonzero(demanded & source.counted & ~folds(layer, source))
    if not counted.size:
        return {}
    size = facts.into // facts.groups
    first, profile = counted // size * size, source.profile[counted]
    kind = first * (int(profile.max()) + 1) + profile
    found = {}
    for number in sorted(set(kind.tolist())):
        channels = counted[kind == number]
        start = int(channels[0]) // size * size
        found[Want(name, start, start + size, int(source.profile[channels[0]]))] = channels
    return found


def find_wants(network: Network, analysis: Analysis, demands: Demands) -> Wants:
    """What every layer wants carried."""
    found: Wants = {}
    for node in network.nodes:
        if isinstance(node, LayerNode) and node.follows:
            name, layer = node.inputs[0], node.layer
            facts, source = analysis.layers[layer.name], analysis.channels[name]
            found[layer.name] = wants_of(layer, name, facts, source, demands[layer.name])
    return found


def choose_carriers(analysis: Analysis, spaces: Spaces, wants: Wants, keep: Bools) -> dict[Want, int]:
    """For each want the channel that carries it.

    One unit serves as many wants of a space as it can (a residual space needs one carrier for all of
    it). Among those that serve equally many, one that stays anyway is taken, then the one whose
    constant is largest where it is smallest. ``keep`` is not changed.
    """
    return _cover(
        analysis, spaces, list(dict.fromkeys(want for found in wants.values() for want in found)), keep
    )


def _cover(analysis: Analysis, spaces: Spaces, wants: list[Want], keep: Bools) -> dict[Want, int]:
    usable = [_usable(want, analysis.channels[want.source]) for want in wants]
    units = [spaces.units[want.source][channels] for want, channels in zip(wants, usable, strict=True)]
    served = np.zeros(spaces.count, np.int64)  # wants that each unit could serve
    for found in units:
        served[np.unique(found)] += 1
    chosen: dict[Want, int] = {}
    shared: dict[Want, tuple[Ints, Ints]] = {}
    for want, channels, found in zip(wants, usable, units, strict=True):
        if served[found].max() > 1:
            shared[want] = (channels, found)
            continue
        strength = np.abs(analysis.channels[want.source].value[channels])
        chosen[want] = int(channels[np.lexsort((channels, found, -strength, ~keep[found]))[0]])
    return chosen | _cover_shared(analysis, shared, keep)


def _cover_shared(
    analysis: Analysis, wants: Mapping[Want, tuple[Ints, Ints]], keep: Bools
) -> dict[Want, int]:
    # By unit: the wants that it can serve, each with how strongly, and the channel that does.
    strengths: dict[int, dict[Want, tuple[float, int]]] = {}
    for want, (channels, units) in wants.items():
        values = np.abs(analysis.channels[want.source].value[channels])
        for channel, unit, strength in zip(channels.tolist(), units.tolist(), values.tolist(), strict=True):
            serves = strengths.setdefault(unit, {})
            if want not in serves or strength > serves[want][0]:
                serves[want] = (strength, channel)

    def rank(unit: int) -> tuple[float, float, float, float]:
        """The best unit has the lowest; a unit's own only ever rises, since wants are served."""
        left = [strength for strength, _ in strengths[unit].values()]
        return -len(left), -float(keep[unit]), -min(left, default=0.0), unit

    heap = [(rank(unit), unit) for unit in strengths]
    heapq.heapify(heap)
    chosen: dict[Want, int] = {}
    serving: dict[Want, list[int]] = {}
    for unit, served in strengths.items():
        for want in served:
            serving.setdefault(want, []).append(unit)
    while len(chosen) < len(wants):
        stated, best = heapq.heappop(heap)
        if stated != rank(best):
            heapq.heappush(heap, (rank(best), best))
            continue
        for want, (_, channel) in list(strengths[best].items()):
            chosen[want] = channel
            for unit in serving[want]:
                del strengths[unit][want]
    return chosen


def _usable(want: Want, source: Channels) -> Ints:
    """Channels that could carry: a carrier far weaker than what it carries would need huge weights."""
    members = np.arange(want.first, want.last)
    members = members[source.counted[members] & (source.profile[members] == want.profile)]
    strength = np.abs(source.value[members])
    return np.asarray(members[strength >= 1e-3 * strength.max()])
