"""Small networks, and the same networks widened by channels of which it is known that they can go.

Each channel of each axis of each tensor has a label: its space and its place in it. The labels of a
small network's axes are some of those of the wide one's, and that is how the small one's weights are
embedded. What the other channels are filled with follows from their kind.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from .families import checkpoint, enliven, share_float32_constants

Labels = NDArray[np.int64]
Get = Callable[[str], Labels]

REAL, ZERO, UNREAD, CONSTANT = range(4)
"""Kinds: of the small network; zero; random but without a reader; constant."""


@dataclass(frozen=True)
class Space:
    """Channels that are kept or removed together.

    Args:
        width: of the small network.
        carriers: zero channels that may be left, because a padded layer reads constants.
        kinds: what it is widened by.
    """

    width: int
    carriers: int = 0
    kinds: tuple[int, ...] = (ZERO, ZERO, UNREAD, UNREAD, *4 * (CONSTANT,))


@dataclass(frozen=True)
class Block:
    """The labels of a weight's first two axes, or of the only axis of another tensor.

    Where ``role`` is ``gate``, what it writes multiplies zero; ``before``, constants are made only
    by the next layer; ``through``, it is depthwise, so that zeros stay zeros.
    """

    rows: Labels | None
    columns: Labels | None = None
    role: str = "write"


Axes = Mapping[str, Block | list[Block]]


@dataclass(frozen=True)
class Case:
    """A network of any widths, and where each of its tensors has which channels."""

    spaces: Mapping[str, Space]
    build: Callable[[Mapping[str, int]], nn.Module]
    axes: Callable[[Get], Axes]


@dataclass(frozen=True)
class Widened:
    small: nn.Module
    wide: nn.Module
    allowed: Mapping[str, tuple[int, ...]]

    def too_wide(self, tensors: Mapping[str, NDArray[Any]]) -> set[str]:
        """Those of ``tensors`` that are larger on some axis than they have to be."""
        return {
            name
            for name, most in self.allowed.items()
            if name in tensors and any(a > b for a, b in zip(tensors[name].shape, most, strict=True))
        }


_SUB = 1000  # several labels of one channel: its pixels, once they are flattened


def pixels(labels: Labels, count: int) -> Labels:
    return (labels[:, None] + np.arange(count)).ravel()


def interleave(*halves: Labels) -> Labels:
    return np.stack(halves, axis=1).ravel()


def layer(name: str, rows: Labels | None, columns: Labels | None = None, role: str = "write",
          norm: str | None = None) -> dict[str, Block]:  # fmt: skip
    """The tensors of a layer and of the norm after it."""
    tensors = {f"{name}.weight": Block(rows, columns, role)}
    if rows is not None:
        tensors[f"{name}.bias"] = Block(rows, None, role)
        tensors |= norm_of(norm, rows, role) if norm else {}
    return tensors


def norm_of(name: str, rows: Labels, role: str = "write") -> dict[str, Block]:
    return {
        f"{name}.{key}": Block(rows, None, role) for key in ("weight", "bias", "running_mean", "running_var")
    }


def widen(case: Case, size: int, seed: int, *, undone: bool = True) -> Widened:
    """The case's small network with living weights, and a wide one.

    Args:
        undone: half of the constants of a space take back what the others add, whatever a border does
            to them, so that both networks compute the same. Otherwise constants count.
    """
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    small = case.build({name: space.width for name, space in case.spaces.items()})
    enliven(small, size)
    wide = case.build({name: space.width + len(space.kinds) for name, space in case.spaces.items()}).eval()
    share_float32_constants(wide)
    share = {name: index for index, name in enumerate(case.spaces)}
    kinds: dict[int, int] = {}
    places: dict[str, Labels] = {}
    for name, space in case.spaces.items():
        filled = np.array([REAL] * space.width + list(space.kinds))
        shuffled = rng.permutation(filled)
        kinds |= {share[name] * _SUB + place: int(kind) for place, kind in enumerate(shuffled)}
        places[name] = np.flatnonzero(shuffled == REAL)

    def labels_of(name: str, chosen: Labels) -> Labels:
        return (share[name] * _SUB + chosen) * _SUB

    total = {name: space.width + len(space.kinds) for name, space in case.spaces.items()}
    of_small = case.axes(lambda name: labels_of(name, places[name]))
    of_wide = case.axes(lambda name: labels_of(name, np.arange(total[name])))
    # As many labels as an axis may have channels: those of the small network and of the carriers.
    of_most = case.axes(lambda name: np.arange(case.spaces[name].width + case.spaces[name].carriers))
    weights, allowed = checkpoint(small), {}
    for name, value in checkpoint(wide).items():
        if name not in of_wide:
            continue  # no axis of it is widened
        groups = zip(*(_blocks(axes[name]) for axes in (of_small, of_wide)), strict=True)
        count = len(_blocks(of_wide[name]))
        sources = np.split(weights[name], count)
        parts = [
            _fill(name, part.shape, source, one, two, kinds, undone, rng)
            for part, source, (one, two) in zip(np.split(value, count), sources, groups, strict=True)
        ]
        weights[name] = np.concatenate(parts)
        most = _blocks(of_most[name])
        rows = sum(len(block.rows) for block in most) if most[0].rows is not None else len(value)
        columns = len(most[0].columns) if most[0].columns is not None else None
        allowed[name] = (rows, *([columns or value.shape[1]] if value.ndim > 1 else []), *value.shape[2:])
    state = wide.state_dict()
    for name, value in weights.items():
        state[name].copy_(torch.from_numpy(value))
    return Widened(small, wide, allowed)


def _blocks(entry: Block | list[Block]) -> list[Block]:
    return entry if isinstance(entry, list) else [entry]


def _fill(
    name: str, shape: tuple[int, ...], source: NDArray[Any], small: Block, wide: Block,
    kinds: Mapping[int, int], undone: bool, rng: np.random.Generator,
) -> NDArray[np.float32]:  # fmt: skip
    def kinds_of(labels: Labels | None, size: int) -> Labels:
        return np.zeros(size, int) if labels is None else np.array([kinds[int(at) // _SUB] for at in labels])

    value = rng.normal(0, 0.3, size=shape).astype(np.float32)
    rows = kinds_of(wide.rows, shape[0])
    if value.ndim == 1:
        _fill_vector(name.rpartition(".")[2], value, rows, wide.role, undone, rng)
    else:
        columns = kinds_of(wide.columns, shape[1])
        silent = {"write": (ZERO, CONSTANT), "through": (CONSTANT,), "before": (ZERO,), "gate": ()}
        value[np.isin(rows, silent[wide.role])] = 0
        real = np.flatnonzero(rows == REAL)
        value[np.ix_(real, columns == UNREAD)] = 0
        for space in np.unique(wide.columns // _SUB**2) if undone and wide.columns is not None else ():
            constants = (columns == CONSTANT) & (wide.columns // _SUB**2 == space)
            one, two = np.array_split(np.flatnonzero(constants), 2)
            value[np.ix_(real, two)] = -value[np.ix_(real, one)]
    into = [_places(small.rows, wide.rows, shape[0])]
    if value.ndim > 1:
        into.append(_places(small.columns, wide.columns, shape[1]))
    value[np.ix_(*into)] = source
    return value


def _fill_vector(
    key: str, value: NDArray[Any], kinds: Labels, role: str, undone: bool, rng: np.random.Generator
) -> None:
    """Biases, norms and scales: what makes a channel zero, or constants of a space equal."""
    if key == "running_var":
        value[:] = rng.uniform(0.5, 2, size=value.shape)
    if key in ("bias", "running_mean") and role != "gate":
        value[kinds == ZERO] = 0
    if role not in ("gate", "before"):
        neutral = {"running_mean": 0, "bias": 0.4}.get(key, 1)
        value[kinds == CONSTANT] = neutral
        if not undone and key == "bias":
            value[kinds == CONSTANT] = rng.uniform(0.2, 0.8, size=(kinds == CONSTANT).sum())


def _places(small: Labels | None, wide: Labels | None, size: int) -> Labels:
    if small is None or wide is None:
        return np.arange(size)
    where = {int(label): place for place, label in enumerate(wide)}
    return np.array([where[int(label)] for label in small])


class Net(nn.Module):
    """Layers by name, and what is done with them."""

    def __init__(self, forward: Callable[[Any, torch.Tensor], torch.Tensor], **layers: Any) -> None:
        super().__init__()
        self._forward = forward
        for name, module in layers.items():
            setattr(self, name, module)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self._forward(self, images)


def joined(*dictionaries: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(itertools.chain.from_iterable(d.items() for d in dictionaries))
    assert len(merged) == sum(map(len, dictionaries))
    return merged
