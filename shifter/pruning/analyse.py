"""Module 2, the sparsity analyser: what is known of every channel before any image is seen.

Forward through the network, each channel of each activation is either a *constant*, the same
number at every position of every image (zero is the constant 0), or *unknown*. A channel whose
filter is all zero is not zero but act(bias).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shifter.errors import CheckpointError
from shifter.pruning.fuse import Float64s, fuse_layer
from shifter.pruning.graph import Layer, Network, Node
from shifter.values import Tensors

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Channels:
    """What is known of the channels (axis 1) of one activation.

    Args:
        constant: shape (channels,); True where the channel is a constant.
        value: shape (channels,); the constant, and 0 where there is none.
    """

    constant: Bools
    value: Float64s

    @classmethod
    def unknown(cls, width: int) -> Channels:
        return cls(np.zeros(width, np.bool_), np.zeros(width))


@dataclass(frozen=True)
class LayerFacts:
    """What the zeros of one layer say.

    Args:
        reads: shape (out, in); True where the output channel has a non-zero weight for the input
            channel.
        summed: shape (out, in); the weights summed over the kernel.
        bias: shape (out,), after fusion.
    """

    reads: Bools
    summed: Float64s
    bias: Float64s


@dataclass(frozen=True)
class Analysis:
    """Facts of every layer, by its name, and of every activation's channels, by its name."""

    layers: Mapping[str, LayerFacts]
    channels: Mapping[str, Channels]


def analyse(network: Network, tensors: Tensors) -> Analysis:
    """Finds every channel that is known to be constant.

    Raises:
        CheckpointError: if a layer's tensors are missing, misshapen or not finite.
    """
    layers: dict[str, LayerFacts] = {}
    channels: dict[str, Channels] = {}
    for name in network.inputs:
        channels[name] = Channels.unknown(_width(network, name))
    for node in network.nodes:
        if node.layer is not None:
            facts = layer_facts(node.layer, tensors)
            source = channels[node.inputs[0]]
            if not source.constant.size:  # behind an operator whose output's shape is not known
                source = channels[node.inputs[0]] = Channels.unknown(facts.reads.shape[1])
            if facts.reads.shape[1] != source.constant.size:
                raise CheckpointError(
                    f"{node.layer.weight!r} reads {facts.reads.shape[1]} channels, "
                    f"but the architecture gives it {source.constant.size}"
                )
            layers[node.layer.name] = facts
            channels[node.output] = _through_layer(node.layer, facts, source)
        elif node.trouble is not None:
            channels[node.output] = Channels.unknown(_width(network, node.output))
        else:
            channels[node.output] = _through(node, [channels[name] for name in node.inputs], network)
    return Analysis(layers, channels)


def layer_facts(layer: Layer, tensors: Tensors) -> LayerFacts:
    """Facts of one layer, from its own tensors alone."""
    weight, bias = fuse_layer(layer, tensors)
    kernel = tuple(range(2, weight.ndim))
    return LayerFacts(nonzero_kernels(weight), weight.sum(axis=kernel), bias)


def nonzero_kernels(weight: Float64s) -> Bools:
    """Which kernels hold any non-zero weight, element by element: a sum may cancel."""
    found: Bools = (weight != 0).any(axis=tuple(range(2, weight.ndim)))
    return found


def _through_layer(layer: Layer, facts: LayerFacts, source: Channels) -> Channels:
    """An output channel is constant if it reads constants only, and no border makes them vary."""
    varying = ~source.constant
    if layer.padded:
        varying = varying | (source.value != 0)
    constant: Bools = ~np.asarray((facts.reads & varying).any(axis=1))
    value = facts.bias + (facts.summed * (facts.reads & (source.value != 0))) @ source.value
    return Channels(constant, np.where(constant, value, 0.0))


def _through(node: Node, sources: list[Channels], network: Network) -> Channels:
    source = sources[0]
    if node.op in _FUNCTIONS:
        value = _FUNCTIONS[node.op](source.value, node)
        return Channels(source.constant, np.where(source.constant, value, 0.0))
    if node.op == "Add":
        constant = source.constant & sources[1].constant
        return Channels(constant, np.where(constant, source.value + sources[1].value, 0.0))
    if node.op == "AveragePool" and _counts_padding(node):
        # A padded average may count its padding: a constant is then smaller at the border.
        constant = source.constant & (source.value == 0)
        return Channels(constant, np.zeros_like(source.value))
    if node.op == "Flatten":
        per_channel = _width(network, node.output) // source.constant.size
        return Channels(np.repeat(source.constant, per_channel), np.repeat(source.value, per_channel))
    assert node.op in ("MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean"), node.op
    return source


def _counts_padding(node: Node) -> bool:
    get = node.attributes.get
    automatic = get("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    return automatic or any(get("pads", ())) or bool(get("ceil_mode", 0))


def _width(network: Network, name: str) -> int:
    """Channels of an activation; 0 where the graph does not say (nothing is followed there)."""
    shape = network.shapes.get(name, ())
    return (shape[1] or 0) if len(shape) > 1 else 0


def _float32(default: float) -> float:
    """ONNX attributes, their defaults included, are float32."""
    return float(np.float32(default))


def _clip(value: Float64s, node: Node) -> Float64s:
    low, high = (node.attributes.get(bound) for bound in ("low", "high"))
    clipped: Float64s = np.clip(value, -np.inf if low is None else low, np.inf if high is None else high)
    return clipped


def _hard_sigmoid(value: Float64s, node: Node) -> Float64s:
    alpha, beta = node.attributes.get("alpha", _float32(0.2)), node.attributes.get("beta", 0.5)
    clipped: Float64s = np.clip(alpha * value + beta, 0.0, 1.0)
    return clipped


_FUNCTIONS: dict[str, Callable[[Float64s, Node], Float64s]] = {
    "Relu": lambda value, node: np.maximum(value, 0.0),
    "LeakyRelu": lambda value, node: np.where(
        value < 0, node.attributes.get("alpha", _float32(0.01)) * value, value
    ),
    "Sigmoid": lambda value, node: 1.0 / (1.0 + np.exp(-value)),
    "Tanh": lambda value, node: np.tanh(value),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda value, node: value * np.clip(_float32(1 / 6) * value + 0.5, 0.0, 1.0),
    "Clip": _clip,
    "Identity": lambda value, node: value,
}
