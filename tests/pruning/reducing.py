"""What the tests of reduction share: reduce a network, and measure the error."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shifter.pruning.exactness import evaluate_float64, relative_error
from shifter.pruning.plan import PrunePlan, plan_round
from shifter.pruning.rebuild import rebuild_graph, rebuild_tensors
from shifter.switching.engine import OnnxEngine

from .networks import Builder

FLOAT64_BOUND = 1e-10  # as promised; written out, so that loosening it in the code does not pass


class Reduced(NamedTuple):
    """A plan and what it makes of a checkpoint, in float64."""

    plan: PrunePlan
    graph: bytes
    tensors: dict[str, NDArray[Any]]

    @property
    def parameters(self):
        return sum(value.size for value in self.tensors.values())


def reduce(architecture, tensors, round_to=1):
    plan = plan_round(architecture, tensors, round_to)
    rebuilt = rebuild_tensors(architecture, plan, tensors, np.float64)
    return Reduced(plan, rebuild_graph(architecture, plan), rebuilt)


def one_by_one(graph, tensors, images):
    """The answers at batch 1."""
    return np.concatenate([evaluate_float64(graph, tensors, image[None]) for image in images])


def run_float32(graph, tensors, images):
    return OnnxEngine(graph, tensors).run(images)


def variation(answers):
    """How much of the answers depends on the image; below 1e-5 rounding is all that float64 shows."""
    size = np.linalg.norm(answers)
    return np.linalg.norm(answers - answers.mean(axis=0)) / size if size else 0.0


def error_of(architecture, tensors, images, round_to=1):
    _, graph, reduced = reduce(architecture, tensors, round_to)
    sparse = evaluate_float64(architecture, tensors, images)
    return relative_error(evaluate_float64(graph, reduced, images), sparse)


def dead_filters(rng, pad=1, bias=0.7, dead=(1, 3, 5)):
    """Two convolutions; some filters of the first are zero, but their biases are not."""
    builder = Builder(rng, rng.normal(size=(6, 2, 7, 7)))
    x = builder.activation(builder.conv("images", 8, bias=True, norm=False))
    x = builder.activation(builder.conv(x, 8, pad=pad, bias=True, norm=False))
    builder.linear(builder.flatten(x, average=True), 5)
    architecture, tensors = builder.finish(builder.nodes[-1].output[0])
    tensors["l0.weight"][list(dead)] = 0
    tensors["l0.bias"][list(dead)] = [bias * (i + 1) for i in range(len(dead))]
    return architecture, tensors, builder.images.astype(np.float32)
