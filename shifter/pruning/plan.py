"""Module 3, the prune planner: for the whole graph at once, what to keep and what makes up for the rest.

A unit (see :mod:`shifter.pruning.spaces`) may go if every layer that reads it either does not
need it or sees a constant there. Constants go on being counted:

- before a linear layer, or a convolution without padding, a constant folds into the bias;
- before a padded convolution it does not, since the border differs. There one *carrier* channel
  stands for all constants of its space: a filter of zeros whose bias b gives act(b) != 0, read by
  weights that sum up what the constants contributed.

The plan is plain data in the checkpoint's own coordinates; nothing in it depends on the size of
the image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from shifter.pruning.analyse import Analysis, Bools, analyse
from shifter.pruning.graph import Layer, Network, parse_model, read_network
from shifter.pruning.spaces import Spaces, find_spaces
from shifter.values import Tensors


@dataclass(frozen=True)
class LayerPlan:
    """What becomes of one layer. All indices are of the sparse checkpoint's tensors.

    Args:
        outputs, inputs: kept output and input channels, ascending.
        widths: (out, in) channels before.
        empty_outputs: kept output channels that nothing needs: filter and bias become zero.
        constant_outputs: (channel, value) of kept output channels that are constants: the filter
            becomes zero, the bias the value (before the activation).
        silent_inputs: input channels whose weights become zero, because what they contribute is
            zero, or is made up for by one of the next two.
        folded_inputs: (channel, value): the constant moves into the bias.
        carried_inputs: (channel, carrier, ratio): ``ratio`` times its weights are added to the
            carrier's.
    """

    layer: Layer
    widths: tuple[int, int]
    outputs: tuple[int, ...]
    inputs: tuple[int, ...]
    empty_outputs: tuple[int, ...] = ()
    constant_outputs: tuple[tuple[int, float], ...] = ()
    silent_inputs: tuple[int, ...] = ()
    folded_inputs: tuple[tuple[int, float], ...] = ()
    carried_inputs: tuple[tuple[int, int, float], ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LayerPlan:
        fields = dict(data)
        layer = Layer.from_json(fields.pop("layer"))
        return cls(layer=layer, **{key: _tuples(value) for key, value in fields.items()})


@dataclass(frozen=True)
class PrunePlan:
    """The plan for one checkpoint: one part a layer, and where following channels stopped.

    ``untouched`` maps an operator's name to the reason why channels are not followed through it.
    """

    layers: tuple[LayerPlan, ...]
    untouched: Mapping[str, str] = field(default_factory=dict)

    @property
    def carriers(self) -> int:
        """Carrier channels in the whole network, counted where they are read."""
        return sum(len({carrier for _, carrier, _ in part.carried_inputs}) for part in self.layers)

    def to_json(self) -> dict[str, Any]:
        return {"layers": [part.to_json() for part in self.layers], "untouched": dict(self.untouched)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PrunePlan:
        return cls(tuple(LayerPlan.from_json(part) for part in data["layers"]), dict(data["untouched"]))


def plan_round(architecture: bytes, tensors: Tensors, round_to: int = 8) -> PrunePlan:
    """Plans the exact reduction of one sparse checkpoint.

    Args:
        architecture: the weightless ONNX model.
        tensors: the checkpoint's tensors (float32 or float64).
        round_to: widths are rounded up to a multiple of this; odd widths are slow.

    Raises:
        CheckpointError: if the tensors do not fit the architecture, or are not finite.
        GraphError: if the architecture cannot be read.
    """
    network = read_network(parse_model(architecture))
    return plan_network(network, analyse(network, tensors), round_to)


def plan_network(network: Network, analysis: Analysis, round_to: int = 8) -> PrunePlan:
    """:func:`plan_round` for a network that is already read and analysed."""
    if round_to < 1:
        raise ValueError(f"widths are rounded up to a multiple of at least 1, not {round_to}")
    spaces = find_spaces(network, {name: c.constant.size for name, c in analysis.channels.items()})
    needed = _needed(network, analysis)
    keep = np.zeros(spaces.count, np.bool_)
    keep[list(spaces.pinned)] = True
    for source, demanded in _demands(network, analysis, needed):
        keep[spaces.units[source][demanded & ~analysis.channels[source].constant]] = True
    carriers = _choose_carriers(network, analysis, spaces, needed, keep)
    for source, channel in carriers.items():
        keep[spaces.units[source][channel]] = True
    _round_up(spaces, keep, round_to)
    needed = _needed(network, analysis, carriers)
    parts = [
        _plan_layer(node.layer, node.inputs[0], node.output, analysis, spaces, keep, needed, carriers)
        for node in network.nodes
        if node.layer is not None
    ]
    return PrunePlan(tuple(parts), {n.name: n.trouble for n in network.nodes if n.trouble is not None})


def absorbs_constants(layer: Layer) -> bool:
    """True if a constant input may fold into the layer's bias: it has no padded border."""
    return not layer.padded


def _needed(
    network: Network, analysis: Analysis, carriers: Mapping[str, int] | None = None
) -> dict[str, Bools]:
    """Backward: which channels of each activation anything needs.

    A layer needs an input channel if a needed, varying output channel has a weight for it and the
    input is no constant; a constant it needs only as its carrier.
    """
    needed = {name: np.zeros(c.constant.size, np.bool_) for name, c in analysis.channels.items()}
    for name in network.outputs:
        needed[name][:] = True
    for source, channel in (carriers or {}).items():
        needed[source][channel] = True
    for node in reversed(network.nodes):
        if node.layer is not None:
            demanded = _demanded(node.layer, node.output, analysis, needed)
            needed[node.inputs[0]] |= demanded & ~analysis.channels[node.inputs[0]].constant
        elif node.trouble is not None:
            for name in node.inputs:
                needed[name][:] = True
        elif node.op == "Flatten":
            channels = needed[node.inputs[0]].size
            positions = needed[node.output].reshape(channels, -1)
            needed[node.inputs[0]] |= np.asarray(positions.any(axis=1))
        else:
            for name in node.inputs:
                needed[name] |= needed[node.output]
    return needed


def _demanded(layer: Layer, output: str, analysis: Analysis, needed: Mapping[str, Bools]) -> Bools:
    """Input channels for which some needed, varying output channel has a non-zero weight."""
    live = needed[output] & ~analysis.channels[output].constant
    found: Bools = np.asarray(analysis.layers[layer.name].reads[live].any(axis=0))
    return found


def _demands(network: Network, analysis: Analysis, needed: Mapping[str, Bools]) -> list[tuple[str, Bools]]:
    """Per layer: the activation that it reads, and the channels that it has live weights for."""
    return [
        (node.inputs[0], _demanded(node.layer, node.output, analysis, needed))
        for node in network.nodes
        if node.layer is not None
    ]


def _choose_carriers(
    network: Network, analysis: Analysis, spaces: Spaces, needed: Mapping[str, Bools], keep: Bools
) -> dict[str, int]:
    """For each activation that padded layers read constants from: the channel that carries them.

    One unit serves as many activations of a space as it can (a residual space wants one carrier
    for all of it). Among those that serve equally many, one that stays anyway is taken, then the
    one whose constant is largest where it is smallest.
    """
    wanting: list[str] = []
    for node in network.nodes:
        if node.layer is None or absorbs_constants(node.layer) or node.inputs[0] in wanting:
            continue
        source = analysis.channels[node.inputs[0]]
        demanded = _demanded(node.layer, node.output, analysis, needed)
        if (demanded & source.constant & (source.value != 0)).any():
            wanting.append(node.inputs[0])
    chosen: dict[str, int] = {}
    while wanting:
        strengths: dict[int, list[float]] = {}
        for name in wanting:
            source = analysis.channels[name]
            # Weakest first: a carrier far weaker than what it carries would need huge weights.
            enough = np.abs(source.value) >= 1e-3 * np.abs(source.value).max()
            for channel in np.flatnonzero(source.constant & (source.value != 0) & enough).tolist():
                unit = int(spaces.units[name][channel])
                strengths.setdefault(unit, []).append(abs(float(source.value[channel])))
        best = max(
            strengths, key=lambda unit: (len(strengths[unit]), keep[unit], min(strengths[unit]), -unit)
        )
        for name in list(wanting):
            source = analysis.channels[name]
            enough = np.abs(source.value) >= 1e-3 * np.abs(source.value).max()
            usable = source.constant & (source.value != 0) & enough & (spaces.units[name] == best)
            if usable.any():
                chosen[name] = int(np.flatnonzero(usable)[0])
                wanting.remove(name)
        keep[best] = True
    return chosen


def _round_up(spaces: Spaces, keep: Bools, multiple: int) -> None:
    """Fills every space's width up to a multiple with channels that will be zero; never to none."""
    order = np.argsort(spaces.space, kind="stable")
    bounds = np.flatnonzero(np.diff(spaces.space[order])) + 1
    live = np.zeros(spaces.count, np.bool_)
    for units in spaces.units.values():
        live[units] = True
    for members in np.split(order, bounds):
        members = members[live[members]]
        kept = int(keep[members].sum())
        target = min(members.size, max(1, -(-kept // multiple) * multiple))
        spare = members[~keep[members]]
        keep[np.sort(spare)[: max(0, target - kept)]] = True


def _plan_layer(
    layer: Layer, source_name: str, output: str, analysis: Analysis, spaces: Spaces,
    keep: Bools, needed: Mapping[str, Bools], carriers: Mapping[str, int],
) -> LayerPlan:  # fmt: skip
    source, result = analysis.channels[source_name], analysis.channels[output]
    kept_in, kept_out = keep[spaces.units[source_name]], keep[spaces.units[output]]
    carrier = None if absorbs_constants(layer) else carriers.get(source_name)
    demanded = _demanded(layer, output, analysis, needed)
    counted = np.flatnonzero(demanded & source.constant & (source.value != 0))
    silent = kept_in & (source.constant | ~demanded)
    folded: list[tuple[int, float]] = []
    carried: list[tuple[int, int, float]] = []
    if absorbs_constants(layer):
        folded = [(int(i), float(source.value[i])) for i in counted]
    elif counted.size:
        assert carrier is not None
        strength = float(source.value[carrier])
        carried = [(int(i), carrier, float(source.value[i]) / strength) for i in counted]
    constants = np.flatnonzero(kept_out & needed[output] & result.constant)
    return LayerPlan(
        layer=layer,
        widths=(result.constant.size, source.constant.size),
        outputs=tuple(np.flatnonzero(kept_out).tolist()),
        inputs=tuple(np.flatnonzero(kept_in).tolist()),
        empty_outputs=tuple(np.flatnonzero(kept_out & ~needed[output]).tolist()),
        constant_outputs=tuple((int(o), float(result.value[o])) for o in constants),
        silent_inputs=tuple(np.flatnonzero(silent).tolist()),
        folded_inputs=tuple(folded),
        carried_inputs=tuple(carried),
    )


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value
