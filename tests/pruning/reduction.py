"""What the tests of exact reduction share: reduce, and measure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shifter.pruning.exactness import evaluate_float64
from shifter.pruning.plan import PrunePlan, plan_round
from shifter.pruning.rebuild import rebuild_tensors
from shifter.pruning.rewrite import rebuild_graph
from shifter.switching.engine import OnnxEngine


@dataclass(frozen=True, eq=False)
class Reduced:
    """A plan and what it makes of a checkpoint, in float64."""

    plan: PrunePlan
    graph: bytes
    tensors: dict[str, NDArray[Any]]

    @property
    def parameters(self) -> int:
        return sum(value.size for value in self.tensors.values())


def reduce(architecture: bytes, tensors: Mapping[str, NDArray[Any]], round_to: int) -> Reduced:
    plan = plan_round(architecture, tensors, round_to)
    rebuilt = rebuild_tensors(architecture, plan, tensors, np.float64)
    return Reduced(plan, rebuild_graph(architecture, plan), rebuilt)


def one_by_one(graph: bytes, tensors: Mapping[str, NDArray[Any]], images: NDArray[Any]) -> NDArray[Any]:
    """The answers at batch 1."""
    return np.concatenate([evaluate_float64(graph, tensors, image[None]) for image in images])


def run_float32(
    graph: bytes, tensors: Mapping[str, NDArray[Any]], images: NDArray[np.float32]
) -> NDArray[np.float32]:
    return OnnxEngine(graph, tensors).run(images)


def variation(answers: NDArray[Any]) -> float:
    """How much of the answers depends on the image."""
    return float(np.linalg.norm(answers - answers.mean(axis=0)) / np.linalg.norm(answers))
