"""The promise for networks that nobody would build, and the faults that such networks have shown."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from shifter.pruning import zeros
from shifter.pruning.plan import PrunePlan, plan_round
from shifter.pruning.rebuild import rebuild_graph, rebuild_tensors

from .any_network import draw, mask
from .handmade import answers, assert_same, pointwise, pooled, reduced, start
from .reducing import reduce


def size_of(tensors):
    return sum(array.size for array in tensors.values())


def of_any_size(architecture):
    """The same network, with an image size and inner shapes that the graph does not say."""
    model = onnx.ModelProto.FromString(architecture)
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        for axis, size in enumerate(value.type.tensor_type.shape.dim):
            if axis > 1:
                size.dim_param = f"size{axis}"
    return model.SerializeToString()


@pytest.mark.parametrize("first", range(0, 120, 20))
def test_a_reduced_network_computes_what_its_sparse_one_does(first):
    for seed in range(first, first + 20):
        architecture, dense, images = draw(seed)
        rng = np.random.default_rng(seed + 1)
        sparse = mask(dense, rng)
        architecture = of_any_size(architecture) if seed % 3 == 0 else architecture
        images = np.concatenate([images, 2 * rng.normal(size=images.shape)])
        reference = answers(architecture, sparse, images)
        made = {}
        for round_to in (1, 8):
            plan, graph, tensors = made[round_to] = reduce(architecture, sparse, round_to)
            assert_same(answers(graph, tensors, images), reference)
            again = PrunePlan.from_json(json.loads(json.dumps(plan.to_json())))
            assert rebuild_graph(architecture, again) == graph
        assert (
            size_of(made[1][2]) <= size_of(made[8][2]) <= size_of(sparse) + biases(architecture, made[8][0])
        )
        for round_to, (_, graph, tensors) in made.items():
            _, second, fewer = reduce(graph, tensors, round_to)
            assert_same(answers(second, fewer, images), reference)
            assert size_of(fewer) == size_of(tensors), "one reduction removes all"


def biases(architecture, plan):
    """How much a reduction may add: biases of layers without one, constants in place of operands."""
    return sum(p.widths[0] for p in plan.layers) + sum(len(part.values) for part in plan.constants)


def test_a_layer_is_the_same_however_its_weights_are_cut_into_blocks(monkeypatch):
    """Blocks that hold no channel of some group included."""
    for seed in range(60):
        architecture, dense, _ = draw(seed)
        sparse = mask(dense, np.random.default_rng(seed + 1))
        plan = plan_round(architecture, sparse, 1)
        whole = rebuild_tensors(architecture, plan, sparse, np.float64)
        with monkeypatch.context() as patched:
            patched.setattr(zeros, "BLOCK", 1)
            for name, array in rebuild_tensors(architecture, plan, sparse, np.float64).items():
                np.testing.assert_allclose(array, whole[name], rtol=1e-12, atol=1e-14)


def test_of_two_factors_that_are_zero_one_stays_zero():
    """HardSigmoid makes zeros of -9; of an emptied layer's zeros it makes 0.5."""
    d, x = start()
    factors = [d.like("HardSigmoid", pointwise(d, x, 4)) for _ in (0, 1)]
    y = d.one("Mul", [one.name for one in factors], x.shape, 0)
    y = d.one("Add", [x.name, y.name], x.shape, 0)
    reduced(d, pooled(d, pointwise(d, y, 3)), "n1", "n3", bias=-9.0)


def test_a_norm_after_a_matmul():
    """nn.Linear without a bias, then BatchNorm1d."""
    d, x = start()
    x = d.one("MatMul", [pooled(d, x).name, d.weight("weight", 4, 4)], (4,), 0)
    names = [d.weight(key, 4, mean=3.0) for key in ("scale", "shift", "mean", "var")]
    x = d.like("Relu", d.like("BatchNormalization", x, *names))
    reduced(d, d.one("Gemm", [x.name, d.weight("weight", 4, 3)], (3,), 0))


def test_a_parameter_added_after_a_norm_is_no_bias_of_the_layer_before():
    d, x = start()
    x = d.one("MatMul", [pooled(d, x).name, d.weight("weight", 4, 4)], (4,), 0)
    names = [d.weight(key, 4, mean=3.0) for key in ("scale", "shift", "mean", "var")]
    x = d.like("Add", d.like("BatchNormalization", x, *names), d.weight("bias", 4))
    reduced(d, d.one("Gemm", [x.name, d.weight("weight", 4, 3)], (3,), 0))


def test_a_bias_of_a_matmul_with_more_axes():
    d, x = start()
    x = d.one("MatMul", [pooled(d, x).name, d.weight("weight", 4, 4)], (4,), 0)
    reduced(d, d.like("Add", x, d.weight("bias", 1, 4)))


def test_a_bias_of_a_gemm_that_is_one_number():
    d, x = start()
    names = [pooled(d, x).name, d.weight("weight", 4, 3), d.weight("bias", 1)]
    plan = reduced(d, d.one("Gemm", names, (3,), 0))
    assert list(plan.untouched.values()) == ["the bias of this Gemm is not one number per channel"]


def test_what_the_branches_of_an_if_read_by_name_stays():
    d, x = start()

    def branch(name, op):
        result = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *x.shape])
        return helper.make_graph([helper.make_node(op, [x.name], [name])], name, [], [result])

    choice = d.literal(True, bool)
    y = d.one("If", [choice], x.shape, 0, then_branch=branch("yes", "Relu"), else_branch=branch("no", "Tanh"))
    plan = reduced(d, pooled(d, pointwise(d, y, 3)))
    assert list(plan.untouched.values()) == ["If is not an operator that is followed"]
    assert len(plan.layers[0].outputs) == 4


def test_a_split_of_an_old_opset_keeps_its_sizes_where_they_were():
    d, x = start()
    one, other = d.add("Split", [x.name], [(2, 5, 5)] * 2, 0, axis=1, split=[2, 2])
    y = d.one("Concat", [other.name, one.name], x.shape, 0, axis=1)
    y = d.one("Add", [x.name, y.name], x.shape, 0)
    _ = d.one("Relu", [y.name], x.shape, 0)
    z = pointwise(d, d.values[-1], 3)
    d.tensors["n0.weight"][2:] = 0
    plan = reduced(d, d.one("GlobalAveragePool", [z.name], (3, 1, 1), 0), opset=11)
    assert not plan.untouched


def test_a_flatten_of_channels_that_are_last():
    d, x = start()
    x = d.one("Transpose", [x.name], (5, 5, 4), 2, perm=[0, 2, 3, 1])
    x = d.one("Reshape", [x.name, d.literal([0, -1])], (100,), 0)
    plan = reduced(d, d.one("Gemm", [x.name, d.weight("weight", 100, 3)], (3,), 0))
    assert plan.layers[1].inputs == tuple(i for i in range(100) if i % 4 >= 2)


def test_an_output_that_no_image_reaches():
    d, x = start()
    y = pooled(d, x)
    z = d.one("Identity", [d.literal(np.ones((1, 3)), np.float32)], (3,), 0)
    architecture, tensors = d.finish([y, z])
    graph = rebuild_graph(architecture, plan := plan_round(architecture, tensors, 1))
    images = np.random.default_rng(1).normal(size=(5, 2, 5, 5))
    made = rebuild_tensors(architecture, plan, tensors, np.float64)
    assert_same(answers(graph, made, images), answers(architecture, tensors, images))


@pytest.mark.parametrize("op", ["BatchNormalization", "Mul"])
def test_a_scale_of_zero_makes_a_constant_of_any_channel(op):
    """As network slimming leaves a DenseNet: norms before convolutions, with scales of zero."""
    d, x = start()
    scale = d.weight("scale", 4) if op == "BatchNormalization" else d.weight("scale", 4, 1, 1)
    d.tensors[scale][2] = 0
    rest = [d.weight(key, 4, mean=3.0) for key in ("shift", "mean", "var")] if op != "Mul" else []
    x = d.like("Relu", d.like(op, d.like("Relu", x), scale, *rest))
    plan = reduced(d, pooled(d, pointwise(d, x, 3)))
    assert plan.layers[0].outputs == (3,)
