"""It really reduces: a small network, widened by channels that can go, comes back as small as it was.

What may be left is a carrier for each space that a padded layer reads. Nothing here asks the planner
what it takes for a space.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from shifter.models.export import export_architecture
from shifter.pruning.exactness import evaluate_float64, relative_error
from shifter.values import InputSpec

from .channel_spaces import CASES
from .families import checkpoint, photographs
from .reducing import one_by_one, reduce, variation
from .widening import widen

SIZE = 16


@functools.cache
def exported(name):
    """The wide network's architecture: of its weights it holds none."""
    spec = InputSpec(3, SIZE, SIZE, 255.0, (0.0,) * 3, (1.0,) * 3, tuple("abcde"))
    return export_architecture(widen(CASES[name](), SIZE, 0).wide, spec)


def answers(network, images):
    with torch.no_grad():
        return network.double()(torch.from_numpy(images)).numpy()


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", CASES)
def test_what_was_widened_is_as_narrow_as_before(name, seed):
    made = widen(CASES[name](), SIZE, seed)
    images = photographs(np.random.default_rng(seed), 5, SIZE)
    wanted = answers(made.small, images)
    assert variation(wanted) > 1e-3
    assert relative_error(answers(made.wide, images), wanted) < 1e-12, "the wide one is another function"
    tensors = checkpoint(made.wide.float())
    assert made.too_wide(tensors) == made.allowed.keys(), "doing nothing would pass"

    small = reduce(exported(name), tensors, round_to=1)
    assert {weight for weight, sizes in made.allowed.items() if len(sizes) > 1} <= small.tensors.keys()
    assert made.too_wide(small.tensors) == set()
    assert relative_error(evaluate_float64(small.graph, small.tensors, images), wanted) <= 1e-10


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", CASES)
def test_constants_go_and_are_counted(name, seed):
    made = widen(CASES[name](), SIZE, seed, undone=False)
    tensors = checkpoint(made.wide)
    images = photographs(np.random.default_rng(seed), 5, SIZE)
    wanted = answers(made.wide, images)
    small = reduce(exported(name), tensors, round_to=1)
    assert made.too_wide(small.tensors) == set()
    assert relative_error(evaluate_float64(small.graph, small.tensors, images), wanted) <= 1e-10
    assert relative_error(one_by_one(small.graph, small.tensors, images), wanted) <= 1e-10
