"""What a reduction did, as plain data and as a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from shifter.pruning.parts import PrunePlan
from shifter.values import Tensors

_SHOWN = 3
"""Names that the table shows of a list; the data have all."""


@dataclass(frozen=True)
class LayerReport:
    """One layer: (before, after) of its output and input channels and of its parameters.

    ``idle``: reason -> how many output channels that carry nothing stay because of it.
    """

    name: str
    outputs: tuple[int, int]
    inputs: tuple[int, int]
    parameters: tuple[int, int]
    idle: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class PruneReport:
    """What became of a network.

    Args:
        parameters: (before, after), of the whole network.
        relative_error: against what ``ratio`` says, in float64.
        untouched: operator -> the reason why channels are not followed through it.
        fixed: lines of the network's own code that fix sizes; what they touch is as it was.
        unread: tensors that evaluation does not read; they are as they were.
        computed: weights that were computed from others (masks, reparametrisations) and now are
            plain parameters.
        warning: why the relative error says little; None if it says what it should.
        ratio: of the magnitude masks that were put on first; then the result is exact with regard
            to the masked network, not to the one that was given. None if there were none.
    """

    layers: tuple[LayerReport, ...]
    parameters: tuple[int, int]
    relative_error: float
    untouched: Mapping[str, str] = field(default_factory=dict)
    fixed: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    computed: tuple[str, ...] = ()
    ratio: float | None = None
    warning: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        rows = [("layer", "out", "in", "parameters", "channels that carry nothing and stay")]
        rows += [
            (part.name, _change(part.outputs), _change(part.inputs), _change(part.parameters), _idle(part))
            for part in self.layers
        ]
        before, after = self.parameters
        lines = _aligned(rows)
        lines += ["", f"parameters: {before:,} → {after:,} ({after / before:.1%})"]
        if all(map(_is_as_it_was, self.layers)):
            lines.append("no channel was found that is zero, constant or unread: there was none to remove")
        if self.ratio is not None:
            lines.append(
                f"masked by magnitude at {self.ratio:g}x first: NOT exact with regard to the network given"
            )
        against = "the network" if self.ratio is None else "the masked network"
        lines.append(f"relative error against {against}, in float64: {self.relative_error:.1e}")
        lines += _untouched(self.untouched)
        lines += [f"sizes fixed by hand, left as they are: {line}" for line in self.fixed]
        if self.unread:
            lines.append(f"not read in evaluation, as they were: {', '.join(self.unread)}")
        if self.computed:
            lines.append(f"plain parameters now: {_some(self.computed)}")
        if self.warning:
            lines.append(f"warning: {self.warning}")
        return "\n".join(lines)


def layer_reports(plan: PrunePlan, before: Tensors, after: Tensors) -> tuple[LayerReport, ...]:
    """A row per layer.

    Args:
        before, after: the network's parameters by name; others, such as running statistics, count too.
    """
    parts = {part.layer.name: part.layer for part in plan.layers}
    rows = []
    for told in plan.why():
        name = told["layer"]
        counts = (0, 0)
        if layer := parts.get(name):
            news = (layer.reduced_weight, layer.reduced_bias)
            counts = (_count(before, layer.tensors), _count(after, news))
        widths = zip(told["before"] or (0, 0), told["after"], strict=True)
        outputs, inputs = ((int(old), int(new)) for old, new in widths)
        rows.append(LayerReport(name, outputs, inputs, counts, dict(told["idle"])))
    return tuple(rows)


def _count(tensors: Tensors, names: Iterable[str]) -> int:
    return sum(tensors[name].size for name in names if name in tensors)


def _untouched(reasons: Mapping[str, str]) -> list[str]:
    """A line per reason, with some of its operators."""
    lines = []
    for reason in dict.fromkeys(reasons.values()):
        operators = [operator for operator, why in reasons.items() if why == reason]
        lines.append(f"untouched: {reason}: {_some(operators)}")
    return lines


def _some(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{rest}"


def _idle(part: LayerReport) -> str:
    return "; ".join(f"{count}: {reason}" for reason, count in part.idle.items())


def _is_as_it_was(part: LayerReport) -> bool:
    return all(before == after for before, after in (part.outputs, part.inputs)) and not part.idle


def _change(sizes: tuple[int, int]) -> str:
    before, after = sizes
    return f"{before:,} → {after:,}" if before != after else f"{before:,}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        first, *middle, last = row
        cells = [
            first.ljust(widths[0]),
            *(c.rjust(w) for c, w in zip(middle, widths[1:-1], strict=True)),
            last,
        ]
        lines.append("  ".join(cells).rstrip())
    return lines
