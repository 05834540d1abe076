"""The proof: a variant computes what its sparse checkpoint computes.

The error is ‖pruned - sparse‖ / ‖sparse - mean over images of sparse‖, so that a network whose
answer hardly depends on its input cannot hide a fault. A network whose answer does not depend on
its input at all (a collapsed one) varies by nothing; there ‖sparse‖ divides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from shifter.errors import InexactError
from shifter.pruning._float64 import OPERATORS, widen, widened
from shifter.pruning.network import Float64s
from shifter.pruning.rebuild import rounded
from shifter.values import Exactness, Tensors

Float32Run = Callable[[bytes, Tensors, NDArray[np.float32]], NDArray[np.float32]]
"""Runs a weightless graph with its tensors on images in float32: the engine that will serve it."""

_COLLAPSED = 1e-12
"""Variation over images, relative to the answers, below which float64 itself is all that varies."""


def evaluate_float64(graph: bytes, tensors: Tensors, images: NDArray[Any]) -> Float64s:
    """The network's answers in float64, by the ONNX reference evaluator and operators of our own.

    Args:
        graph: weightless ONNX model; ``tensors`` fill its external initializers.
        images: shape (batch, channels, height, width), of any size that the graph can take.
    """
    model = onnx.ModelProto.FromString(graph)
    values: dict[str, Any] = {"": None}
    for tensor in model.graph.initializer:
        is_external = tensor.data_location == TensorProto.EXTERNAL
        values[tensor.name] = widened(
            np.asarray(tensors[tensor.name]) if is_external else numpy_helper.to_array(tensor)
        )
    (source,) = (i.name for i in model.graph.input if i.name not in values)
    values[source] = images.astype(np.float64)
    widen(model.graph)
    nodes = ReferenceEvaluator(model, new_ops=OPERATORS).rt_nodes_
    answer = model.graph.output[0].name
    last = {name: index for index, node in enumerate(nodes) for name in node.input}
    if any(node.has_subgraph for node in nodes):  # which read by name what they please
        last.clear()
    for index, node in enumerate(nodes):
        context = {"context": values} if node.need_context() else {}
        values |= zip(node.output, node.run(*(values[name] for name in node.input), **context), strict=False)
        for name in set(node.input) - {"", answer}:
            if last.get(name) == index:
                del values[name]
    return np.asarray(values[answer], dtype=np.float64)


def relative_error(candidate: NDArray[Any], reference: Float64s) -> float:
    """The error of the module's docstring; infinite if the candidate is not finite."""
    difference = float(np.linalg.norm(candidate.astype(np.float64) - reference))
    size = float(np.linalg.norm(reference))
    variation = float(np.linalg.norm(reference - reference.mean(axis=0)))
    if variation <= _COLLAPSED * size:
        variation = size
    if difference == 0:
        return 0.0
    return difference / variation if variation > 0 and np.isfinite(difference) else float("inf")


def check_exactness(
    name: str,
    sparse: tuple[bytes, Tensors],
    pruned: tuple[bytes, Tensors],
    images: NDArray[np.float32],
    run_float32: Float32Run,
) -> Exactness:
    """Measures one variant against its sparse checkpoint, in float64 and float32.

    Args:
        name: the variant's, for the message.
        sparse: the architecture and the checkpoint's tensors.
        pruned: the reduced graph and its tensors in float64; in float32 they are rounded first.
        images: real and random ones, shape (n, channels, height, width), n of at least 2.

    Raises:
        InexactError: if it differs in float64, where rounding is no excuse. What float32 cannot carry
            is no fault of the reduction, and for :attr:`Exactness.refusal` to say.
    """
    reference = evaluate_float64(*sparse, images)
    in_float32 = {key: rounded(value) for key, value in pruned[1].items()}
    found = Exactness(
        float64=relative_error(evaluate_float64(*pruned, images), reference),
        float32=relative_error(run_float32(pruned[0], in_float32, images), reference),
        sparse_float32=relative_error(run_float32(*sparse, images), reference),
        images=len(images),
    )
    if found.is_measurable and not found.float64 <= Exactness.FLOAT64_BOUND:
        raise InexactError(
            f"variant {name} differs from its sparse checkpoint by {found.float64:.1e} in float64; "
            f"at most {Exactness.FLOAT64_BOUND:.0e} is exact. This is a fault of the reduction: "
            "nothing was published; please report it with the run's recipe"
        )
    return found
