"""Which channels share an index space and must stay or go together.

Every channel of every activation is given a *unit*. Two channels with one unit are one decision:
a residual add joins the units of its two branches, a flatten repeats a channel's unit for each of
its positions, an activation or a pooling hands its input's units on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shifter.pruning.graph import Network

Units = NDArray[np.int64]


@dataclass(frozen=True)
class Spaces:
    """Units of every activation's channels.

    Args:
        units: by activation, shape (channels,); numbers from 0 to ``count`` - 1.
        space: shape (count,); units that live on common axes have one number, and are rounded up
            together.
        pinned: unit -> why it must stay.
    """

    units: Mapping[str, Units]
    space: NDArray[np.int64]
    pinned: Mapping[int, str]
    count: int


def find_spaces(network: Network, widths: Mapping[str, int]) -> Spaces:
    """Follows channels from tensor to tensor.

    At an operator that is not understood the region stops: what goes in and what comes out is
    pinned, with the reason.

    Args:
        widths: channels of every activation.
    """
    raw: dict[str, Units] = {}
    joins: list[tuple[Units, Units]] = []
    pins: list[tuple[Units, str]] = []
    count = 0

    def new(name: str) -> Units:
        nonlocal count
        made = np.arange(count, count + widths[name])
        count += widths[name]
        return made

    for name in network.inputs:
        raw[name] = new(name)
        pins.append((raw[name], "the network's input"))
    for node in network.nodes:
        if node.trouble is not None:
            raw[node.output] = new(node.output)
            pins += [(raw[name], node.trouble) for name in (*node.inputs, node.output)]
        elif node.layer is not None:
            raw[node.output] = new(node.output)
        elif node.op == "Add":
            left, right = (raw[name] for name in node.inputs)
            joins.append((left, right))
            raw[node.output] = left
        elif node.op == "Flatten":
            source = raw[node.inputs[0]]
            raw[node.output] = np.repeat(source, widths[node.output] // source.size)
        else:
            raw[node.output] = raw[node.inputs[0]]
    pins += [(raw[name], "the network's output") for name in network.outputs]

    root = _join(count, joins)
    pinned: dict[int, str] = {}
    for units, why in pins:
        for unit in np.unique(root[units]).tolist():
            pinned.setdefault(unit, why)
    neighbours = [(axis[:-1], axis[1:]) for axis in (root[u] for u in raw.values())]
    space = _join(count, [*neighbours, (np.arange(count), root)])
    return Spaces({name: root[units] for name, units in raw.items()}, space, pinned, count)


def _join(count: int, pairs: list[tuple[Units, Units]]) -> Units:
    """The smallest member of each element's set, when the two of every pair are one set."""
    root = np.arange(count)
    if not pairs:
        return root
    left, right = (np.concatenate(side) for side in zip(*pairs, strict=True))
    while True:
        low = np.minimum(root[left], root[right])
        before = root.copy()
        np.minimum.at(root, root[left], low)
        np.minimum.at(root, root[right], low)
        root = root[root]
        if np.array_equal(root, before):
            return root
