"""The reference engine: NumPy in and out, and every variant of every family within the promise's bound."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper

from shifter.errors import EngineError
from shifter.portfolio import Portfolio, pack
from shifter.pruning.exactness import check_exactness, evaluate_float64, relative_error
from shifter.switching.engine import OnnxEngine
from shifter.switching.engines import Engine, make_engine
from shifter.switching.torch_engine import TorchEngine
from shifter.values import InputSpec, Profile, Variant

from ..pruning.families import CLASSES, family, mask
from ..pruning.reducing import reduce, run_float32
from ..pruning.test_families import every_family
from .conftest import of_tensors

IMAGES = np.random.default_rng(3).standard_normal((4, 1, 6, 6)).astype(np.float32)
FACTOR, BOUND = 4, 1e-4  # as promised (design.md); written out, so that loosening it does not pass
EPSILON = 1.2e-7


@functools.cache
def sparse(name: str) -> dict[str, dict[str, NDArray[np.float32]]]:
    """Sparse checkpoints of a portfolio by name: one under a mask that spares more, one that spares less."""
    of = family(name)
    rng = np.random.default_rng(1)
    return {
        "some": mask(of.tensors, rng, aligned=False, mercy=0.7),
        "many": mask(of.tensors, rng, aligned=True, mercy=0.3),
    }


def portfolio_of(name: str, a_profile: Profile) -> Portfolio:
    of = family(name)
    variants = []
    for variant, tensors in sparse(name).items():
        small = reduce(of.architecture, tensors, 8)
        found = check_exactness(
            variant, (of.architecture, tensors), (small.graph, small.tensors), of.images(4), run_float32
        )
        in_float32 = {
            key: value.astype(np.float32) if value.dtype.kind == "f" else value
            for key, value in small.tensors.items()
        }
        profile = of_tensors(replace(a_profile, exactness=found), in_float32)
        variants.append(Variant(variant, small.graph, in_float32, profile))
    spec = InputSpec(3, of.size, of.size, 255.0, (0.5,) * 3, (0.5,) * 3, tuple(map(str, range(CLASSES))))
    return Portfolio.open(pack(variants, spec, model=name, provenance={}))


@every_family
def test_both_engines_answer_as_the_sparse_checkpoint_does(name: str, five: dict[str, Profile]) -> None:
    of = family(name)
    portfolio = portfolio_of(name, five["v0"])
    images = of.images(16, seed=5)
    quick, reference = make_engine(), make_engine("torch")
    for variant in map(portfolio.inflate, portfolio.names):
        tensors = sparse(name)[variant.name]
        wanted = evaluate_float64(of.architecture, tensors, images)
        own = relative_error(OnnxEngine(of.architecture, tensors).run(images), wanted)
        bound = min(FACTOR * max(own, EPSILON), BOUND)
        engine = quick(variant)
        answers = {"quick": engine.run(images), "torch": reference(variant).run(images)}
        engine.optimise()
        answers["onnxruntime"] = engine.run(images)
        for kind, answer in answers.items():
            assert (type(answer), answer.dtype, answer.shape) == (np.ndarray, np.float32, (16, CLASSES))
            assert relative_error(answer, wanted) <= bound, (variant.name, kind)


@pytest.fixture
def engine(variants: dict[str, Variant]) -> Engine:
    return TorchEngine(variants["v2"].graph, variants["v2"].tensors)


def test_images_that_do_not_fit_are_refused(engine: Engine) -> None:
    for wrong in (IMAGES[:, :, :5], np.repeat(IMAGES, 3, axis=1), IMAGES[0], IMAGES.astype(np.float64)):
        with pytest.raises(EngineError, match="cannot answer"):
            engine.run(wrong)
    assert engine.run(IMAGES).shape == (4, 3)


def test_it_neither_changes_nor_keeps_what_it_is_given(variants: dict[str, Variant]) -> None:
    mine = {name: tensor.copy() for name, tensor in variants["v2"].tensors.items()}
    engine, images = TorchEngine(variants["v2"].graph, mine), IMAGES.copy()
    before = engine.run(images)
    assert np.array_equal(images, IMAGES)
    for tensor in mine.values():
        tensor.fill(np.nan)
    assert np.array_equal(engine.run(images), before)


def test_an_operator_that_it_does_not_have_is_named(variants: dict[str, Variant]) -> None:
    model = onnx.ModelProto.FromString(variants["v0"].graph)
    model.graph.node[1].op_type = "Hardmax"
    model.graph.node[1].name = "odd"
    with pytest.raises(EngineError, match=r"operator 'odd' is ONNX's Hardmax, .*it has Abs, Add"):
        TorchEngine(model.SerializeToString(), variants["v0"].tensors)


def test_an_operator_that_fails_is_named(variants: dict[str, Variant]) -> None:
    model = onnx.ModelProto.FromString(variants["v0"].graph)
    model.graph.node[3].attribute.append(helper.make_attribute("axis", 3))
    engine = TorchEngine(model.SerializeToString(), variants["v0"].tensors)
    with pytest.raises(EngineError, match=r"operator .* \(Gemm\) fails"):
        engine.run(IMAGES)


def test_older_graphs_and_broken_ones_are_refused(variants: dict[str, Variant]) -> None:
    old = onnx.ModelProto.FromString(variants["v0"].graph)
    old.opset_import[0].version = 11
    tensors = variants["v0"].tensors
    for graph, some, why in (
        (old.SerializeToString(), tensors, "opset 11"),
        (b"no graph", tensors, "no ONNX model"),
        (b"", tensors, "one input"),
        (variants["v0"].graph, {}, "does not have"),
        (variants["v0"].graph, {name: np.concatenate([t, t]) for name, t in tensors.items()}, "of shape"),
    ):
        with pytest.raises(EngineError, match=why):
            TorchEngine(graph, some)


GENERATOR = np.random.default_rng(0)
X = GENERATOR.standard_normal((2, 3, 7, 6)).astype(np.float32)
W = GENERATOR.standard_normal((4, 3, 3, 3)).astype(np.float32)
I = functools.partial(np.array, dtype=np.int64)  # noqa: E741
ODD = {
    "conv-uneven": ("Conv", [X, W], {"pads": [0, 1, 2, 0], "strides": [2, 1]}),
    "conv-same": ("Conv", [X, W], {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    "conv-valid": ("Conv", [X, W], {"auto_pad": "VALID", "dilations": [2, 1]}),
    "max-uneven": ("MaxPool", [X], {"kernel_shape": [3, 3], "pads": [0, 1, 2, 0], "strides": [2, 2]}),
    "max-ceil": ("MaxPool", [X], {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    "average-uneven": ("AveragePool", [X], {"kernel_shape": [3, 3], "pads": [0, 1, 2, 0]}),
    "average-counted": (
        "AveragePool",
        [X],
        {"kernel_shape": [3, 3], "pads": [0, 1, 2, 0], "count_include_pad": 1},
    ),
    "average-ceil": (
        "AveragePool",
        [X],
        {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2], "ceil_mode": 1},
    ),
    "split-uneven": ("Split", [X], {"axis": 2, "num_outputs": 3}),
    "split-sizes": ("Split", [X, I([1, 0, 2])], {"axis": 1}),
    "slice-back": ("Slice", [X, I([5, -1]), I([1, -100]), I([2, 3]), I([-2, -1])], {}),
    "slice-end": ("Slice", [X, I([-3]), I([2**62]), I([-1])], {}),
    "gather-back": ("Gather", [X, I([[0, -1], [2, 1]])], {"axis": 1}),
    "pad-axes": ("Pad", [X, I([1, 2]), np.float32(0.5), I([-1])], {}),
    "pad-less": ("Pad", [X, I([0, 0, -1, 1, 0, 0, 2, -2])], {}),
    "reshape-zero": ("Reshape", [X, I([0, -1, 6])], {}),
    "expand": ("Expand", [X[:, :1], I([3, 1, 1])], {}),
    "clip-high": ("Clip", [X, None, np.float32(0.3)], {}),
    "mean-all": ("ReduceMean", [X], {"keepdims": 0}),
    "l2": ("ReduceL2", [X, I([-1, 1])], {}),
    "softmax": ("Softmax", [X], {"axis": 1}),
    "gelu": ("Gelu", [X], {"approximate": "tanh"}),
    "hard": ("HardSigmoid", [X], {"alpha": 0.3, "beta": 0.4}),
    "prelu": ("PRelu", [X, W[0, :, :1, :1]], {}),
    "gemm": ("Gemm", [X[0, 0], X[0, 1], X[0, 0, 0]], {"transA": 1, "alpha": 0.5, "beta": 2.0}),
    "div-whole": ("Div", [I([-7, 7]), I([2, -2])], {}),
    "mod": ("Mod", [I([-7, 7]), I([3, -3])], {}),
    "fmod": ("Mod", [X, X[:, :1] + 3], {"fmod": 1}),
    "space": ("DepthToSpace", [np.tile(X, (1, 4, 1, 1))], {"blocksize": 2}),
    "space-crd": ("DepthToSpace", [np.tile(X, (1, 4, 1, 1))], {"blocksize": 2, "mode": "CRD"}),
    "group": ("GroupNormalization", [W, W[0, :, 0, 0], W[1, :, 0, 0]], {"num_groups": 3}),
    "instance": ("InstanceNormalization", [X, W[0, :, 0, 0], W[1, :, 0, 0]], {}),
    "squeeze": ("Squeeze", [X[:, :1], I([-3])], {}),
    "unsqueeze": ("Unsqueeze", [X[0], I([-1, 0])], {}),
    "einsum": ("Einsum", [X[0], X[1]], {"equation": "b i j, b k j -> b i k"}),
    "tile": ("Tile", [X, I([1, 2, 1, 3])], {}),
    "shape": ("Shape", [X], {"start": 1, "end": -1}),
}


@pytest.mark.parametrize("name", ODD)
def test_each_operators_odd_forms_are_those_of_the_standard(name: str) -> None:
    """Against ONNX Runtime, which the families' plain forms do not need."""
    import onnxruntime

    from shifter.onnx_proto import parse
    from shifter.switching.torch_engine import _Node

    op, given, attributes = ODD[name]
    count = len(given[1]) if name == "split-sizes" else attributes.get("num_outputs", 1)
    inputs = ["" if value is None else f"i{k}" for k, value in enumerate(given)]
    node = helper.make_node(op, inputs, [f"o{k}" for k in range(count)], **attributes)
    present = {n: np.asarray(v) for n, v in zip(inputs, given, strict=True) if v is not None}
    graph = helper.make_graph(
        [node],
        name,
        [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
            for n, v in present.items()
        ],
        [onnx.ValueInfoProto(name=name) for name in node.output],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    wanted = session.run(None, present)

    import torch

    mine = _Node(parse(model.SerializeToString()).graph.node[0], "cpu")
    tensors = [None if v is None else torch.from_numpy(np.array(v)) for v in given]
    found = [tensor.numpy() for tensor in mine.compute(mine.attributes, *tensors)]
    assert [f.shape for f in found] == [w.shape for w in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
