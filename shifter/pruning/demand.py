"""Backward through the network: whose value is asked for, and which weights ask for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from shifter.pruning.analyse import Analysis
from shifter.pruning.network import Arrange, Bools, Each, Fixed, Ints, Join, LayerNode, Network, Stop
from shifter.pruning.spaces import is_depthwise

Demands = dict[str, Bools]
"""By layer: the input channels for which some output that matters has a non-zero weight."""


def find_demands(network: Network, analysis: Analysis) -> tuple[Demands, dict[str, Bools]]:
    """The demands of every layer, and the channels of every activation whose value must be right.

    An input channel is needed if an output channel that is needed and varies has a non-zero weight
    for it and the input is no constant; a constant it needs only as a carrier, or where every channel
    has a border of its own (a padded depthwise convolution).
    """
    demands: Demands = {}
    needed = _spread(network, analysis, demands, ())
    return demands, needed


def need_carriers(
    network: Network, analysis: Analysis, demands: Demands, carriers: Iterable[tuple[str, int]]
) -> dict[str, Bools]:
    """What is needed if the values of ``carriers`` (activation, channel) must be right as well."""
    return _spread(network, analysis, demands, carriers)


def _spread(
    network: Network, analysis: Analysis, demands: Demands, carriers: Iterable[tuple[str, int]]
) -> dict[str, Bools]:
    channels = analysis.channels
    needed = {name: np.zeros(found.constant.size, np.bool_) for name, found in channels.items()}
    for name in network.outputs:
        needed[name][:] = True
    for name, channel in carriers:
        needed[name][channel] = True
    for node in reversed(network.nodes):
        match node:
            case LayerNode():
                facts, source = analysis.layers[node.layer.name], channels[node.inputs[0]]
                if not node.follows:
                    needed[node.inputs[0]][:] = True
                    continue
                # A carrier is a constant, and a constant output asks for nothing: demands stay.
                if node.layer.name not in demands:
                    live = needed[node.output] & ~channels[node.output].constant
                    demands[node.layer.name] = facts.read_by(live)
                asked = ~source.constant | source.counted if is_depthwise(facts) else ~source.constant
                needed[node.inputs[0]] |= demands[node.layer.name] & asked
            case Each():
                # Only a scale of zero makes a constant of what is none, and asks for nothing.
                made = channels[node.output].constant & ~channels[node.inputs[0]].constant
                needed[node.inputs[0]] |= needed[node.output] & ~made
            case Fixed():
                silenced = channels[node.operand].is_zero & (node.op == "Mul")
                needed[node.inputs[0]] |= needed[node.output] & ~silenced
            case Join():
                zero = [channels[name].is_zero for name in node.inputs]
                for position, name in enumerate(node.inputs):
                    silenced = zero[1 - position] if node.op == "Mul" else np.zeros_like(zero[0])
                    if position == 0:
                        silenced = silenced & ~zero[0]  # of two zeros one must stay zero
                    needed[name] |= needed[node.output] & ~silenced
            case Arrange():
                for name, (which, channel) in zip(node.outputs, node.sources, strict=True):
                    _gather(needed, node.inputs, needed[name], which, channel)
            case Stop():
                for name in node.inputs:
                    needed[name][:] = True
    return needed


def _gather(
    needed: Mapping[str, Bools], inputs: tuple[str, ...], wanted: Bools, which: Ints, channel: Ints
) -> None:
    for number, name in enumerate(inputs):
        needed[name][channel[wanted & (which == number)]] = True
