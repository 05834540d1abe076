"""What is not followed stays as it is: the answers are right and nothing crashes."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from shifter.pruning.plan import plan_round

from .networks import Builder, mask_randomly, random_network
from .reducing import FLOAT64_BOUND, dead_filters, error_of, reduce


def build(middle):
    rng = np.random.default_rng(7)
    builder = Builder(rng, rng.normal(size=(4, 2, 8, 8)))
    x = builder.conv("images", 6, norm=False, bias=True)
    x = middle(builder, x)
    x = builder.activation(builder.conv(x, 6))
    builder.linear(builder.flatten(x, average=True), 5)
    architecture, tensors = builder.finish(builder.nodes[-1].output[0])
    convs = [name for name, array in tensors.items() if array.ndim == 4]
    tensors[convs[0]][:3] = 0
    tensors[convs[1]][:3] = 0
    return architecture, tensors, builder.images


def test_an_operator_that_is_not_followed_stops_the_region_with_its_reason():
    """Softmax over channels reads all of them together: they stay, and the answers stay right."""

    def middle(builder, x):
        exps = np.exp(builder.values[x] - builder.values[x].max(axis=1, keepdims=True))
        return builder.add("Softmax", [x], exps / exps.sum(axis=1, keepdims=True), axis=1)

    architecture, tensors, images = build(middle)
    plan, _, _ = reduce(architecture, tensors)
    assert list(plan.untouched.values()) == ["Softmax is not an operator that is followed"]
    assert [len(part.outputs) for part in plan.layers] == [6, 3, 5]
    assert error_of(architecture, tensors, images) <= FLOAT64_BOUND


def test_a_second_norm_after_a_norm():
    architecture, tensors, images = build(lambda b, x: b.norm(b.norm(x, "first"), "second"))
    assert error_of(architecture, tensors, images) <= FLOAT64_BOUND


def test_an_average_pool_that_pads_by_itself():
    def middle(builder, x):
        value = builder.values[x]
        padded = np.pad(value, ((0, 0), (0, 0), (0, 1), (0, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (2, 2), axis=(2, 3)).mean(axis=(4, 5))
        settings = {"kernel_shape": [2, 2], "strides": [1, 1]}
        return builder.add(
            "AveragePool", [x], windows, auto_pad="SAME_UPPER", count_include_pad=1, **settings
        )

    architecture, tensors, images = build(middle)
    assert error_of(architecture, tensors, images) <= FLOAT64_BOUND


def test_an_operator_with_several_outputs():
    """Both are read: the region stops at each of them."""

    def middle(builder, x):
        value = builder.values[x]
        left, right = value[:, :, :4], value[:, :, 4:]
        name = f"v{len(builder.nodes)}"
        outputs = [f"{name}a", f"{name}b"]
        builder.nodes.append(helper.make_node("Split", [x], outputs, name=name, axis=2, num_outputs=2))
        builder.values |= dict(zip(outputs, (left, right), strict=True))
        return builder.join(*outputs)

    architecture, tensors, images = build(middle)
    plan, _, _ = reduce(architecture, tensors)
    assert "Split of positions" in plan.untouched.values()
    assert error_of(architecture, tensors, images) <= FLOAT64_BOUND


def test_a_norm_whose_tensors_another_norm_shares():
    def middle(builder, x):
        first = builder.norm(x, "shared")
        names = list(builder.nodes[-1].input[1:])
        scale, shift, mean, var = (
            builder.tensors[name].astype(np.float64).reshape(-1, 1, 1) for name in names
        )
        y = builder.conv(first, 6, norm=False)
        value = (builder.values[y] - mean) / np.sqrt(var + 1e-5) * scale + shift
        return builder.add("BatchNormalization", [y, *names], value, epsilon=1e-5)

    architecture, tensors, images = build(middle)
    assert error_of(architecture, tensors, images) <= FLOAT64_BOUND


def test_axes_that_a_constant_operator_gives():
    def middle(builder, x):
        axes = helper.make_tensor("axes_value", TensorProto.INT64, [1], [1])
        builder.nodes.append(helper.make_node("Constant", [], ["axes"], name="axes", value=axes))
        mean = builder.values[x].mean(axis=1, keepdims=True)
        mean = builder.add("ReduceMean", [x, "axes"], mean, keepdims=1)  # over the channels
        return builder.add("Add", [x, mean], builder.values[x] + builder.values[mean])

    architecture, tensors, images = build(middle)
    plan, _, _ = reduce(architecture, tensors)
    assert "ReduceMean over the channels" in plan.untouched.values()
    assert error_of(architecture, tensors, images) <= FLOAT64_BOUND


def test_a_clip_whose_bounds_are_attributes():
    # Without batch norm, which the reference evaluator computes as in training before opset 14.
    architecture, tensors, images = dead_filters(np.random.default_rng(7))
    model = onnx.ModelProto.FromString(architecture)
    model.opset_import[0].version = 10
    clip = next(node for node in model.graph.node if node.op_type == "Relu")
    clip.op_type = "Clip"
    clip.attribute.extend([helper.make_attribute("min", -0.25), helper.make_attribute("max", 0.5)])
    old = model.SerializeToString()
    plan, _, _ = reduce(old, tensors)
    assert "Clip of an opset before 11" in plan.untouched.values()
    assert error_of(old, tensors, images) <= FLOAT64_BOUND


def test_shapes_that_the_model_does_not_say_are_inferred():
    architecture, tensors, images = random_network("resnet", 3)
    proto = onnx.ModelProto.FromString(architecture)
    del proto.graph.value_info[:]
    sparse = mask_randomly(tensors, np.random.default_rng(0))
    bare = proto.SerializeToString()
    assert not plan_round(bare, sparse).untouched
    assert error_of(bare, sparse, images) <= FLOAT64_BOUND
