"""What only a second reduction would find, the first one finds; and what it leaves, an engine runs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from shifter.pruning.plan import plan_round
from shifter.pruning.rebuild import rebuild_graph, rebuild_tensors
from shifter.switching.engine import OnnxEngine

from .any_network import norm
from .handmade import answers, assert_same, pointwise, pooled, reduced, start
from .reducing import reduce


def layers(plan):
    return {part.layer.name: (part.outputs, part.layer.norms) for part in plan.layers}


def test_an_operand_that_is_constant_keeps_no_channel_of_what_it_is_added_to():
    """Two channels of the sum are unread; the dead branch is not asked for its two others."""
    d, x = start()
    y = d.like("Relu", pointwise(d, x, 4))
    z = d.like("Relu", pointwise(d, x, 4))
    last = pointwise(d, d.one("Add", [y.name, z.name], x.shape, 0), 3)
    other = pointwise(d, z, 3)  # reads channels of z that the sum's reader does not
    d.tensors["n1.weight"][:] = 0
    d.tensors["n6.weight"][:, :2] = 0
    d.tensors["n7.weight"][:, 2:] = 0
    plan = reduced(d, pooled(d, d.one("Add", [last.name, other.name], last.shape, 0)), "n0")
    assert "n1" in plan.removed
    assert layers(plan)["n6"]


def test_two_norms_after_a_convolution_are_folded_into_it():
    d, x = start()
    plan = reduced(d, pooled(d, pointwise(d, norm(d, norm(d, x)), 3)))
    assert [len(norms) for _, norms in layers(plan).values()] == [2, 0]
    assert not plan.slices


def test_a_norm_is_folded_once_the_other_reader_of_its_layer_is_dead():
    d, x = start()
    y = d.like("Relu", norm(d, x))
    z = d.like("Relu", pointwise(d, x, 4))  # reads what the norm reads
    z = pointwise(d, z, 4)
    d.tensors["n5.weight"][:] = 0
    y = d.one("Add", [y.name, z.name], x.shape, 0)
    plan = reduced(d, pooled(d, pointwise(d, y, 3)))
    assert plan.removed == ("n3", "n5")
    assert len(layers(plan)["n0"][1]) == 1


def test_a_norm_is_folded_through_a_sum_with_nothing():
    d, x = start()
    y = pointwise(d, d.like("Relu", x), 4)
    z = pointwise(d, d.like("Tanh", x), 4)
    d.tensors["n4.weight"][:] = d.tensors["n4.bias"][:] = 0
    y = norm(d, d.one("Add", [y.name, z.name], x.shape, 0))
    plan = reduced(d, pooled(d, pointwise(d, d.like("Relu", y), 3)))
    assert plan.removed == ("n4",)
    assert len(layers(plan)["n2"][1]) == 1
    assert not plan.constants


def test_a_constant_that_is_larger_than_what_it_is_added_to_stays():
    """One position is cut out of an image of any size: the sum is as large as the constant."""
    d, x = start()
    y = d.like("Relu", pointwise(d, x, 4))
    corner = d.one("Slice", [x.name, *(d.literal(n) for n in ([0, 0], [1, 1], [2, 3]))], (4, 1, 1), 0)
    y = d.one("Add", [corner.name, y.name], x.shape, 0)
    weight = d.weight("weight", 3, 4, 3, 3)
    y = d.one("Conv", [y.name, weight], (3, 5, 5), 0, kernel_shape=[3, 3], pads=[1] * 4)
    architecture, tensors = d.finish([pooled(d, y)])
    tensors["n1.weight"][:] = 0
    model = onnx.ModelProto.FromString(architecture)
    del model.graph.value_info[:]
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"size{axis}"
    architecture = model.SerializeToString()
    images = np.random.default_rng(1).normal(size=(5, 2, 5, 5))
    _, graph, made = reduce(architecture, tensors)
    assert_same(answers(graph, made, images), answers(architecture, tensors, images))


@pytest.mark.parametrize("stride", [1, 2])
def test_a_dead_branch_goes_from_a_network_of_any_size(stride):
    """Its size follows from that of the image as its shortcut's does, whatever that is."""
    d, x = start()
    size = -(-5 // stride)
    branch = d.weight("weight", 4, 4, 3, 3)
    y = d.one("Conv", [x.name, branch], (4, size, size), 0,
              kernel_shape=[3, 3], pads=[1] * 4, strides=[stride] * 2)  # fmt: skip
    shortcut = d.weight("weight", 4, 4, 1, 1)
    z = d.one("Conv", [x.name, shortcut], y.shape, 0, kernel_shape=[1, 1], strides=[stride] * 2)
    architecture, tensors = d.finish([pooled(d, pointwise(d, d.one("Add", [z.name, y.name], y.shape, 0), 3))])
    tensors[branch][:] = 0
    model = onnx.ModelProto.FromString(architecture)
    del model.graph.value_info[:]
    for axis in (0, 2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].Clear()
    assert plan_round(model.SerializeToString(), tensors).removed == (branch.removesuffix(".weight"),)


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize(
    ("height", "width", "kernel", "pad", "stride"),
    [(5, 5, 2, 1, 2), (7, 7, 2, 1, 3), (6, 6, 2, 0, 3), (5, 4, 2, 1, 2), (6, 5, 2, 0, 3)],
)
def test_a_pooling_that_rounds_up_is_flattened_to_what_the_engine_computes(
    op, height, width, kernel, pad, stride
):
    """ONNX Runtime infers a window in the padding behind the image, and computes none."""
    d, x = start(height, width)
    sizes = []
    for size in (height, width):
        count = -(-(size + 2 * pad - kernel) // stride) + 1
        sizes.append(count - ((count - 1) * stride >= size + pad))
    x = d.one(op, [x.name], (4, *sizes), 0, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4,
              ceil_mode=1)  # fmt: skip
    x = d.one("Flatten", [x.name], (4 * sizes[0] * sizes[1],), 0)
    plan = reduced(d, d.one("Gemm", [x.name, d.weight("weight", x.width, 3)], (3,), 0))
    assert len(plan.layers[0].outputs) < 4


def test_what_is_made_for_a_graph_in_double_is_double():
    d, x = start()
    y = pointwise(d, d.like("Relu", x), 4)
    z = d.like("Sigmoid", pointwise(d, d.like("Tanh", x), 4))
    y = d.one("Mul", [y.name, z.name], x.shape, 0)
    z = d.one("MatMul", [pooled(d, y).name, d.weight("weight", 4, 4)], (4,), 0)
    z = d.one("MatMul", [d.like("Sigmoid", z).name, d.weight("weight", 4, 4)], (4,), 0)
    architecture, tensors = d.finish([z])
    tensors["n4.weight"][:] = tensors["n8.weight"][:, 0] = 0  # a gate that is 0.5; a constant to be folded
    double = {name: array.astype(np.float64) for name, array in tensors.items()}
    model = onnx.ModelProto.FromString(architecture)
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    for weight in model.graph.initializer:
        if weight.name in tensors:
            weight.data_type = TensorProto.DOUBLE
    architecture = model.SerializeToString()
    plan = plan_round(architecture, double, 1)
    assert plan.constants
    graph = rebuild_graph(architecture, plan)
    made = rebuild_tensors(architecture, plan, double, np.float64)
    stored = [w for w in onnx.ModelProto.FromString(graph).graph.initializer if w.data_location]
    assert {w.name for w in stored} == made.keys()
    assert {w.data_type for w in stored} == {TensorProto.DOUBLE}
    images = np.random.default_rng(1).normal(size=(5, 2, 5, 5))
    assert_same(answers(graph, made, images), answers(architecture, double, images))
    full = onnx.ModelProto.FromString(graph)
    for weight in full.graph.initializer:
        if weight.name in made:
            weight.CopyFrom(numpy_helper.from_array(made[weight.name], weight.name))
    onnx.checker.check_model(full, full_check=True)


def test_a_network_of_which_no_tensor_is_left_is_one_that_an_engine_runs():
    """Of what is read of the concatenation nothing comes from a layer."""
    d, x = start()
    images = d.values[0]
    y = d.one("Concat", [images.name, x.name], (6, 5, 5), 0, axis=1)
    y = d.one("Slice", [y.name, *(d.literal([n]) for n in (0, 2, 1))], (2, 5, 5), 0)
    plan = reduced(d, pooled(d, y))
    assert plan.removed == ("n0",)


def test_an_answer_that_is_one_constant_is_kept_as_such():
    d, x = start()
    x = d.one("MatMul", [pooled(d, x).name, d.weight("weight", 4, 3)], (3,), 0)
    architecture, tensors = d.finish([x])
    tensors = {name: np.zeros_like(array) for name, array in tensors.items()}
    _, graph, made = reduce(architecture, tensors)
    images = np.random.default_rng(1).normal(size=(5, 2, 5, 5))
    assert not answers(graph, made, images)[0].any()
    OnnxEngine(graph, {n: a.astype(np.float32) for n, a in made.items()}).run(images.astype(np.float32))


def test_the_reasons_name_layers_in_plain_words():
    d, x = start()
    y = d.like("Relu", pointwise(d, x, 4))
    weight, bias = d.weight("weight", 4, 4, 3, 3), d.weight("bias", 4)
    z = d.one("Conv", [y.name, weight, bias], x.shape, 0, kernel_shape=[3, 3], pads=[1] * 4)
    z = d.like("Relu", d.one("Add", [x.name, z.name], x.shape, 0))
    architecture, tensors = d.finish([pooled(d, pointwise(d, z, 3))])
    tensors["n1.weight"][:] = 0  # constants, before padding
    tensors["n1.bias"][:] = [1, 2, 3, 4]
    tensors["n0.weight"][:2] = 0
    tensors["n0.bias"][:2] = 0
    tensors[weight][:2] += 1
    tensors["n6.weight"][:] = 1
    told = {row["layer"]: row["idle"] for row in plan_round(architecture, tensors, 3).why()}
    assert told == {
        "n0": {"added to a channel of n3 that n6 needs": 2},
        "n1": {
            "stands for the constants that n3 reads: padding keeps them out of its bias": 1,
            "widths go up to a multiple of 3": 2,
        },
        "n3": {},
        "n6": {},
    }
