"""A network as phase 2 sees it: operators that do one of five things to channels.

Every activation has at most one *channel axis* that is followed. What an operator does to the
channels is all that the analyser and the planner need to know of it:

- :class:`LayerNode` mixes them: a convolution or linear layer, which owns weights;
- :class:`Each` does the same to every position of one channel: an activation, a pooling, a norm of
  its own, a scale per channel;
- :class:`Join` combines channels of the same number: a residual add, a gate
  (:class:`Fixed`, once an operand has turned out to be the same for every image);
- :class:`Arrange` moves them: concatenation, split, slice, shuffle, flatten, padding with channels;
- :class:`Stop` is not understood: what goes in and what comes out stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Float64s = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Legality = Literal["onnx", "torch"]
"""Which rewritings are allowed: those of a graph, or those that a torch module's own code survives."""

PerChannel = Callable[[Float64s, Sequence[Float64s]], Float64s]
"""What becomes of constants: (their values, the parameters' values there) to the new values."""


@dataclass(frozen=True)
class Norm:
    """A batch normalisation that follows a convolution: names of its tensors, and its epsilon."""

    scale: str
    bias: str
    mean: str
    var: str
    epsilon: float


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer, with the batch normalisations that follow it.

    Args:
        name: the weight's name without ``.weight``.
        op: ``Conv`` (weight: out, in / groups, height, width), ``Gemm`` or ``MatMul`` (weight: out,
            in; a MatMul may be followed by the Add of its bias).
        padded: True if the border of its input is padded, so that a constant input channel gives
            no constant output channel.
        transposed: True if the weight is stored as (in, out).
        rank: axes of the weight.
        made_bias: name of the bias that the reduced layer gets, where the usual one is taken.
    """

    name: str
    op: str
    weight: str
    bias: str | None
    norms: tuple[Norm, ...]
    padded: bool
    groups: int = 1
    transposed: bool = False
    rank: int = 4
    made_bias: str | None = None

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of every checkpoint tensor that the layer reads."""
        names = [self.weight]
        if self.bias is not None:
            names.append(self.bias)
        for norm in self.norms:
            names += [norm.scale, norm.bias, norm.mean, norm.var]
        return tuple(names)

    @property
    def reduced_weight(self) -> str:
        """Name of the weight after fusion and reduction."""
        return self.weight

    @property
    def reduced_bias(self) -> str:
        """Name of the bias after fusion and reduction, if the reduced layer has one."""
        return self.made_bias or f"{self.name}.bias"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Layer:
        fields = dict(data)
        fields["norms"] = tuple(Norm(**norm) for norm in fields["norms"])
        return cls(**fields)


Size = int | str | None
"""Of an axis: a number; a formula of sizes that are not fixed, equal where the formula is; or unknown."""


@dataclass(frozen=True)
class Value:
    """An activation.

    Args:
        sizes: of its axes. axis: where its channels are; None where they are not followed.
    """

    sizes: tuple[Size, ...]
    axis: int | None

    @property
    def shape(self) -> tuple[int | None, ...]:
        """None where a size is not fixed (the batch)."""
        return tuple(size if isinstance(size, int) else None for size in self.sizes)

    @property
    def width(self) -> int:
        """Channels; 0 where they are not followed."""
        return 0 if self.axis is None else (self.shape[self.axis] or 0)

    def is_as_large_as(self, other: Value) -> bool:
        """True if all sizes are known to be the same, whatever they are."""
        return None not in self.sizes and self.sizes == other.sizes


@dataclass(frozen=True)
class Node:
    """One operator: ``inputs`` are activations only, ``outputs`` those that are read."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def output(self) -> str:
        """Its only output."""
        (only,) = self.outputs
        return only


@dataclass(frozen=True)
class LayerNode(Node):
    """Reads channels of ``inputs[0]`` with weights, and writes new ones.

    ``follows`` is False where the channels of its input are not followed: then all of it is read.
    """

    layer: Layer
    follows: bool = True


@dataclass(frozen=True)
class Parameter:
    """A checkpoint tensor with one number per channel along its ``axis``, or one number for all (None)."""

    name: str
    axis: int | None


@dataclass(frozen=True)
class Each(Node):
    """The same to every channel by itself.

    Args:
        function: what it does to a constant channel.
        parameters: tensors that are sliced as the channels are.
        border: what it does to a constant channel near the border: ``keeps`` it, or ``scales`` it
            (an average that counts its padding) by a profile that is the same for all channels.
        linear: True if c times a channel gives c times the result.
        scales: True if the first parameter multiplies, so that its zeros make constants of any channel.
        fusible: what a layer right before it can take over: a batch norm, or the name of a bias.
    """

    function: PerChannel
    parameters: tuple[Parameter, ...] = ()
    border: Literal["keeps", "scales"] = "keeps"
    linear: bool = False
    scales: bool = False
    fusible: Norm | str | None = None


@dataclass(frozen=True)
class Join(Node):
    """``op`` of two activations, channel by channel; the sizes of other axes may be broadcast."""


@dataclass(frozen=True)
class Fixed(Node):
    """A :class:`Join` of which one operand is the same for every image: a constant of the graph.

    Args:
        position: of that operand among the inputs that there were; ``inputs`` is the other one.
        operand: its name.
    """

    position: int
    operand: str


@dataclass(frozen=True)
class Arrange(Node):
    """Moves channels.

    Args:
        sources: per output, shape (2, channels): the input's number and the channel in it; the
            input's number is -1 where the channel is a new one that holds zeros.
        flattens: True if positions become channels, each channel being as many of them.
    """

    sources: tuple[Ints, ...]
    flattens: bool = False


@dataclass(frozen=True)
class Stop(Node):
    """Channels cannot be followed through it: ``reason`` says why, and is empty behind another one."""

    reason: str


@dataclass(frozen=True)
class Network:
    """The operators of a network in an order in which they can run, batch norm already folded in.

    Args:
        skipped: operators that do nothing any more: (output, position of the input that passes).
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    values: Mapping[str, Value]
    skipped: tuple[tuple[str, int], ...] = ()

    @property
    def layers(self) -> Iterator[Layer]:
        return (node.layer for node in self.nodes if isinstance(node, LayerNode))
