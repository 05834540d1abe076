"""The promise, for every family: a reduced network computes what its masked network computes.

One small network a family; ``benchmarks/reduction.py`` goes through the whole list at full size.
"""

from __future__ import annotations

import functools
import re

import numpy as np
import pytest

from shifter.pruning.exactness import check_exactness, evaluate_float64, relative_error

from .families import family, mask
from .members import FAMILIES
from .reducing import one_by_one, reduce, run_float32, variation

FLOAT64_BOUND = 1e-10  # as promised; written out, so that loosening it in the code does not pass
FLOAT32_FACTOR, FLOAT32_BOUND = 4, 1e-4

ALIVE = 0.02
"""Variation over images below which float32's own rounding would be most of what is measured."""

ROUNDED = {"vit", "swin", "maxvit"}
"""Their graphs hold constants (attention's scale) that torch computes in float64 and ONNX in float32."""

LONG = {
    *("vgg", "resnet-basic", "resnet-bottleneck", "wide-resnet", "regnet-x", "googlenet", "mobilenet-v2"),
    *("mnasnet", "efficientnet-v2", "swin", "swin-v2", "maxvit"),
}
"""Left to `make test-long`: slow to export, or like another."""


def families(names):
    marks = {True: pytest.mark.long, False: ()}
    return pytest.mark.parametrize("name", [pytest.param(name, marks=marks[name in LONG]) for name in names])


every_family = families(FAMILIES)
either_mask = pytest.mark.parametrize("aligned", [False, True], ids=["apart", "aligned"])
at_other_size = families(name for name, (_, _, other) in FAMILIES.items() if other)


@functools.cache
def sparse(name, aligned):
    """A mask under which the answers still depend on the image."""
    of = family(name)
    for seed in range(8):
        rng = np.random.default_rng(seed)
        masked = mask(of.tensors, rng, aligned=aligned, mercy=seed / 10)
        if variation(evaluate_float64(of.architecture, masked, of.images(8))) > ALIVE:
            return masked
    raise AssertionError(f"{name} is dead under every mask")


@functools.cache
def reduced(name, aligned, round_to):
    return reduce(family(name).architecture, sparse(name, aligned), round_to)


@every_family
def test_the_evaluator_computes_what_the_module_does(name):
    of, tensors = family(name), sparse(name, False)
    for size in filter(None, (of.size, of.other)):
        images = of.images(4, size)
        found = evaluate_float64(of.architecture, tensors, images)
        bound = 1e-6 if name in ROUNDED else 1e-12
        assert relative_error(found, of.answers(tensors, images)) <= bound


@every_family
@either_mask
@pytest.mark.parametrize("round_to", [1, 8])
def test_a_reduced_network_computes_what_its_sparse_one_does(name, aligned, round_to):
    of, tensors, small = family(name), sparse(name, aligned), reduced(name, aligned, round_to)
    images = of.images(7, seed=1)
    wanted = evaluate_float64(of.architecture, tensors, images)
    assert relative_error(evaluate_float64(small.graph, small.tensors, images), wanted) <= FLOAT64_BOUND
    assert relative_error(one_by_one(small.graph, small.tensors, images), wanted) <= FLOAT64_BOUND


@at_other_size
@either_mask
def test_at_another_size_too(name, aligned):
    of, small = family(name), reduced(name, aligned, 1)
    images = of.images(4, of.other, seed=1)
    wanted = of.answers(sparse(name, aligned), images)
    assert relative_error(evaluate_float64(small.graph, small.tensors, images), wanted) <= FLOAT64_BOUND


@every_family
@either_mask
def test_in_float32_it_is_as_close_as_the_sparse_one_itself(name, aligned):
    of, tensors, small = family(name), sparse(name, aligned), reduced(name, aligned, 8)
    images = of.images(16, seed=2)
    found = check_exactness(
        name, (of.architecture, tensors), (small.graph, small.tensors), images, run_float32
    )
    assert found.float32 <= FLOAT32_FACTOR * found.sparse_float32
    assert found.float32 <= FLOAT32_BOUND


@every_family
@either_mask
def test_it_is_smaller(name, aligned):
    small = reduced(name, aligned, 1)
    before = sum(value.size for value in sparse(name, aligned).values())
    assert small.parameters < (0.95 if name in HIDDEN else 0.9) * before
    assert small.parameters <= reduced(name, aligned, 8).parameters <= before


HIDDEN = {
    "convnext": r"block\.3\.weight",
    "vit": r"\.mlp\.0\.weight",
    "swin": r"\.mlp\.0\.weight",
    "swin-v2": r"\.mlp\.0\.weight",
    "maxvit": r"mlp_layer\.1\.weight",
}
"""The layers that write the hidden neurons of a feed-forward block."""


@families(HIDDEN)
def test_hidden_neurons_of_feed_forward_blocks_go(name):
    tensors = sparse(name, False)
    widths = {part.layer.weight: len(part.outputs) for part in reduced(name, False, 1).plan.layers}
    found = [tensor for tensor in tensors if re.search(HIDDEN[name], tensor)]
    assert found
    for tensor in found:
        assert widths[tensor] <= np.any(tensors[tensor], axis=1).sum(), tensor
