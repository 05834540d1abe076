"""Module 1, the model pre-processor: batch normalisation folded into the layer before it.

A layer's fused weight is its weight times one factor per output channel: it is never made as a
whole, since most of it may go. A weight that was zero stays exactly zero.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shifter.errors import CheckpointError
from shifter.pruning.network import Each, Fixed, Float64s, Layer, LayerNode, Network, Node, Norm
from shifter.pruning.zeros import is_finite
from shifter.values import Tensors


def _all_inputs(node: Node) -> tuple[str, ...]:
    return node.inputs


def fuse_followers(
    network: Network,
    reads: Callable[[Node], tuple[str, ...]] = _all_inputs,
    idle: Collection[str] = (),
) -> Network:
    """Norms, and biases of matrix products, that alone read a layer become part of it.

    Args:
        reads: what an operator reads; one that is dead reads nothing.
        idle: names of operators that do nothing, and may stand between.

    Returns:
        ``network`` itself if there are none.
    """
    nodes: list[Node | None] = list(network.nodes)
    made = {name: place for place, node in enumerate(network.nodes) for name in node.outputs}
    count = Counter(network.outputs)
    for node in network.nodes:
        count.update(reads(node))
    instead: dict[str, str] = {}
    skipped = list(network.skipped)
    for place, node in enumerate(network.nodes):
        if not isinstance(node, Each) or node.fusible is None or not count[node.output]:
            continue
        name, between = node.inputs[0], list[Fixed]()
        while name in made and count[name] == 1:
            before = nodes[made[name]]
            if not (isinstance(before, Fixed) and before.name in idle):
                break
            between.append(before)
            name = before.inputs[0]
        layer = nodes[made[name]] if name in made and count[name] == 1 else None
        fused = _with_follower(layer, node) if isinstance(layer, LayerNode) else None
        if fused is None:
            continue
        nodes[made[name]], nodes[place] = fused, None
        made[node.output] = made[name]
        instead[name] = node.output
        for passed in between:
            nodes[made[passed.output]] = None
            instead[passed.output] = node.output
            skipped.append((passed.name, 1 - passed.position))
    if not instead:
        return network

    def settled(name: str) -> str:
        """For readers that are dead: whatever they read is there, and is of the same channels."""
        while name in instead:
            name = instead[name]
        return name

    left = [node for node in nodes if node is not None]
    return replace(
        network,
        nodes=tuple(replace(node, inputs=tuple(map(settled, node.inputs))) for node in left),
        skipped=tuple(skipped),
    )


def _with_follower(node: LayerNode, follower: Each) -> LayerNode | None:
    """The layer and what follows it as one, if it can take that over."""
    layer, more = node.layer, follower.fusible
    if isinstance(more, Norm):
        # A MatMul has no bias input that could take the norm's shift: there the norm stays an operator.
        if layer.op == "MatMul":
            return None
        layer = replace(layer, norms=(*layer.norms, more))
    elif layer.op != "MatMul" or layer.bias is not None:
        return None
    else:
        layer = replace(layer, bias=more)
    return replace(node, layer=layer, outputs=follower.outputs)


def read_weight(layer: Layer, tensors: Tensors) -> NDArray[Any]:
    """The layer's weight as stored, but always with (out, in / groups, …): a view, not looked at.

    Raises:
        CheckpointError: if it is missing or misshapen.
    """
    weight = _stored(layer.weight, tensors)
    if weight.ndim != layer.rank:
        raise CheckpointError(f"{layer.weight!r} has shape {weight.shape}, which is no {layer.op} weight")
    return weight.T if layer.transposed else weight


def fuse_norms(layer: Layer, tensors: Tensors, width: int) -> tuple[Float64s | None, Float64s]:
    """What the batch normalisations (if any) make of the layer, in float64.

    Args:
        width: output channels of the layer.

    Returns:
        The factor of each output channel's weights, shape (out,), or None for 1; and the bias, shape
        (out,).

    Raises:
        CheckpointError: if a tensor is missing, misshapen or not finite.
    """
    bias = np.zeros(width) if layer.bias is None else _read(layer.bias, tensors, width)
    whole: Float64s | None = None
    for norm in layer.norms:
        scale, shift, mean, var = (
            _read(name, tensors, width) for name in (norm.scale, norm.bias, norm.mean, norm.var)
        )
        if (var + norm.epsilon <= 0).any():
            raise CheckpointError(f"{norm.var!r} holds a negative variance: {var.min()}")
        factor = scale / np.sqrt(var + norm.epsilon)
        bias = (bias - mean) * factor + shift
        whole = factor if whole is None else whole * factor
    return whole, bias


def read_tensor(name: str, tensors: Tensors) -> NDArray[Any]:
    """One tensor as stored.

    Raises:
        CheckpointError: if it is missing or not finite.
    """
    array = _stored(name, tensors)
    if not is_finite(array):
        raise not_finite(name)
    return array


def not_finite(name: str) -> CheckpointError:
    """What to raise of a tensor that holds no numbers."""
    return CheckpointError(f"{name!r} holds NaN or infinite values: it cannot be reduced exactly")


def _stored(name: str, tensors: Tensors) -> NDArray[Any]:
    if name not in tensors:
        raise CheckpointError(f"the checkpoint has no tensor {name!r}, which the architecture needs")
    array = np.asarray(tensors[name])
    return array if array.dtype.kind == "f" else array.astype(np.float64)


def _read(name: str, tensors: Tensors, width: int) -> Float64s:
    array = read_tensor(name, tensors)
    if array.shape != (width,):
        raise CheckpointError(f"{name!r} has shape {array.shape}, not ({width},) as its layer's weight asks")
    return array.astype(np.float64)
