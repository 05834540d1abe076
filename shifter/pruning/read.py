"""Reads an ONNX graph as a :class:`~shifter.pruning.network.Network`: one reader per operator.

A reader says what its operator does to channels, or raises
:class:`~shifter.pruning.reader.UnfollowedError` with the reason why that cannot be said; the region then
stops there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

import onnx_ir as ir

from shifter.pruning.functions import COMBINE, FUNCTIONS, OF_ONE
from shifter.pruning.fuse import fuse_followers
from shifter.pruning.graph import name_of, shape_of, sizes_of
from shifter.pruning.network import LayerNode, Legality, Network, Node, Value
from shifter.pruning.read_arrange import (
    concat,
    flatten,
    gather,
    pad,
    reshape,
    slice,
    split,
    squeeze,
    transpose,
    unsqueeze,
)
from shifter.pruning.read_each import (
    average_pool,
    binary,
    cast,
    function,
    global_pool,
    identity,
    max_pool,
    of_one,
    prelu,
    reduce_mean,
)
from shifter.pruning.read_layers import layer, norm
from shifter.pruning.reader import Reader


def read_network(model: ir.Model, legality: Legality = "onnx") -> Network:
    """What every operator does to channels; batch norms join the convolution before them.

    Args:
        legality: ``torch`` follows only what a torch module's own code survives.
    """
    reader = Reader(READERS, legality)
    for value in model.graph.inputs:
        shape = shape_of(value)
        sizes = [size or f"{name_of(value)}.{axis}" for axis, size in enumerate(sizes_of(value))]
        reader.values[name_of(value)] = Value(tuple(sizes), 1 if len(shape) > 1 and shape[1] else None)
    for node in model.graph:
        reader.read(node)
    network = fuse_followers(
        Network(
            inputs=tuple(name_of(v) for v in model.graph.inputs),
            # An output that no image reaches has no channels, and stays.
            outputs=tuple(name_of(v) for v in model.graph.outputs if v.name in reader.values),
            nodes=tuple(reader.nodes),
            values=reader.values,
        )
    )
    taken = model.graph.initializers.keys()
    return replace(network, nodes=tuple(_with_bias_named(node, taken) for node in network.nodes))


def _with_bias_named(node: Node, taken: Collection[str]) -> Node:
    """A bias that is made must not take the name of a tensor that something else reads."""
    if not isinstance(node, LayerNode) or node.layer.bias == node.layer.reduced_bias:
        return node
    if node.layer.reduced_bias not in taken:
        return node
    return replace(node, layer=replace(node.layer, made_bias=f"{node.layer.weight}.bias"))


READERS: dict[str, Callable[[Reader, ir.Node], Node]] = {
    **dict.fromkeys(FUNCTIONS, function),
    **dict.fromkeys(COMBINE, binary),
    **dict.fromkeys(OF_ONE, of_one),
    **dict.fromkeys(("Conv", "Gemm", "MatMul"), layer),
    **dict.fromkeys(("Identity", "Dropout"), identity),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), global_pool),
    "AveragePool": average_pool,
    "BatchNormalization": norm,
    "Cast": cast,
    "Concat": concat,
    "Flatten": flatten,
    "Gather": gather,
    "MaxPool": max_pool,
    "PRelu": prelu,
    "Pad": pad,
    "ReduceMean": reduce_mean,
    "Reshape": reshape,
    "Slice": slice,
    "Split": split,
    "Squeeze": squeeze,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
}
"""By operator."""
