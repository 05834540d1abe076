"""What the tests of reduction share: reduce a network, and measure the error."""

from __future__ import annotations

import numpy as np

from shifter.pruning.exactness import evaluate_float64, relative_error
from shifter.pruning.plan import plan_round
from shifter.pruning.rebuild import rebuild_graph, rebuild_tensors

from .networks import Builder

FLOAT64_BOUND = 1e-10  # as promised; written out, so that loosening it in the code does not pass


def reduce(architecture, tensors, round_to=1):
    plan = plan_round(architecture, tensors, round_to)
    return plan, rebuild_graph(architecture, plan), rebuild_tensors(architecture, plan, tensors, np.float64)


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
