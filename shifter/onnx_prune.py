"""The exact reduction of one network that is at hand as ONNX, in this process, with its proof."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shifter.errors import GraphError, InexactError
from shifter.onnx_file import Arrays, with_weights
from shifter.pruning.exactness import Float32Run, evaluate_float64, relative_error
from shifter.pruning.plan import PrunePlan, plan_round
from shifter.pruning.rebuild import rebuild_graph, rebuild_tensors
from shifter.values import Exactness, Tensors


@dataclass(frozen=True)
class PrunedGraph:
    """A reduced network: a weightless graph and its float32 tensors.

    ``exactness``: against the network that it was made of.
    """

    graph: bytes
    tensors: Arrays
    plan: PrunePlan
    exactness: Exactness

    def model(self) -> bytes:
        """The graph with its weights inside, as an ``.onnx`` file holds them."""
        return with_weights(self.graph, self.tensors)


def prune_graph(
    architecture: bytes,
    tensors: Tensors,
    images: NDArray[np.float32],
    run_float32: Float32Run,
    *,
    round_to: int = 8,
    batch: int | None = None,
) -> PrunedGraph:
    """Plans, rebuilds and proves.

    Args:
        architecture: weightless ONNX model that reads one tensor.
        images: to prove it on; at least 2 that differ.
        run_float32: the engine that will run the graph.
        batch: the number of images that the graph takes, where that is fixed; it divides the
            number of ``images``.

    Raises:
        InexactError: if the reduced network is further away than the bounds of ``Exactness``. One whose
            answers hardly depend on the image is none: ``exactness.refusal`` says so.
        GraphError, CheckpointError: if graph or tensors cannot be used.
    """
    plan = plan_round(architecture, tensors, round_to)
    graph = rebuild_graph(architecture, plan)
    exact = rebuild_tensors(architecture, plan, tensors, np.float64)
    rounded = {name: _rounded(array) for name, array in exact.items()}

    def in_turns(run: Any, *network: Any) -> NDArray[Any]:
        parts = np.split(images, len(images) // batch) if batch else [images]
        return np.concatenate([run(*network, part) for part in parts])

    reference = in_turns(evaluate_float64, architecture, tensors)
    if not np.isfinite(reference).all():
        raise GraphError("the network answers with NaN or infinity: there is nothing to compare with")
    exactness = Exactness(
        float64=relative_error(in_turns(evaluate_float64, graph, exact), reference),
        float32=relative_error(in_turns(run_float32, graph, rounded), reference),
        sparse_float32=relative_error(
            in_turns(run_float32, architecture, {name: _rounded(a) for name, a in tensors.items()}), reference
        ),
        images=len(images),
    )
    if exactness.is_measurable and exactness.refusal is not None:
        raise InexactError(
            f"the reduced network is not the one it was made of: {exactness.refusal}. This is a fault of "
            "the reduction; nothing was written, please report it with the network"
        )
    return PrunedGraph(graph, rounded, plan, exactness)


def _rounded(array: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(array, dtype=np.float32) if array.dtype.kind == "f" else array
