"""Which channels share an index space and must stay or go together.

Every channel of every activation is given a *unit*. Two channels with one unit are one decision:
a residual add joins the units of its two branches, a depthwise convolution hands its input's units
on, a flatten repeats a channel's unit for each of its positions, a concatenation lists them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from shifter.pruning.analyse import LayerFacts
from shifter.pruning.network import Arrange, Each, Fixed, Ints, Join, LayerNode, Network, Stop


@dataclass(frozen=True)
class Spaces:
    """Units of every activation's channels.

    Args:
        units: by activation, shape (channels,); numbers from 0 to ``count`` - 1. Empty where
            channels are not followed. Activations with the same channels share one array.
        space: shape (count,); units that layers write side by side have one number, and are rounded
            up together.
        pinned: units that must stay, each with the reason; the first that names one counts.
    """

    units: Mapping[str, Ints]
    space: Ints
    pinned: Sequence[tuple[Ints, str]]
    count: int


def is_depthwise(facts: LayerFacts) -> bool:
    """True if each input channel becomes one output channel by itself."""
    return facts.groups > 1 and facts.groups == facts.into == facts.out


def find_spaces(network: Network, layers: Mapping[str, LayerFacts]) -> Spaces:
    """Follows channels from tensor to tensor.

    At an operator that is not understood the region stops: what goes in and what comes out is
    pinned, with the reason.
    """
    raw: dict[str, Ints] = {}
    joins: list[tuple[Ints, Ints]] = []
    pins: list[tuple[Ints, str]] = []
    written: list[Ints] = []
    count = 0

    def new(width: int) -> Ints:
        nonlocal count
        count += width
        return np.arange(count - width, count)

    for name in network.inputs:
        raw[name] = new(network.values[name].width)
        pins.append((raw[name], "it is the network's input"))
    for node in network.nodes:
        match node:
            case LayerNode():
                facts = layers[node.layer.name]
                source = raw[node.inputs[0]]
                if not node.follows:
                    pins.append((source, f"read by {node.layer.name} along an axis that is not followed"))
                if node.follows and is_depthwise(facts):
                    raw[node.output] = source
                else:
                    raw[node.output] = new(facts.out)
                    written.append(raw[node.output])
                if not node.follows and facts.groups > 1:
                    pins.append((raw[node.output], f"the inputs of {node.layer.name} are not followed"))
            case Each() | Fixed():
                raw[node.output] = raw[node.inputs[0]]
            case Join():
                left, right = (raw[name] for name in node.inputs)
                joins.append((left, right))
                raw[node.output] = left
            case Arrange():
                for name, (which, channel) in zip(node.outputs, node.sources, strict=True):
                    sources = [raw[source] for source in node.inputs]
                    starts = np.cumsum([0, *(s.size for s in sources)])
                    added = new(int((which < 0).sum()))
                    whole = np.concatenate([*sources, added])
                    place = np.where(which < 0, 0, starts[which] + channel)
                    place[which < 0] = starts[-1] + np.arange(added.size)
                    raw[name] = whole[place]
            case Stop():
                why = node.reason or f"{node.op} stands behind an operator that is not followed"
                for name in node.outputs:
                    raw[name] = new(network.values[name].width)
                pins += [(raw[name], why) for name in (*node.inputs, *node.outputs)]
    pins += [(raw[name], "it is an answer of the network") for name in network.outputs]

    root = join_units(count, joins)
    neighbours = [(np.full_like(axis, axis.min()), axis) for axis in (root[before] for before in written)]
    space = join_units(count, [*neighbours, (np.arange(count), root)])
    of_raw = {id(units): root[units] for units in raw.values()}
    units = {name: of_raw[id(before)] for name, before in raw.items()}
    return Spaces(units, space, [(root[before], why) for before, why in pins], count)


def join_units(count: int, pairs: list[tuple[Ints, Ints]]) -> Ints:
    """The smallest member of each element's set, when the two of every pair are one set."""
    root = np.arange(count)
    for left, right in pairs:
        while True:
            one, other = _roots(root, left), _roots(root, right)
            if np.array_equal(one, other):
                break
            np.minimum.at(root, np.maximum(one, other), np.minimum(one, other))
    return _roots(root, np.arange(count))


def _roots(root: Ints, members: Ints) -> Ints:
    """Where the way from each member to smaller and smaller ones ends."""
    found = root[members]
    while True:
        further = root[found]
        if np.array_equal(further, found):
            return found
        found = further
