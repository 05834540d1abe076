"""Which weights stay: global magnitude, the ranking of iterative magnitude pruning."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

import numpy as np
from torch import nn

from shifter.errors import RecipeError
from shifter.models import prunable_names
from shifter.values import CompressionRatio, Mask, Tensors

LAST_LINEAR = "last-linear"
"""In a recipe, the weight of the last linear layer."""


def rank_by_magnitude(tensors: Tensors, mask: Mask, ratio: CompressionRatio) -> Mask:
    """The mask that keeps the largest weights of the whole network, and only weights kept so far.

    All tensors of ``mask`` are ranked together. Exactly ``ratio.kept(mask.total)`` weights stay.
    Equal magnitudes are told apart by position: the earlier tensor in name order, then the earlier
    weight in C order, stays.

    Args:
        tensors: the trained weights; at least those that ``mask`` speaks of, each of its shape.

    Raises:
        ValueError: if ``mask`` keeps fewer weights than ``ratio`` would, or a weight is not a number.
    """
    keep = ratio.kept(mask.total)
    if keep > mask.kept:
        raise ValueError(
            f"{ratio} keeps {keep} of {mask.total} weights, but only {mask.kept} are left: "
            "compression ratios have to rise"
        )
    # -1: below every magnitude, so that a pruned weight never ranks before a kept one, even a zero.
    scores = np.concatenate([np.where(mask[n], np.abs(tensors[n]), -1.0).ravel() for n in mask])
    if np.isnan(scores).any():
        raise ValueError("weights that are not numbers cannot be ranked")
    kept = np.zeros(scores.size, np.bool_)
    kept[np.argsort(-scores, kind="stable")[:keep]] = True
    ends = np.cumsum([mask[n].size for n in mask])
    parts = np.split(kept, ends[:-1])
    return Mask({n: part.reshape(mask[n].shape) for n, part in zip(mask, parts, strict=True)})


def dense_mask(tensors: Tensors, names: Iterable[str]) -> Mask:
    """The mask that keeps every weight of the tensors ``names``."""
    return Mask({name: np.ones(tensors[name].shape, np.bool_) for name in names})


def tensors_to_prune(network: nn.Module, exclude: Sequence[str]) -> tuple[str, ...]:
    """The prunable tensors of ``network`` less those that a recipe excludes.

    Args:
        exclude: names of tensors; ``last-linear`` is the weight of the linear layer that comes last.

    Raises:
        RecipeError: if a name in ``exclude`` is no prunable tensor, or nothing is left to prune.
    """
    prunable = prunable_names(network)
    excluded = {_last_linear(network) if name == LAST_LINEAR else name for name in exclude}
    for name in sorted(excluded - set(prunable)):
        near = difflib.get_close_matches(name, [*prunable, LAST_LINEAR], n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(prunable)}"
        raise RecipeError(f"pruning.exclude: the network has no prunable tensor {name!r}; {hint}")
    rest = tuple(name for name in prunable if name not in excluded)
    if not rest:
        raise RecipeError("pruning.exclude: every prunable tensor is excluded; leave at least one")
    return rest


def require_enough(ratios: Sequence[float], total: int) -> None:
    """Whether each of ``ratios`` leaves at least one of ``total`` prunable weights.

    Raises:
        RecipeError: naming the first that does not.
    """
    for ratio in ratios:
        if ratio > total:
            raise RecipeError(
                f"pruning.ratios: {CompressionRatio(ratio)} would leave less than one of the network's "
                f"{total:,} prunable weights; the largest ratio possible is {total}"
            )


def _last_linear(network: nn.Module) -> str:
    names = [name for name, layer in network.named_modules() if isinstance(layer, nn.Linear)]
    if not names:
        raise RecipeError(f"pruning.exclude: {LAST_LINEAR}: the network has no linear layer; leave it out")
    return f"{names[-1]}.weight" if names[-1] else "weight"
