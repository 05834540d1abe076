"""The promise: a reduced network computes what its masked network computes, and is smaller."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from shifter.errors import CheckpointError, GraphError, InexactError
from shifter.pruning.exactness import check_exactness, evaluate_float64, relative_error
from shifter.pruning.plan import PrunePlan, plan_round
from shifter.values import Exactness

from .networks import Builder, mask_randomly, random_network
from .reducing import FLOAT64_BOUND, dead_filters, error_of, reduce, run_float32, variation


def images_like(images, seed):
    """The real ones and random ones."""
    return np.concatenate([images, np.random.default_rng(seed).normal(size=(3, *images.shape[1:]))])


@pytest.mark.parametrize("family", ["vgg", "resnet"])
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32), round_to=st.sampled_from([1, 2, 8]))
def test_a_reduced_network_computes_what_its_sparse_one_does(family, seed, round_to):
    architecture, dense, images = random_network(family, seed)
    sparse = mask_randomly(dense, np.random.default_rng(seed + 1))
    images = images_like(images, seed)
    answers = evaluate_float64(architecture, sparse, images)
    assume(variation(answers) > 1e-5 or variation(answers) < 1e-14)  # alive, or collapsed for good
    assert error_of(architecture, sparse, images, round_to) <= FLOAT64_BOUND


@pytest.mark.parametrize("family", ["vgg", "resnet"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32))
def test_rounded_to_float32_it_is_as_close_as_the_sparse_one_itself(family, seed):
    architecture, dense, images = random_network(family, seed)
    sparse = mask_randomly(dense, np.random.default_rng(seed + 1))
    images = images_like(images, seed).astype(np.float32)
    answers = evaluate_float64(architecture, sparse, images)
    # Where the answer hardly depends on the image, float32 itself is further away than the bound.
    assume(variation(answers) > 1e-2)
    _, graph, reduced = reduce(architecture, sparse, round_to=8)
    found = check_exactness("random", (architecture, sparse), (graph, reduced), images, run_float32)
    assert found.images == len(images)
    assert found.refusal is None


@pytest.mark.parametrize("family", ["vgg", "resnet"])
@pytest.mark.parametrize("seed", range(20))
def test_no_tensor_grows_and_a_plan_survives_json(family, seed):
    architecture, dense, _ = random_network(family, seed)
    sparse = mask_randomly(dense, np.random.default_rng(seed))
    plan, _, reduced = reduce(architecture, sparse, round_to=8)
    assert PrunePlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert not plan.untouched
    for part in plan.layers:
        before = sparse[part.layer.weight].shape
        assert all(a <= b for a, b in zip(reduced[part.layer.reduced_weight].shape, before, strict=True))


def test_constants_before_a_padded_convolution_share_one_carrier():
    architecture, tensors, images = dead_filters(np.random.default_rng(0))
    plan, _, reduced = reduce(architecture, tensors)
    first, second, _ = plan.layers
    assert len(first.outputs) == 8 - 3 + 1, "three constants become one carrier"
    assert plan.carriers == 1
    assert len(first.constant_outputs) == 1
    assert reduced["l2.weight"].shape[1] == 6
    assert {channel for channel, _, _ in second.carried_inputs} == {1, 3, 5}
    assert error_of(architecture, tensors, images) <= FLOAT64_BOUND


def test_constants_before_an_unpadded_convolution_fold_into_its_bias():
    architecture, tensors, images = dead_filters(np.random.default_rng(0), pad=0)
    plan, _, _ = reduce(architecture, tensors)
    assert len(plan.layers[0].outputs) == 5
    assert plan.carriers == 0
    assert error_of(architecture, tensors, images) <= FLOAT64_BOUND


def test_channels_that_are_zero_after_their_activation_need_no_carrier():
    architecture, tensors, images = dead_filters(np.random.default_rng(0), bias=-1.0)
    plan, _, _ = reduce(architecture, tensors)
    assert len(plan.layers[0].outputs) == 5
    assert plan.carriers == 0
    assert error_of(architecture, tensors, images) <= FLOAT64_BOUND


def test_what_nobody_reads_goes_back_to_its_source():
    """Dead consumers, to a fixed point: the chain that feeds only them goes with them."""
    rng = np.random.default_rng(0)
    builder = Builder(rng, rng.normal(size=(4, 2, 7, 7)))
    x = builder.activation(builder.conv("images", 8))
    x = builder.activation(builder.conv(x, 8))
    builder.linear(builder.flatten(x, average=True), 5)
    architecture, tensors = builder.finish(builder.nodes[-1].output[0])
    (linear,) = (name for name, array in tensors.items() if array.ndim == 2)
    second = [name for name, array in tensors.items() if array.ndim == 4][1]
    tensors[linear][:, 2:] = 0  # only channels 0 and 1 of the second convolution are read
    tensors[second][:2, 3:] = 0  # and those read only channels 0, 1, 2 of the first
    plan, _, reduced = reduce(architecture, tensors)
    assert [len(part.outputs) for part in plan.layers] == [3, 2, 5]
    assert error_of(architecture, tensors, builder.images) <= FLOAT64_BOUND
    assert reduced[second].shape == (2, 3, 3, 3)


def test_a_residual_channel_goes_only_if_every_branch_lets_it():
    rng = np.random.default_rng(3)
    builder = Builder(rng, rng.normal(size=(4, 2, 7, 7)))
    stem = builder.activation(builder.conv("images", 6, bias=True, norm=False))
    branch = builder.conv(stem, 6, bias=True, norm=False)
    joined = builder.activation(builder.join(stem, branch))
    builder.linear(builder.flatten(joined, average=True), 5)
    architecture, tensors = builder.finish(builder.nodes[-1].output[0])
    convs = [name for name, array in tensors.items() if array.ndim == 4]
    tensors[convs[1]][[0, 1]] = 0  # the branch is dead on 0 and 1, the stem only on 1 and 2
    tensors[convs[0]][[1, 2]] = 0
    plan, _, _ = reduce(architecture, tensors)
    kept = set(plan.layers[0].outputs)
    assert {0, 3, 4, 5} <= kept
    assert kept == set(plan.layers[1].outputs) == set(plan.layers[2].inputs)
    assert len(kept) <= 5 + 1, "channel 1 is a constant in both branches: gone, or the carrier"
    assert error_of(architecture, tensors, builder.images) <= FLOAT64_BOUND


@pytest.mark.parametrize("family", ["vgg", "resnet"])
@pytest.mark.parametrize("seed", range(8))
def test_a_collapsed_layer_becomes_its_constant(family, seed):
    architecture, tensors, images = random_network(family, seed)
    for name, array in tensors.items():
        if array.ndim == 4:
            for victim in ([name], [n for n, a in tensors.items() if a.ndim == 4]):
                collapsed = tensors | {v: np.zeros_like(tensors[v]) for v in victim}
                _, graph, reduced = reduce(architecture, collapsed)
                answers = evaluate_float64(graph, reduced, images)
                sparse = evaluate_float64(architecture, collapsed, images)
                assert np.isfinite(answers).all()
                np.testing.assert_allclose(answers, sparse, rtol=1e-9, atol=1e-9)
                assert relative_error(answers, sparse) <= FLOAT64_BOUND


@pytest.mark.parametrize("round_to", [1, 4, 8, 16])
def test_widths_are_rounded_up_and_never_beyond_what_was_there(round_to):
    rng = np.random.default_rng(1)
    builder = Builder(rng, rng.normal(size=(4, 2, 7, 7)))
    x = builder.activation(builder.conv("images", 20))
    x = builder.activation(builder.conv(x, 13))
    builder.linear(builder.flatten(x, average=True), 5)
    architecture, tensors = builder.finish(builder.nodes[-1].output[0])
    first = next(name for name, array in tensors.items() if array.ndim == 4)
    tensors[first][:11] = 0
    exact, *_ = reduce(architecture, tensors)
    plan, *_ = reduce(architecture, tensors, round_to)
    for part, tight in zip(plan.layers[:2], exact.layers[:2], strict=True):
        wanted = -(-len(tight.outputs) // round_to) * round_to
        assert len(part.outputs) == min(part.widths[0], wanted)
    assert error_of(architecture, tensors, builder.images, round_to) <= FLOAT64_BOUND


def test_the_measure_divides_by_the_variation_over_images():
    """A network whose answer hardly moves cannot hide a fault behind the size of its answer."""
    reference = np.full((8, 3), 1000.0) + np.random.default_rng(0).normal(size=(8, 3))
    constant = np.broadcast_to(reference.mean(axis=0), reference.shape)
    assert relative_error(constant, reference) == pytest.approx(1.0)
    assert relative_error(reference, reference) == 0.0
    assert relative_error(reference * np.nan, reference) == float("inf")


def test_a_variant_that_differs_is_refused_with_the_figures():
    architecture, tensors, images = dead_filters(np.random.default_rng(0))
    _, graph, reduced = reduce(architecture, tensors)
    reduced["l2.weight"] = reduced["l2.weight"] * (1 + 1e-8)
    with pytest.raises(InexactError, match=r"variant 64x differs .* in float64; at most 1e-10"):
        check_exactness("64x", (architecture, tensors), (graph, reduced), images, run_float32)


def test_a_variant_that_float32_computes_otherwise_is_not_published():
    architecture, tensors, images = dead_filters(np.random.default_rng(0))
    _, graph, reduced = reduce(architecture, tensors)

    def imprecise(graph_, tensors_, images_):
        answers = run_float32(graph_, tensors_, images_)
        return answers if graph_ == architecture else answers + np.float32(1e-3) * answers[::-1]

    found = check_exactness("64x", (architecture, tensors), (graph, reduced), images, imprecise)
    assert re.search(r"differs .* in float32, more than", found.refusal)


@pytest.mark.parametrize(("family", "seed"), [("resnet", 10936), ("vgg", 10721)])
def test_a_network_that_hardly_looks_at_its_images_is_refused_not_blamed_on_the_reduction(family, seed):
    architecture, dense, images = random_network(family, seed)
    sparse = mask_randomly(dense, np.random.default_rng(seed + 1))
    images = images_like(images, seed).astype(np.float32)
    assert variation(evaluate_float64(architecture, sparse, images)) > 0
    _, graph, reduced = reduce(architecture, sparse, round_to=8)
    found = check_exactness("64x", (architecture, sparse), (graph, reduced), images, run_float32)
    assert found.sparse_float32 > Exactness.FLOAT32_BOUND
    assert "hardly depend on the image" in found.refusal


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("l0.weight", lambda a: a * np.nan, "'l0.weight' holds NaN or infinite"),
        ("l0.bias", lambda a: a[:-1], r"'l0.bias' has shape \(7,\), not \(8,\)"),
        ("l0.weight", lambda a: a[0], "is no Conv weight"),
        ("l2.weight", lambda a: a[:, :3], "'l2.weight' reads 3 channels, but the architecture gives it 8"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(name, change, message):
    architecture, tensors, _ = dead_filters(np.random.default_rng(0))
    with pytest.raises(CheckpointError, match=message):
        plan_round(architecture, tensors | {name: change(tensors[name])})
    del tensors[name]
    with pytest.raises(CheckpointError, match=f"no tensor '{name}'"):
        plan_round(architecture, tensors)


@pytest.mark.parametrize("architecture", [b"not a model", b""])
def test_what_is_no_model_is_refused(architecture):
    with pytest.raises(GraphError, match="not an ONNX model"):
        plan_round(architecture, {})


def test_a_slope_that_all_channels_share_is_followed():
    rng = np.random.default_rng(2)
    builder = Builder(rng, rng.normal(size=(4, 2, 7, 7)))
    x = builder.conv("images", 8, bias=True, norm=False)
    value = builder.values[x]
    slope = builder.tensor("slope", np.full((1, 1, 1), 0.25))
    x = builder.add("PRelu", [x, slope], np.where(value < 0, 0.25 * value, value))
    x = builder.activation(builder.conv(x, 6, bias=True, norm=False))
    builder.linear(builder.flatten(x, average=True), 5)
    architecture, tensors = builder.finish(builder.nodes[-1].output[0])
    tensors["l0.weight"][:4], tensors["l0.bias"][:4] = 0, -1.0
    plan, _, _ = reduce(architecture, tensors)
    assert len(plan.layers[0].outputs) == 5, "the four that vary, and one that carries the constants"
    assert error_of(architecture, tensors, builder.images) <= FLOAT64_BOUND
