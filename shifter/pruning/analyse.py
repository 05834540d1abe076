"""Module 2, the sparsity analyser: what is known of every channel before any image is seen.

Forward through the network, each channel of each activation is a *constant*, the same number at
every position of every image (zero is the constant 0); a constant times a *border profile*, which an
average that counts its padding makes of it, the same for all channels of the activation; or
*unknown*. A channel whose filter is all zero is not zero but act(bias).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from shifter.errors import CheckpointError
from shifter.pruning.functions import COMBINE
from shifter.pruning.fuse import fuse_norms, not_finite, read_tensor, read_weight
from shifter.pruning.network import (
    Arrange,
    Bools,
    Each,
    Float64s,
    Ints,
    Join,
    Layer,
    LayerNode,
    Network,
    Parameter,
    Stop,
    Value,
)
from shifter.pruning.threads import side_by_side
from shifter.pruning.zeros import FEW, in_blocks, nonzero_columns, nonzero_rows
from shifter.values import Tensors


@dataclass(frozen=True)
class Channels:
    """What is known of the channels of one activation.

    Args:
        constant: shape (channels,); True where the channel is a constant, be it times a profile.
        value: shape (channels,); the constant, and 0 where there is none.
        profile: shape (channels,); 0 where the constant is the same everywhere, else the number of
            its border profile. A zero has none.
    """

    constant: Bools
    value: Float64s
    profile: Ints

    @classmethod
    def unknown(cls, width: int) -> Channels:
        return cls(np.zeros(width, np.bool_), np.zeros(width), np.zeros(width, np.int64))

    @classmethod
    def known(cls, constant: Bools, value: Float64s, profile: Ints | None = None) -> Channels:
        """With what is no constant, or no finite one, cleared."""
        constant = constant & np.isfinite(value)
        value = np.where(constant, value, 0.0)
        bent = np.zeros(value.size, np.int64) if profile is None else np.where(value != 0, profile, 0)
        return cls(constant, value, bent)

    @property
    def flat(self) -> Bools:
        """The same at every position."""
        return np.asarray(self.constant & (self.profile == 0))

    @property
    def is_zero(self) -> Bools:
        """Constants that contribute nothing."""
        return np.asarray(self.constant & (self.value == 0))

    @property
    def counted(self) -> Bools:
        """Constants that contribute something."""
        return np.asarray(self.constant & (self.value != 0))


class LayerFacts:
    """What the zeros of one layer say.

    Raises:
        CheckpointError: if the layer's tensors are missing, misshapen or not finite.
    """

    def __init__(self, layer: Layer, tensors: Tensors) -> None:
        weight = read_weight(layer, tensors)
        out, into = weight.shape[:2]
        if out % layer.groups:
            raise CheckpointError(
                f"{layer.weight!r} has {out} filters, which {layer.groups} groups do not divide"
            )
        self.factor, self.bias = fuse_norms(layer, tensors, out)
        self.weight = weight
        self.groups = layer.groups
        self.out, self.into = out, into * layer.groups
        self.filters, finite = nonzero_rows(weight.reshape(out, -1))
        if not finite:
            raise not_finite(layer.weight)
        if self.factor is not None:
            self.filters &= self.factor != 0

    @cached_property
    def _in_groups(self) -> Bools:
        """Which weights are not zero: (groups, out, in), both counted within a group."""
        found = (self.weight != 0).reshape(*self.weight.shape[:2], -1).any(axis=2)
        each = self.out // self.groups
        return np.asarray((found & self.filters[:, None]).reshape(self.groups, each, -1))

    def reads_any(self, inputs: Bools) -> Bools:
        """Output channels, shape (out,), that have a non-zero weight for any of ``inputs`` (in,)."""
        found = self.filters.copy()
        if inputs.all():
            return found
        if self.groups > 1:
            live = self._in_groups & inputs.reshape(self.groups, 1, -1)
            return np.asarray(live.any(axis=2).reshape(-1))
        columns, rows = np.flatnonzero(inputs), np.flatnonzero(found)
        found[:] = False
        for some in (columns[:FEW], columns[FEW:]):  # who reads one of the first few is settled
            if some.size and rows.size:
                read = self.weight[np.ix_(rows, some)] != 0
                reads = read.reshape(rows.size, -1).any(axis=1)
                found[rows[reads]] = True
                rows = rows[~reads]
        return found

    def read_by(self, outputs: Bools) -> Bools:
        """Input channels, shape (in,), that any of ``outputs`` (out,) has a non-zero weight for."""
        if self.groups > 1:
            live = self._in_groups & outputs.reshape(self.groups, -1, 1)
            return np.asarray(live.any(axis=1)).reshape(-1)
        rows = np.flatnonzero(outputs & self.filters)
        found = nonzero_columns(self.weight.reshape(self.out, -1), rows)
        return np.asarray(found.reshape(self.into, -1).any(axis=1))

    def contribution(self, inputs: Ints, values: Float64s, outputs: Bools) -> Float64s:
        """What constant ``inputs`` add to each of ``outputs`` where no border interferes: (out,)."""
        given = (self.weight, self.factor, self.groups)
        return contribution(*given, np.flatnonzero(outputs), inputs, values)


def contribution(
    weight: NDArray[np.generic], factor: Float64s | None, groups: int,
    outputs: Ints, inputs: Ints, values: Float64s,
) -> Float64s:  # fmt: skip
    """What constant ``inputs`` of ``values`` add to ``outputs`` of a layer, where no border interferes.

    Returns:
        Shape (out,), in float64; zero for channels that are none of ``outputs``.
    """
    out, into = weight.shape[0], weight.shape[1] * groups
    total = np.zeros(out)
    for group, member, chosen in by_group(inputs, groups, into):
        value = np.repeat(values[chosen], math.prod(weight.shape[2:]))
        for rows in in_blocks(outputs[outputs // (out // groups) == group], value.size):
            read = np.take(weight[rows], member, axis=1).reshape(rows.size, -1)
            total[rows] = np.vecdot(read.astype(np.float64), value)
    return total if factor is None else total * factor


def by_group(inputs: Ints, groups: int, into: int) -> list[tuple[int, Ints, Ints]]:
    """Input channels sorted into groups: (group, their number within it, their place in ``inputs``)."""
    size = into // groups
    group, member = np.divmod(inputs, size)
    return [(int(g), member[group == g], np.flatnonzero(group == g)) for g in np.unique(group)]


@dataclass(frozen=True)
class Analysis:
    """Facts of every layer, by its name, and of every activation's channels, by its name."""

    layers: Mapping[str, LayerFacts]
    channels: Mapping[str, Channels]


def analyse(network: Network, tensors: Tensors, threads: int | None = None) -> Analysis:
    """Finds every channel that is known to be constant.

    Args:
        threads: that look at weights side by side; as many as there are cores unless said.

    Raises:
        CheckpointError: if a layer's tensors are missing, misshapen or not finite.
    """
    given = list(network.layers)
    found = side_by_side(lambda layer: LayerFacts(layer, tensors), given, threads)
    layers = {layer.name: facts for layer, facts in zip(given, found, strict=True)}
    forward = _Forward(network, layers, tensors)
    for name in network.inputs:
        forward.channels[name] = Channels.unknown(network.values[name].width)
    for node in network.nodes:
        forward.through(node)
    return Analysis(layers, forward.channels)


class _Forward:
    def __init__(self, network: Network, layers: Mapping[str, LayerFacts], tensors: Tensors) -> None:
        self.values: Mapping[str, Value] = network.values
        self.layers = layers
        self.tensors = tensors
        self.channels: dict[str, Channels] = {}
        self._profiles: dict[tuple[str, int], int] = {}

    def through(self, node: object) -> None:
        """Writes what is known of a node's outputs."""
        match node:
            case LayerNode():
                self.channels[node.output] = self._layer(node)
            case Each():
                self.channels[node.output] = self._each(node)
            case Join():
                left, right = (self.channels[name] for name in node.inputs)
                self.channels[node.output] = join(node.op, left, right)
            case Arrange():
                for name, (which, channel) in zip(node.outputs, node.sources, strict=True):
                    self.channels[name] = self._arrange(node, which, channel)
            case Stop():
                for name in node.outputs:
                    self.channels[name] = Channels.unknown(self.values[name].width)

    def _layer(self, node: LayerNode) -> Channels:
        """An output channel is constant if it reads constants only, and no border makes them vary."""
        facts, layer = self.layers[node.layer.name], node.layer
        width = self.values[node.output].width
        if facts.out != width:
            raise CheckpointError(
                f"{layer.weight!r} writes {facts.out} channels, but the architecture has {width}"
            )
        if not node.follows:
            return Channels.known(~facts.reads_any(np.ones(facts.into, np.bool_)), facts.bias)
        source = self.channels[node.inputs[0]]
        if facts.into != source.constant.size:
            raise CheckpointError(
                f"{layer.weight!r} reads {facts.into} channels, "
                f"but the architecture gives it {source.constant.size}"
            )
        varying = ~source.constant | ~source.flat
        if layer.padded:
            varying = varying | (source.value != 0)
        value, constant = facts.bias, ~facts.reads_any(varying)
        adding, counted = constant & facts.filters, np.flatnonzero(source.counted & ~varying)
        if counted.size and adding.any():
            value = value + facts.contribution(counted, source.value[counted], adding)
        return Channels.known(constant, value)

    def _each(self, node: Each) -> Channels:
        source = self.channels[node.inputs[0]]
        given = [self._parameter(p, source.constant.size) for p in node.parameters]
        with np.errstate(all="ignore"):  # of channels that are no constants
            value = node.function(source.value, given)
        nonzero = source.value != 0
        profile = source.profile
        if node.border == "scales":
            profile = self._bent(node.name, profile, nonzero)
        elif node.linear and profile.any():
            profile = self._bent(node.name, profile, profile != 0)
        constant = source.constant if node.linear else source.flat
        if node.scales:
            constant = constant | (given[0] == 0)
        return Channels.known(constant, value, profile if node.linear else None)

    def _parameter(self, parameter: Parameter, width: int) -> Float64s:
        array = read_tensor(parameter.name, self.tensors)
        if array.size != (1 if parameter.axis is None else width):
            raise CheckpointError(
                f"{parameter.name!r} has shape {array.shape}, but its activation has {width} channels"
            )
        return np.array(np.broadcast_to(array.astype(np.float64).reshape(-1), width))

    def _bent(self, name: str, before: Ints, where: Bools) -> Ints:
        """The profiles after an operator: those of the same profile before have the same one again."""
        after = before.copy()
        for old in np.unique(before[where]).tolist():
            number = self._profiles.setdefault((name, old), len(self._profiles) + 1)
            after[where & (before == old)] = number
        return after

    def _arrange(self, node: Arrange, which: Ints, channel: Ints) -> Channels:
        sources = [self.channels[name] for name in node.inputs]
        starts = np.cumsum([0, *(s.constant.size for s in sources)])
        # One more, behind them all: what padding adds is the constant zero.
        constant = np.concatenate([*(s.constant for s in sources), [True]])
        value = np.concatenate([*(s.value for s in sources), [0.0]])
        profile = np.concatenate([*(s.profile for s in sources), [0]])
        place = np.where(which < 0, starts[-1], starts[which] + channel)
        found = Channels(constant[place], value[place], profile[place])
        return Channels.known(found.flat, found.value) if node.flattens else found


def join(op: str, left: Channels, right: Channels) -> Channels:
    """What is known of two activations combined by ``op``, channel by channel."""
    with np.errstate(all="ignore"):
        value = COMBINE[op](left.value, right.value)
    zeros = left.is_zero, right.is_zero
    if op == "Mul":
        one_is_flat = left.flat | right.flat
        constant = (left.constant & right.constant & one_is_flat) | zeros[0] | zeros[1]
        return Channels.known(constant, value, np.maximum(left.profile, right.profile))
    alike = (left.profile == right.profile) | zeros[0] | zeros[1]
    if op in ("Add", "Sub"):
        return Channels.known(
            left.constant & right.constant & alike, value, np.maximum(left.profile, right.profile)
        )
    return Channels.known(left.flat & right.flat, value)
