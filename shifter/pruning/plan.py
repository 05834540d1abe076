"""Module 3, the prune planner: for the whole graph at once, what to keep and what makes up for the rest.

A unit (see :mod:`shifter.pruning.spaces`) may go if every layer that reads it either does not
need it or sees a constant there. Constants go on being counted:

- before a linear layer, or a convolution without padding, a constant folds into the bias;
- where the border makes a difference one *carrier* channel stands for all constants of its space
  (:mod:`shifter.pruning.carriers`);
- an operand of an add that is constant altogether becomes a constant of the graph, and the layers
  that computed it go.

The plan is plain data (:mod:`shifter.pruning.parts`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from shifter.pruning.analyse import Analysis, analyse
from shifter.pruning.carriers import Carriers, Wants, choose_carriers, find_wants, folds
from shifter.pruning.demand import Demands, find_demands, need_carriers
from shifter.pruning.graph import parse_model
from shifter.pruning.network import Arrange, Bools, Each, Ints, Join, LayerNode, Legality, Network, Stop
from shifter.pruning.parts import ConstantPlan, LayerPlan, ParameterPlan, PrunePlan, Rewrite
from shifter.pruning.read import read_network
from shifter.pruning.spaces import find_spaces, is_depthwise
from shifter.pruning.widths import (
    Kept,
    fill_up,
    find_alive,
    find_replaced,
    inputs_left,
    keep_carriers,
    keep_needed,
)
from shifter.values import Tensors

__all__ = ["LayerPlan", "ParameterPlan", "PrunePlan", "plan_network", "plan_round"]


def plan_round(
    architecture: bytes, tensors: Tensors, round_to: int = 8, *, legality: Legality = "onnx"
) -> PrunePlan:
    """Plans the exact reduction of one sparse checkpoint.

    Args:
        architecture: the weightless ONNX model.
        tensors: the checkpoint's tensors (float32 or float64).
        round_to: widths are rounded up to a multiple of this; odd widths are slow.
        legality: ``torch`` plans only what a torch module with the same code survives.

    Raises:
        CheckpointError: if the tensors do not fit the architecture, or are not finite.
        GraphError: if the architecture cannot be read.
    """
    network = read_network(parse_model(architecture), legality)
    return plan_network(network, analyse(network, tensors), round_to, legality=legality)


def plan_network(
    network: Network, analysis: Analysis, round_to: int = 8, *, legality: Legality = "onnx"
) -> PrunePlan:
    """:func:`plan_round` for a network that is already read and analysed."""
    if round_to < 1:
        raise ValueError(f"widths are rounded up to a multiple of at least 1, not {round_to}")
    spaces = find_spaces(network, analysis.layers)
    demands, _ = find_demands(network, analysis)
    kept = keep_needed(network, analysis, spaces, demands)
    wants = find_wants(network, analysis, demands)
    carriers = choose_carriers(analysis, spaces, wants, kept.units)
    keep_carriers(kept, carriers)
    needed = need_carriers(
        network, analysis, demands, [(want.source, channel) for want, channel in carriers.items()]
    )
    replaced = find_replaced(network, analysis, kept, needed, legality)
    fill_up(network, analysis.layers, kept, round_to, legality, replaced)
    planner = _Planner(network, analysis, demands, needed, kept, wants, carriers, replaced, legality)
    return planner.plan()


class _Planner:
    """Writes down, operator by operator, what has been decided."""

    def __init__(
        self, network: Network, analysis: Analysis, demands: Demands, needed: Mapping[str, Bools],
        kept: Kept, wants: Wants, carriers: Carriers, replaced: Mapping[str, int], legality: Legality,
    ) -> None:  # fmt: skip
        self.network, self.analysis, self.demands, self.needed = network, analysis, demands, needed
        self.kept, self.wants, self.carriers = kept, wants, carriers
        self.replaced, self.legality = replaced, legality
        self._numbers: dict[int, tuple[int, ...]] = {}
        self.alive = find_alive(network, kept, legality, replaced)

    def plan(self) -> PrunePlan:
        """All of it: of what is alive."""
        alive = [n for n in self.network.nodes if any(name in self.alive for name in n.outputs)]
        layers = [node for node in alive if isinstance(node, LayerNode)]
        left = {node.layer.name for node in layers}
        return PrunePlan(
            layers=tuple(self._layer(node) for node in layers),
            slices=tuple(
                ParameterPlan(p.name, p.axis, self._kept_of(node.output))
                for node in alive
                if isinstance(node, Each)
                for p in node.parameters
                if p.axis is not None
            ),
            rewrites=tuple(rewrite for node in alive for rewrite in self._rewrites(node)),
            constants=tuple(
                self._constant(n) for n in alive if isinstance(n, Join) and n.name in self.replaced
            ),
            removed=tuple(layer.name for layer in self.network.layers if layer.name not in left),
            untouched={n.name: n.reason for n in self.network.nodes if isinstance(n, Stop) and n.reason},
        )

    def _kept_of(self, name: str) -> tuple[int, ...]:
        """Kept channels of an activation; many have the same ones."""
        units = self.kept.spaces.units[name]
        if id(units) not in self._numbers:
            self._numbers[id(units)] = _numbers(self.kept.units[units])
        return self._numbers[id(units)]

    def _layer(self, node: LayerNode) -> LayerPlan:
        layer, facts = node.layer, self.analysis.layers[node.layer.name]
        result, needed = self.analysis.channels[node.output], self.needed[node.output]
        kept = self.kept.channels(node.output)
        empty, constant = kept & ~needed, kept & needed & result.constant
        units = self.kept.spaces.units[node.output]
        idle = np.flatnonzero(empty | constant)
        shared = {
            "layer": layer,
            "widths": (facts.out, facts.into),
            "outputs": self._kept_of(node.output),
            "empty_outputs": _numbers(empty),
            "constant_outputs": tuple((c, float(result.value[c])) for c in np.flatnonzero(constant).tolist()),
            "idle": tuple(zip(idle.tolist(), self.kept.reasons(units[idle]), strict=True)),
        }
        if not node.follows:
            return LayerPlan(inputs=tuple(range(facts.into)), groups=layer.groups, **shared)  # type: ignore[arg-type]
        source, demanded = self.analysis.channels[node.inputs[0]], self.demands[layer.name]
        kept_in = self.kept.channels(node.inputs[0])
        groups = layer.groups
        if groups > 1:
            groups = int(kept_in.reshape(groups, -1).any(axis=1).sum())
        if is_depthwise(facts):
            return LayerPlan(inputs=self._kept_of(node.inputs[0]), groups=groups, **shared)  # type: ignore[arg-type]
        folded = np.flatnonzero(demanded & folds(layer, source))
        carried: list[tuple[int, int, float]] = []
        for want, channels in self.wants[layer.name].items():
            carrier = self.carriers[want]
            ratios = (source.value[channels] / source.value[carrier]).tolist()
            carried += [(c, carrier, ratio) for c, ratio in zip(channels.tolist(), ratios, strict=True)]
        return LayerPlan(
            inputs=self._kept_of(node.inputs[0]),
            groups=groups,
            silent_inputs=_numbers(kept_in & (source.constant | ~demanded)),
            folded_inputs=tuple(zip(folded.tolist(), source.value[folded].tolist(), strict=True)),
            carried_inputs=tuple(sorted(carried)),
            **shared,  # type: ignore[arg-type]
        )

    def _rewrites(self, node: object) -> Iterator[Rewrite]:
        if isinstance(node, Each) and node.op == "Reshape":
            value = self.network.values[node.output]
            assert value.axis is not None
            yield Rewrite(node.name, "Reshape", (value.axis, int(self.kept.channels(node.output).sum())))
        if not isinstance(node, Arrange):
            return
        if node.op == "Concat":
            left = inputs_left(node, self.kept, self.legality, self.replaced)
            positions = tuple(i for i, name in enumerate(node.inputs) if name in left)
            if len(positions) < len(node.inputs):
                yield Rewrite(node.name, "Concat", positions)
        elif node.op == "Split":
            yield Rewrite(node.name, "Split", tuple(int(self.kept.channels(o).sum()) for o in node.outputs))
        elif node.op in ("Gather", "Slice"):
            yield Rewrite(node.name, node.op, tuple(self._picked(node).tolist()))
        elif node.op == "Pad":
            picked = self._picked(node)
            inside = np.flatnonzero(picked >= 0)
            yield Rewrite(node.name, "Pad", (int(inside[0]), int(picked.size - 1 - inside[-1])))

    def _picked(self, node: Arrange) -> Ints:
        """Which of the kept input channels the kept output channels are; -1 for zeros that are added."""
        ((which, channel),) = node.sources
        number = np.cumsum(self.kept.channels(node.inputs[0])) - 1
        stay = self.kept.channels(node.output)
        return np.asarray(np.where(which < 0, -1, number[channel])[stay])

    def _constant(self, node: Join) -> ConstantPlan:
        position = self.replaced[node.name]
        name = node.inputs[position]
        found, kept = self.analysis.channels[name], self.kept.channels(name)
        value = self.network.values[node.output]
        assert value.axis is not None
        values = np.where(self.needed[name], found.value, 0.0)[kept]
        return ConstantPlan(node.name, position, tuple(values.tolist()), len(value.shape) - value.axis - 1)


def _numbers(which: Bools) -> tuple[int, ...]:
    return tuple(np.flatnonzero(which).tolist())
