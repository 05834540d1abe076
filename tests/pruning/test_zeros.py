"""What is zero, and what is finite, against numpy's own slow answer, at the edges of the formats."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shifter.pruning.zeros import BLOCK, in_blocks, is_finite, nonzero_columns, nonzero_rows

EDGES = [0.0, -0.0, 1.0, -1.0, 1e-45, 1e-30, -1e-30, 3e38, -3e38]


@st.composite
def matrices(draw):
    rows, columns = draw(st.integers(1, 40)), draw(st.integers(1, 12))
    kind = draw(st.sampled_from([np.float32, np.float64]))
    values = draw(st.lists(st.sampled_from(EDGES), min_size=1, max_size=4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    matrix = rng.choice(np.array(values, kind), (rows, columns))
    matrix[rng.random(matrix.shape) < draw(st.sampled_from([0.0, 0.5, 0.95]))] = 0
    return matrix.T.copy().T if draw(st.booleans()) else matrix


@given(matrices(), st.integers(0, 2**32))
def test_zero_is_zero_in_every_bit_but_the_sign(matrix, seed):
    found, finite = nonzero_rows(matrix)
    assert finite
    np.testing.assert_array_equal(found, (matrix != 0).any(axis=1))
    rows = np.flatnonzero(np.random.default_rng(seed).random(matrix.shape[0]) < 0.6)
    np.testing.assert_array_equal(nonzero_columns(matrix, rows), (matrix[rows] != 0).any(axis=0))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, -1, BLOCK // 2])
@pytest.mark.parametrize("scale", [1.0, 1e38])
def test_what_is_not_finite_is_found_wherever_it_is(value, place, scale):
    array = np.full(BLOCK + 17, scale, np.float32)
    assert is_finite(array)
    assert nonzero_rows(array[None])[1]
    array[place] = value
    assert not is_finite(array)
    assert not is_finite(array[:100] if place == 0 else array[::-1])
    assert not nonzero_rows(array[None])[1]


@given(st.integers(0, 300), st.integers(0, 3 * BLOCK))
def test_blocks_hold_every_row_once_and_fit(rows, width):
    blocks = list(in_blocks(np.arange(rows), width))
    assert np.array_equal(np.concatenate([*blocks, np.arange(0)]), np.arange(rows))
    assert all(block.size == 1 or block.size * width <= BLOCK for block in blocks)
