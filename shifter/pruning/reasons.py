"""Why channels that carry nothing stay, in words: which layer needs them, and because of which other one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from shifter.pruning.analyse import Analysis
from shifter.pruning.network import Bools, Fixed, Ints, Join, LayerNode, Network
from shifter.pruning.spaces import Spaces

_JOINED = {"Add": "added to", "Sub": "added to", "Mul": "multiplied by"}


@dataclass(frozen=True)
class Needed:
    """That a layer needs the varying value of a channel: whose that is, is not yet said."""

    reader: str


Reason = str | Needed


class Reasons:
    """Says whose value it is that a layer needs, where the channel at hand adds nothing to it."""

    def __init__(
        self, network: Network, analysis: Analysis, spaces: Spaces, needed: Mapping[str, Bools]
    ) -> None:
        layers = [node for node in network.nodes if isinstance(node, LayerNode)]
        joins = [node for node in network.nodes if isinstance(node, Join | Fixed)]
        self._layers = [node.layer.name for node in layers]
        self._ops = [node.op for node in joins]
        self._writer = np.full(spaces.count, -1)
        self._join = np.full(spaces.count, -1)
        for number, node in reversed(list(enumerate(layers))):  # the first stands
            varies = needed[node.output] & ~analysis.channels[node.output].constant
            self._writer[spaces.units[node.output][varies]] = number
        for number, join in reversed(list(enumerate(joins))):
            self._join[spaces.units[join.output]] = number

    def told(self, reasons: list[Reason], units: Ints) -> list[str]:
        """One sentence for each unit that stays."""
        writers, joins = self._writer[units].tolist(), self._join[units].tolist()
        return [self._told(*given) for given in zip(reasons, writers, joins, strict=True)]

    def _told(self, reason: Reason, writer: int, join: int) -> str:
        if isinstance(reason, str):
            return reason
        if writer < 0 or join < 0:
            return f"{reason.reader} needs it"
        joined = _JOINED.get(self._ops[join], "combined with")
        return f"{joined} a channel of {self._layers[writer]} that {reason.reader} needs"
