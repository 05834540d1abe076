"""Small networks made by hand, one operator after another, and the promise checked for each."""

from __future__ import annotations

import numpy as np
import onnx

from shifter.pruning.exactness import evaluate_float64, relative_error
from shifter.switching.engine import OnnxEngine

from .any_network import Drawing, Drawn
from .reducing import FLOAT64_BOUND, reduce


def answers(graph, tensors, images):
    """Of every output."""
    model = onnx.ModelProto.FromString(graph)
    outputs, found = list(model.graph.output), []
    for output in outputs:
        del model.graph.output[:]
        model.graph.output.append(output)
        found.append(evaluate_float64(model.SerializeToString(), tensors, images))
    return found


def is_measurable(answer):
    """Alive, or collapsed for good: between them rounding is all that float64 shows."""
    size = np.linalg.norm(answer)
    varies = np.linalg.norm(answer - answer.mean(axis=0)) / size if size else 0.0
    return not 1e-14 < varies < 1e-5


def assert_same(found, reference):
    for one, other in zip(found, reference, strict=True):
        if is_measurable(other):
            assert one.shape == other.shape
            assert relative_error(one, other) <= FLOAT64_BOUND


def start(height=5, width=5):
    """Images, and a convolution of them to four channels, of which two are dead."""
    d = Drawing(np.random.default_rng(0))
    d.values.append(Drawn("images", (2, height, width), 0))
    return d, pointwise(d, d.values[0], 4)


def pointwise(d, x, width):
    names = [x.name, d.weight("weight", width, x.width, 1, 1), d.weight("bias", width)]
    return d.one("Conv", names, (width, *x.shape[1:]), 0, kernel_shape=[1, 1])


def pooled(d, x):
    return d.one("ReduceMean", [x.name, d.literal([2, 3])], (x.width,), 0, keepdims=0)


def reduced(d, output, *dead, opset=20, bias=0.0):
    """The plan, after the promise was checked, with the first two filters of ``dead`` layers zero."""
    architecture, tensors = d.finish([output])
    model = onnx.ModelProto.FromString(architecture)
    model.opset_import[0].version = opset
    architecture = model.SerializeToString()
    for layer in dead or ("n0",):
        tensors[f"{layer}.weight"][:2] = 0
        tensors[f"{layer}.bias"][:2] = bias
    images = np.random.default_rng(1).normal(size=(5, *d.values[0].shape))
    plan, graph, made = reduce(architecture, tensors)
    assert_same(answers(graph, made, images), answers(architecture, tensors, images))
    OnnxEngine(graph, {n: a.astype(np.float32) for n, a in made.items()}).run(images.astype(np.float32))
    return plan
