"""What a layer costs is what its operator does, whatever the export noted down."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper

from shifter.pruning.cost import layer_costs
from shifter.pruning.plan import plan_round
from shifter.pruning.rebuild import rebuild_graph
from shifter.values import LayerCost

from .networks import random_network


def model(*nodes: onnx.NodeProto, weights: dict[str, tuple[int, ...]]) -> bytes:
    initializers = []
    for name, shape in weights.items():
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=name)
        initializers.append(tensor)
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 4, "h", "w"])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        initializers,
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("of", 1)]
    return helper.make_model(graph, opset_imports=opsets).SerializeToString()


def test_a_strided_grouped_convolution_and_a_linear_layer_by_hand():
    found = layer_costs(
        model(
            helper.make_node("Conv", ["images", "c.weight", "c.bias"], ["a"], group=2, strides=[2, 2]),
            helper.make_node("GlobalAveragePool", ["a"], ["b"]),
            helper.make_node("Flatten", ["b"], ["c"]),
            helper.make_node("Gemm", ["c", "fc.weight"], ["out"], transB=1),
            weights={"c.weight": (6, 2, 3, 3), "c.bias": (6,), "fc.weight": (10, 6)},
        ),
        (4, 9, 7),
    )
    assert found == (  # 9x7 without padding and every other position: 4x3
        LayerCost("c", "Conv", 6 * 4 * 3 * 2 * 3 * 3, 4 * (6 * 2 * 9 + 6), 4 * 6 * 4 * 3),
        LayerCost("fc", "Gemm", 10 * 6, 4 * 60, 4 * 10),
    )


def test_a_product_of_activations_has_no_weight_and_a_transposed_convolution_spreads_its_input():
    found = layer_costs(
        model(
            helper.make_node("ConvTranspose", ["images", "t.weight"], ["a"], strides=[2, 2]),
            helper.make_node("Transpose", ["a"], ["b"], perm=[0, 1, 3, 2]),
            helper.make_node("MatMul", ["a", "b"], ["out"], name="scores"),
            weights={"t.weight": (4, 3, 2, 2)},
        ),
        (4, 5, 6),
    )
    assert found == (
        LayerCost("t", "ConvTranspose", 4 * 5 * 6 * 3 * 2 * 2, 4 * 48, 4 * 3 * 10 * 12),
        LayerCost("scores", "MatMul", 3 * 10 * 10 * 12, 0, 4 * 3 * 10 * 10),
    )


def test_an_einsum_multiplies_along_all_its_axes_and_sizes_may_be_computed():
    """Queries times keys, as attention has it: (batch, rows, columns), whose batch comes from Shape."""
    nodes = [
        helper.make_node("Shape", ["images"], ["all"]),
        helper.make_node("Gather", ["all", "zero"], ["batch"]),
        helper.make_node("Concat", ["batch", "rest"], ["sizes"], axis=0),
        helper.make_node("Reshape", ["images", "sizes"], ["tokens"]),
        helper.make_node("Einsum", ["tokens", "tokens"], ["out"], equation="b i d, b j d -> b i j"),
        helper.make_node("Einsum", ["tokens", "tokens"], ["more"], equation="...id,...jd->...ij"),
        helper.make_node(
            "Constant", [], ["zero"], value=helper.make_tensor("z", TensorProto.INT64, [1], [0])
        ),
        helper.make_node(
            "Constant", [], ["rest"], value=helper.make_tensor("r", TensorProto.INT64, [2], [10, -1])
        ),
    ]
    known, unknown = layer_costs(model(*nodes[-2:], *nodes[:-2], weights={}), (4, 5, 6))
    assert (known.macs, known.output_bytes) == (10 * 10 * 12, 4 * 100)
    assert unknown.macs is None, "an ellipsis is not followed"


def test_what_the_shapes_do_not_tell_is_not_guessed():
    (conv,) = layer_costs(
        model(
            helper.make_node("Unheard", ["images"], ["a"], domain="of"),
            helper.make_node("Conv", ["a", "c.weight"], ["out"]),
            weights={"c.weight": (6, 4, 3, 3)},
        ),
        (4, 9, 9),
    )
    assert conv == LayerCost("c", "Conv", None, 4 * 6 * 4 * 9, None)


@pytest.mark.parametrize("family", ["vgg", "resnet"])
def test_a_reduced_graph_costs_what_its_smaller_tensors_say(family):
    architecture, tensors, images = random_network(family, 5)
    before = {cost.name: cost for cost in layer_costs(architecture, images.shape[1:])}
    plan = plan_round(architecture, tensors, 1)
    after = layer_costs(rebuild_graph(architecture, plan), images.shape[1:])
    parts = {part.layer.name: part for part in plan.layers}
    assert {cost.name for cost in after} == set(parts)
    for cost in after:
        (out, into), part = parts[cost.name].widths, parts[cost.name]
        share = len(part.outputs) * len(part.inputs) / (out * into)
        assert cost.macs == pytest.approx(before[cost.name].macs * share)
        assert cost.output_bytes == pytest.approx(before[cost.name].output_bytes * len(part.outputs) / out)
