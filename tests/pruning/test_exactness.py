"""The float64 evaluator: what it computes by itself agrees with the ONNX reference, or with torch."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from shifter.pruning.exactness import evaluate_float64, relative_error


def model_of(nodes, *, opset=20, inline=(), weights=(), inputs=("images",)):
    """An architecture: the last node's output is the answer."""
    answer = nodes[-1].output[0]
    initializers = [numpy_helper.from_array(array, name) for name, array in dict(inline).items()]
    for name, array in dict(weights).items():
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=array.shape)
        tensor.data_location = TensorProto.EXTERNAL
        for field, value in (("location", name), ("offset", "0"), ("length", str(4 * array.size))):
            tensor.external_data.add(key=field, value=value)
        initializers.append(tensor)
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inputs],
        [helper.make_tensor_value_info(answer, TensorProto.FLOAT, None)],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def by_reference(node, **values):
    """One node's answer as the ONNX reference computes it, in the type of ``values``."""
    kinds = {np.dtype(np.float64): TensorProto.DOUBLE, np.dtype(np.int64): TensorProto.INT64}
    graph = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info(name, kinds[array.dtype], None) for name, array in values.items()],
        [helper.make_tensor_value_info(node.output[0], TensorProto.DOUBLE, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return ReferenceEvaluator(model).run(None, values)[0]


def by_us(node, images, weights=(), opset=20):
    model = model_of([node], weights=weights, opset=opset)
    return evaluate_float64(model.SerializeToString(), dict(weights), images)


@st.composite
def windows(draw, kernels=3):
    """Attributes that a convolution and the poolings share, for images that are large enough."""
    pair = st.tuples(st.integers(1, kernels), st.integers(1, kernels))
    kernel, strides, dilations = draw(pair), draw(st.tuples(*2 * [st.integers(1, 3)])), draw(pair)
    attributes = {"kernel_shape": kernel, "strides": strides, "dilations": dilations}
    padding = draw(st.sampled_from(["none", "pads", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if padding == "pads":
        attributes["pads"] = [draw(st.integers(0, k - 1)) for k in (*kernel, *kernel)]
    elif padding != "none":
        attributes["auto_pad"] = padding
    return attributes, draw(st.integers(7, 10)), draw(st.integers(7, 10))


@settings(max_examples=100)
@given(window=windows(), group=st.integers(1, 3), into=st.integers(1, 3), out=st.integers(1, 3),
       bias=st.booleans(), seed=st.integers(0, 99))  # fmt: skip
def test_convolution(window, group, into, out, bias, seed):
    attributes, height, width = window
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(2, group * into, height, width))
    weights = {"w": rng.normal(size=(group * out, into, *attributes["kernel_shape"]))}
    if bias:
        weights["b"] = rng.normal(size=group * out)
    node = helper.make_node("Conv", ["images", *weights], ["y"], group=group, **attributes)
    wanted = by_reference(node, images=images, **weights)
    np.testing.assert_allclose(by_us(node, images, weights), wanted, rtol=1e-12, atol=1e-12)


@settings(max_examples=100)
@given(window=windows(), op=st.sampled_from(["MaxPool", "AveragePool"]), include=st.integers(0, 1),
       seed=st.integers(0, 99))  # fmt: skip
def test_pooling(window, op, include, seed):
    attributes, height, width = window
    # There the reference forgets the dilation (average) or pads SAME_LOWER like SAME_UPPER (maximum).
    assume("auto_pad" not in attributes or attributes["auto_pad"] == "SAME_UPPER")
    if "auto_pad" in attributes:
        attributes["dilations"] = (1, 1)
        # A window beyond the image's last pixel makes the reference's padding negative.
        attributes["strides"] = tuple(map(min, attributes["strides"], attributes["kernel_shape"]))
    if "pads" in attributes:  # the reference takes uneven ones for those of another axis
        attributes["pads"] = [min(attributes["pads"])] * 4
    if op == "AveragePool":
        attributes["count_include_pad"] = include
    images = np.random.default_rng(seed).normal(size=(2, 2, height, width))
    node = helper.make_node(op, ["images"], ["y"], **attributes)
    wanted = by_reference(node, images=images)
    np.testing.assert_allclose(by_us(node, images), wanted, rtol=1e-12, atol=1e-12)


@settings(max_examples=100)
@given(kernel=st.integers(1, 4), stride=st.integers(1, 4), pad=st.integers(0, 2), size=st.integers(5, 9),
       include=st.booleans())  # fmt: skip
def test_pooling_whose_size_is_rounded_up(kernel, stride, pad, size, include):
    assume(pad <= kernel // 2)
    images = np.random.default_rng(size).normal(size=(2, 2, size, size))
    form = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [pad] * 4, "ceil_mode": 1}
    average = helper.make_node("AveragePool", ["images"], ["y"], count_include_pad=int(include), **form)
    maximum = helper.make_node("MaxPool", ["images"], ["y"], **form)
    tensor = torch.from_numpy(images)
    wanted = torch.nn.functional.avg_pool2d(tensor, kernel, stride, pad, True, include).numpy()
    np.testing.assert_allclose(by_us(average, images), wanted, rtol=1e-12)
    wanted = torch.nn.functional.max_pool2d(tensor, kernel, stride, pad, ceil_mode=True).numpy()
    np.testing.assert_array_equal(by_us(maximum, images), wanted)


@pytest.mark.parametrize("opset", [9, 13, 14, 20])
def test_batch_norm_is_that_of_inference_at_every_opset(opset):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 3, 4, 4))
    weights = {name: rng.uniform(0.5, 2, size=3) for name in ("scale", "shift", "mean", "var")}
    node = helper.make_node("BatchNormalization", ["images", *weights], ["y"], epsilon=0.5)
    scale, shift, mean, var = (value.reshape(-1, 1, 1) for value in weights.values())
    wanted = (images - mean) / np.sqrt(var + 0.5) * scale + shift
    np.testing.assert_allclose(by_us(node, images, weights, opset), wanted, rtol=1e-13)


@pytest.mark.parametrize(
    ("node", "function"),
    [
        (helper.make_node("Erf", ["images"], ["y"]), torch.erf),
        (helper.make_node("Gelu", ["images"], ["y"]), torch.nn.functional.gelu),
        (
            helper.make_node("Gelu", ["images"], ["y"], approximate="tanh"),
            lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
        ),
        (helper.make_node("Sigmoid", ["images"], ["y"]), torch.sigmoid),
        (helper.make_node("Softmax", ["images"], ["y"], axis=1), lambda x: x.softmax(1)),
        (helper.make_node("Cast", ["images"], ["y"], to=TensorProto.FLOAT), lambda x: x),
        (helper.make_node("HardSigmoid", ["images"], ["y"], alpha=0.25), lambda x: (x / 4 + 0.5).clamp(0, 1)),
    ],
    ids=lambda case: case.op_type if isinstance(case, onnx.NodeProto) else "",
)
def test_functions_are_computed_in_float64(node, function):
    images = 3 * np.random.default_rng(0).normal(size=(2, 3, 4, 4))
    wanted = function(torch.from_numpy(images)).numpy()
    assert relative_error(by_us(node, images), wanted) < 1e-15


def test_layer_norm_is_computed_in_float64():
    rng = np.random.default_rng(0)
    images, weights = rng.normal(size=(2, 3, 4, 8)), {"w": rng.normal(size=8), "b": rng.normal(size=8)}
    node = helper.make_node("LayerNormalization", ["images", "w", "b"], ["y"], axis=-1, epsilon=0.5)
    wanted = torch.nn.functional.layer_norm(
        torch.from_numpy(images), [8], torch.from_numpy(weights["w"]), torch.from_numpy(weights["b"]), 0.5
    )
    assert relative_error(by_us(node, images, weights), wanted.numpy()) < 1e-15


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
def test_scatter(reduction):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(4, 3, 5, 5))
    unique = [(0, 1), (3, 2), (2, 0), (0, 2)]
    indices = np.array(unique if reduction == "none" else [*unique, (0, 1)], dtype=np.int64)
    updates = rng.normal(size=(len(indices), 5, 5))
    node = helper.make_node("ScatterND", ["images", "indices", "updates"], ["y"], reduction=reduction)
    model = model_of([node], inline={"indices": indices}, weights={"updates": updates})
    found = evaluate_float64(model.SerializeToString(), {"updates": updates}, images)
    wanted = by_reference(node, images=images, indices=indices, updates=updates)
    np.testing.assert_allclose(found, wanted, rtol=1e-15)


def test_no_constant_of_a_graph_stays_float32():
    """However it is written: as an initializer, a tensor, a number, numbers, or a shape filled with it."""
    third = np.float32(1 / 3)
    nodes = [
        helper.make_node("Constant", [], ["a"], value=numpy_helper.from_array(np.array([third]))),
        helper.make_node("Constant", [], ["b"], value_float=float(third)),
        helper.make_node("Constant", [], ["c"], value_floats=[float(third)]),
        helper.make_node("Shape", ["a"], ["one"]),
        helper.make_node("ConstantOfShape", ["one"], ["d"], value=numpy_helper.from_array(np.array([third]))),
        helper.make_node("Sum", ["a", "b", "c", "d", "e"], ["sum"]),
        helper.make_node("Mul", ["images", "sum"], ["y"]),
    ]
    model = model_of(nodes, inline={"e": np.array([third])})
    images = np.random.default_rng(0).normal(size=(2, 1, 3, 3))
    found = evaluate_float64(model.SerializeToString(), {}, images)
    np.testing.assert_allclose(found, 5 * images * np.float64(third), rtol=1e-15)


def test_a_value_that_several_read_and_an_answer_that_is_read_too():
    nodes = [
        helper.make_node("Relu", ["images"], ["x"]),
        helper.make_node("Add", ["x", "x"], ["twice"]),
        helper.make_node("Identity", ["twice"], ["unread"]),
        helper.make_node("Mul", ["x", "twice"], ["y"]),
    ]
    images = np.random.default_rng(0).normal(size=(2, 1, 3, 3))
    found = evaluate_float64(model_of(nodes).SerializeToString(), {}, images)
    np.testing.assert_allclose(found, 2 * np.maximum(images, 0) ** 2)


def test_the_places_of_maxima_are_refused():
    node = helper.make_node("MaxPool", ["images"], ["y", "places"], kernel_shape=[2, 2])
    with pytest.raises(NotImplementedError, match="places"):
        by_us(node, np.zeros((1, 1, 4, 4)))


def test_an_error_is_relative_to_the_variation_over_images():
    reference = 1000 + np.array([[1.0], [-1.0]])
    assert relative_error(reference + 0.1, reference) == pytest.approx(0.1)
    assert relative_error(reference * math.nan, reference) == math.inf
