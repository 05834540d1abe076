"""A prune plan as plain data: what is kept of every tensor, and what makes up for the rest.

All indices are of the sparse checkpoint's tensors; nothing depends on the size of the image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from shifter.pruning.network import Layer


@dataclass(frozen=True)
class LayerPlan:
    """What becomes of one layer.

    Args:
        outputs, inputs: kept output and input channels, ascending.
        widths: (out, in) channels before.
        groups: after; 1 unless the convolution is grouped. Those that are left keep equally many
            channels.
        empty_outputs: kept output channels that nothing needs: filter and bias become zero.
        constant_outputs: (channel, value) of kept output channels that are constants: the filter
            becomes zero, the bias the value (before the activation).
        silent_inputs: input channels whose weights become zero, because what they contribute is
            zero, or is made up for by one of the next two.
        folded_inputs: (channel, value): the constant moves into the bias.
        carried_inputs: (channel, carrier, ratio): ``ratio`` times its weights are added to the
            carrier's.
        idle: (channel, reason) of kept output channels that are constants or that nothing reads: why
            they stay.
    """

    layer: Layer
    widths: tuple[int, int]
    outputs: tuple[int, ...]
    inputs: tuple[int, ...]
    groups: int = 1
    empty_outputs: tuple[int, ...] = ()
    constant_outputs: tuple[tuple[int, float], ...] = ()
    silent_inputs: tuple[int, ...] = ()
    folded_inputs: tuple[tuple[int, float], ...] = ()
    carried_inputs: tuple[tuple[int, int, float], ...] = ()
    idle: tuple[tuple[int, str], ...] = ()

    @property
    def is_biased(self) -> bool:
        """Whether the reduced layer has a bias: a MatMul that had none gets one only for a constant."""
        has = self.layer.op != "MatMul" or self.layer.bias is not None or bool(self.folded_inputs)
        return has or any(value != 0 for _, value in self.constant_outputs)

    @property
    def is_whole(self) -> bool:
        """Whether its weight stays as it is, but for the norms after it."""
        settled = self.empty_outputs or self.constant_outputs or self.silent_inputs
        left = (len(self.outputs), len(self.inputs))
        return left == self.widths and not (settled or self.folded_inputs or self.carried_inputs)

    @property
    def made(self) -> tuple[str, ...]:
        """Names of the reduced layer's tensors."""
        names = (self.layer.reduced_weight, self.layer.reduced_bias)
        return names if self.is_biased else names[:1]

    def to_json(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"layer": self.layer.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LayerPlan:
        given = dict(data)
        layer = Layer.from_json(given.pop("layer"))
        return cls(layer=layer, **{key: _tuples(value) for key, value in given.items()})


@dataclass(frozen=True)
class ParameterPlan:
    """A tensor of one number per channel, that is only sliced: ``kept`` along ``axis``."""

    name: str
    axis: int
    kept: tuple[int, ...]


@dataclass(frozen=True)
class Rewrite:
    """Literals of one operator that change with the number of channels.

    Args:
        node: the operator's first output.
        op: what is rewritten: ``Concat`` (``values``: inputs that are left), ``Split`` (sizes),
            ``Gather`` and ``Slice`` (indices among the kept channels), ``Pad`` (zeros before, after),
            ``Reshape`` (axis, size), ``Skip`` (the input that takes the operator's place).
    """

    node: str
    op: str
    values: tuple[int, ...]


@dataclass(frozen=True)
class ConstantPlan:
    """An operand that is the same for every image, and so needs no layers any more.

    Args:
        node: the operator's first output. position: of the operand; None if it is added to the output.
        values: one per kept channel. trailing: axes behind the channels.
    """

    node: str
    position: int | None
    values: tuple[float, ...]
    trailing: int

    @property
    def name(self) -> str:
        """The initializer that stands for the operand."""
        return f"{self.node}.constant"


@dataclass(frozen=True)
class PrunePlan:
    """The plan for one checkpoint.

    Args:
        layers: one part a layer that is left. removed: names of the layers that are not.
        untouched: an operator's first output -> why channels are not followed through it.
    """

    layers: tuple[LayerPlan, ...]
    slices: tuple[ParameterPlan, ...] = ()
    rewrites: tuple[Rewrite, ...] = ()
    constants: tuple[ConstantPlan, ...] = ()
    removed: tuple[str, ...] = ()
    untouched: Mapping[str, str] = field(default_factory=dict)

    @property
    def carriers(self) -> int:
        """Carrier channels in the whole network, counted where they are read."""
        return sum(len({carrier for _, carrier, _ in part.carried_inputs}) for part in self.layers)

    def why(self) -> Iterator[dict[str, Any]]:
        """Per layer: ``{"layer", "before", "after", "idle"}``, with (out, in) channels, and for each
        reason how many kept channels of the layer's outputs carry nothing and stay because of it.
        """
        for part in self.layers:
            reasons: dict[str, int] = {}
            for _, reason in part.idle:
                reasons[reason] = reasons.get(reason, 0) + 1
            after = (len(part.outputs), len(part.inputs))
            yield {"layer": part.layer.name, "before": part.widths, "after": after, "idle": reasons}
        for name in self.removed:
            yield {"layer": name, "before": None, "after": (0, 0), "idle": {}}

    def to_json(self) -> dict[str, Any]:
        return {
            "layers": [part.to_json() for part in self.layers],
            "slices": [asdict(part) for part in self.slices],
            "rewrites": [asdict(part) for part in self.rewrites],
            "constants": [asdict(part) for part in self.constants],
            "removed": list(self.removed),
            "untouched": dict(self.untouched),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PrunePlan:
        def parts(kind: Any, key: str) -> Any:
            return tuple(kind(**{k: _tuples(v) for k, v in part.items()}) for part in data[key])

        return cls(
            layers=tuple(LayerPlan.from_json(part) for part in data["layers"]),
            slices=parts(ParameterPlan, "slices"),
            rewrites=parts(Rewrite, "rewrites"),
            constants=parts(ConstantPlan, "constants"),
            removed=tuple(data["removed"]),
            untouched=dict(data["untouched"]),
        )


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value
