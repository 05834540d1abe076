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

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from functools import cached_property

import numpy as np

from shifter.pruning.analyse import Analysis, analyse
from shifter.pruning.carriers import choose_carriers, find_wants, folds
from shifter.pruning.demand import find_demands, need_carriers
from shifter.pruning.fuse import fuse_followers
from shifter.pruning.graph import parse_model
from shifter.pruning.network import (
    Arrange,
    Bools,
    Each,
    Fixed,
    Float64s,
    Ints,
    LayerNode,
    Legality,
    Network,
    Node,
    Stop,
)
from shifter.pruning.parts import ConstantPlan, LayerPlan, ParameterPlan, PrunePlan, Rewrite
from shifter.pruning.read import read_network
from shifter.pruning.reasons import Reasons
from shifter.pruning.settle import constant_of, does_nothing, find_fixed, find_unsound, fix
from shifter.pruning.spaces import find_spaces, is_depthwise
from shifter.pruning.widths import fill_up, find_alive, inputs_left, keep_carriers, keep_needed
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
    current, never = network, frozenset[str]()
    while True:
        planner = _Planner(current, analysis, legality)
        if wrong := planner.find_unsound():
            current, never = network, never | wrong
        elif fixed := planner.find_fixed(never):
            current = fix(current, fixed)
        else:
            planner.fill_up(round_to)
            fused = planner.fuse()
            if fused is current:
                return planner.plan()
            current = fused


class _Planner:
    """Decides for one form of a network, and writes it down operator by operator."""

    def __init__(self, network: Network, analysis: Analysis, legality: Legality) -> None:
        self.network, self.analysis, self.legality = network, analysis, legality
        spaces = find_spaces(network, analysis.layers)
        self.demands, _ = find_demands(network, analysis)
        self.kept = keep_needed(network, analysis, spaces, self.demands)
        self.wants = find_wants(network, analysis, self.demands)
        self.carriers = choose_carriers(analysis, spaces, self.wants, self.kept.units)
        keep_carriers(self.kept, self.carriers, self.wants)
        self.needed = need_carriers(
            network, analysis, self.demands, [(want.source, c) for want, c in self.carriers.items()]
        )
        self.alive: Mapping[str, None] = {}
        self._numbers: dict[int, tuple[int, ...]] = {}

    @cached_property
    def _reasons(self) -> Reasons:
        return Reasons(self.network, self.analysis, self.kept.spaces, self.needed)

    def find_unsound(self) -> frozenset[str]:
        return find_unsound(self.network, self.analysis, self.kept, self.needed)

    def find_fixed(self, never: Collection[str]) -> dict[str, int]:
        if self.legality == "torch":
            return {}
        return find_fixed(self.network, self.analysis, self.kept, self.needed, never)

    def fill_up(self, round_to: int) -> None:
        """The last decision: what stays, and what is alive, is then known."""
        fill_up(self.network, self.analysis.layers, self.kept, round_to, self.legality)
        self.alive = find_alive(self.network, self.kept, self.legality)

    def fuse(self) -> Network:
        """With what is left the only reader of a layer in that layer."""
        if self.legality == "torch":
            return self.network

        def reads(node: Node) -> tuple[str, ...]:
            is_alive = not node.outputs or any(name in self.alive for name in node.outputs)
            return inputs_left(node, self.kept, self.legality) if is_alive else ()

        idle = frozenset(
            node.name for node in self.network.nodes
            if isinstance(node, Fixed) and does_nothing(node, self._constant_of(node))
        )  # fmt: skip
        return fuse_followers(self.network, reads, idle)

    def _constant_of(self, node: Fixed) -> Float64s:
        return constant_of(node, self.analysis, self.kept, self.needed)

    def plan(self) -> PrunePlan:
        """All of it: of what is alive."""
        alive = [n for n in self.network.nodes if any(name in self.alive for name in n.outputs)]
        skipped = (Rewrite(name, "Skip", (position,)) for name, position in self.network.skipped)
        layers = [node for node in alive if isinstance(node, LayerNode)]
        left = {node.layer.name for node in layers}
        plan = PrunePlan(
            layers=tuple(self._layer(node) for node in layers),
            slices=tuple(
                ParameterPlan(p.name, p.axis, self._kept_of(node.output))
                for node in alive
                if isinstance(node, Each)
                for p in node.parameters
                if p.axis is not None
            ),
            rewrites=(*(rewrite for node in alive for rewrite in self._rewrites(node)), *skipped),
            constants=tuple(
                self._constant(n) for n in alive if isinstance(n, Fixed) and not self._is_skipped(n)
            ),
            removed=tuple(layer.name for layer in self.network.layers if layer.name not in left),
            untouched={n.name: n.reason for n in self.network.nodes if isinstance(n, Stop) and n.reason},
        )
        if plan.constants or any(map(_may_read_tensors, alive)):
            return plan
        # No engine runs a network without a tensor: zero is added to the answer.
        answers = (n.name for n in alive if self.network.outputs[0] in n.outputs)
        return replace(plan, constants=tuple(ConstantPlan(name, None, (0.0,), 0) for name in answers))

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
        why = self._reasons.told(self.kept.reasons(units[idle]), units[idle]) if idle.size else ()
        shared = {
            "layer": layer,
            "widths": (facts.out, facts.into),
            "outputs": self._kept_of(node.output),
            "empty_outputs": _numbers(empty),
            "constant_outputs": tuple((c, float(result.value[c])) for c in np.flatnonzero(constant).tolist()),
            "idle": tuple(zip(idle.tolist(), why, strict=True)),
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
        if isinstance(node, Fixed) and self._is_skipped(node):
            yield Rewrite(node.name, "Skip", (1 - node.position,))
        if not isinstance(node, Arrange):
            return
        if node.op == "Concat":
            left = inputs_left(node, self.kept, self.legality)
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

    def _is_skipped(self, node: Fixed) -> bool:
        return node.output not in self.network.outputs and does_nothing(node, self._constant_of(node))

    def _constant(self, node: Fixed) -> ConstantPlan:
        value = self.network.values[node.output]
        assert value.axis is not None
        values = tuple(self._constant_of(node).tolist())
        return ConstantPlan(node.name, node.position, values, len(value.shape) - value.axis - 1)


def _may_read_tensors(node: Node) -> bool:
    return isinstance(node, LayerNode | Stop) or bool(isinstance(node, Each) and node.parameters)


def _numbers(which: Bools) -> tuple[int, ...]:
    return tuple(np.flatnonzero(which).tolist())
