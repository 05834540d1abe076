"""Masks are exact, shrink only, and keep the largest weights of the whole network."""

from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import nn

from shifter.errors import RecipeError
from shifter.training.ranking import dense_mask, rank_by_magnitude, tensors_to_prune
from shifter.values import CompressionRatio, Mask

# Few distinct values: ties, zeros and both signs are the rule.
values = st.sampled_from([-2.0, -1.0, -0.0, 0.0, 0.5, 1.0, 2.0])
networks = st.dictionaries(
    st.sampled_from(["a", "b", "c", "d"]),
    arrays.arrays(np.float32, arrays.array_shapes(max_dims=4, max_side=5), elements=values),
    min_size=1,
)
ratios = st.floats(1, 300).map(CompressionRatio)


def flat(tensors, mask):
    return np.concatenate([np.abs(tensors[name]).ravel() for name in mask])


def bits(mask):
    return np.concatenate([mask[name].ravel() for name in mask])


@given(networks, st.lists(ratios, min_size=1, max_size=4).map(sorted))
def test_each_mask_is_exact_within_the_last_and_keeps_the_largest(tensors, falling):
    mask = dense_mask(tensors, tensors)
    for ratio in falling:
        smaller = rank_by_magnitude(tensors, mask, ratio)
        assert smaller.kept == ratio.kept(mask.total)
        assert smaller.is_within(mask)
        dropped = flat(tensors, mask)[bits(mask) & ~bits(smaller)]
        if dropped.size:
            assert dropped.max() <= flat(tensors, mask)[bits(smaller)].min()
        mask = smaller


@given(networks, ratios)
def test_the_ranking_is_a_function_of_its_arguments(tensors, ratio):
    again = {name: tensors[name].copy() for name in reversed(tensors)}
    first = rank_by_magnitude(tensors, dense_mask(tensors, tensors), ratio)
    assert first.digest() == rank_by_magnitude(again, dense_mask(again, again), ratio).digest()


def test_equal_weights_go_by_position():
    tensors = {"b": np.ones(3, np.float32), "a": -np.ones(3, np.float32)}
    mask = rank_by_magnitude(tensors, dense_mask(tensors, tensors), CompressionRatio(1.5))
    assert mask["a"].tolist() == [True, True, True]
    assert mask["b"].tolist() == [True, False, False]


def test_a_kept_zero_ranks_before_a_pruned_weight():
    # A pruned weight is zero in training; a mask must not depend on that.
    tensors = {"a": np.array([9.0, 0.0, 1.0, 0.0], np.float32)}
    before = Mask({"a": np.array([False, True, True, False])})
    assert rank_by_magnitude(tensors, before, CompressionRatio(2))["a"].tolist() == [0, 1, 1, 0]


def test_all_tensors_are_ranked_together():
    tensors = {"small": np.full(4, 0.1, np.float32), "large": np.full(4, 1.0, np.float32)}
    mask = rank_by_magnitude(tensors, dense_mask(tensors, tensors), CompressionRatio(2))
    assert mask["large"].all()
    assert not mask["small"].any()


def test_tensors_outside_the_mask_are_not_ranked():
    tensors = {"weight": np.ones(4, np.float32), "bias": np.full(4, 9.0, np.float32)}
    mask = rank_by_magnitude(tensors, dense_mask(tensors, ["weight"]), CompressionRatio(2))
    assert list(mask) == ["weight"]
    assert mask.kept == 2


def test_weights_cannot_come_back():
    tensors = {"a": np.ones(8, np.float32)}
    quarter = rank_by_magnitude(tensors, dense_mask(tensors, tensors), CompressionRatio(4))
    with pytest.raises(ValueError, match="2x keeps 4 of 8 weights, but only 2 are left"):
        rank_by_magnitude(tensors, quarter, CompressionRatio(2))


def test_weights_that_are_no_numbers_are_refused():
    tensors = {"a": np.array([1.0, np.nan], np.float32)}
    with pytest.raises(ValueError, match="not numbers"):
        rank_by_magnitude(tensors, dense_mask(tensors, tensors), CompressionRatio(2))


def network(**layers):
    return nn.Sequential(OrderedDict(layers))


def test_excluded_tensors_are_left_out():
    small = network(
        stem=nn.Conv2d(1, 2, 3), norm=nn.BatchNorm2d(2), middle=nn.Linear(2, 2), end=nn.Linear(2, 2)
    )
    assert tensors_to_prune(small, []) == ("end.weight", "middle.weight", "stem.weight")
    assert tensors_to_prune(small, ["stem.weight"]) == ("end.weight", "middle.weight")
    assert tensors_to_prune(small, ["last-linear"]) == ("middle.weight", "stem.weight")
    assert tensors_to_prune(small, ["last-linear", "end.weight"]) == ("middle.weight", "stem.weight")


def test_an_unknown_exclusion_is_refused_with_the_nearest_name():
    small = network(stem=nn.Conv2d(1, 2, 3), classifier=nn.Linear(2, 2))
    with pytest.raises(RecipeError, match=r"'clasifier\.weight'; did you mean classifier\.weight\?"):
        tensors_to_prune(small, ["clasifier.weight"])
    with pytest.raises(RecipeError, match="'last_linear'; did you mean last-linear"):
        tensors_to_prune(small, ["last_linear"])
    with pytest.raises(RecipeError, match=r"'zzz'; known are classifier\.weight, stem\.weight"):
        tensors_to_prune(small, ["zzz"])
    with pytest.raises(RecipeError, match="has no linear layer"):
        tensors_to_prune(network(stem=nn.Conv2d(1, 2, 3)), ["last-linear"])


def test_something_has_to_be_left_to_prune():
    with pytest.raises(RecipeError, match="leave at least one"):
        tensors_to_prune(network(end=nn.Linear(2, 2)), ["last-linear"])
