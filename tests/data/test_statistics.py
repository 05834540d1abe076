"""Mean and deviation: exact for bytes, whatever the order and size of the part."""

from __future__ import annotations

from fractions import Fraction
from math import sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shifter.data import Split
from shifter.data.statistics import mean_and_std
from shifter.errors import DataError


@given(st.integers(0, 2**32 - 1), st.integers(2, 30), st.integers(1, 3), st.integers(0, 255))
def test_bytes_are_summed_exactly(seed, count, channels, low):
    random = np.random.default_rng(seed)
    stored = random.integers(low, 256, (count, channels, 3, 3), np.uint8)
    stored[0, :, 0, 0] = 255 - stored[0, :, 0, 1]
    where = random.permutation(count)[: count // 2 + 1]
    where = np.union1d(where, [0])[::-1]
    means, deviations = mean_and_std(Split(stored, where, np.zeros(len(where), np.int64)), 255.0)
    for channel in range(channels):
        values = [Fraction(int(v), 255) for v in stored[where, channel].ravel()]
        mean = sum(values) / len(values)
        variance = sum((v - mean) ** 2 for v in values) / len(values)
        assert means[channel] == pytest.approx(float(mean), rel=1e-14)
        assert deviations[channel] == pytest.approx(sqrt(variance), rel=1e-14)


def test_a_deviation_far_below_the_mean_does_not_vanish():
    stored = np.full((3000, 1, 16, 16), 255, np.uint8)
    stored[1234, 0, 3, 4] = 254
    (mean,), (deviation,) = mean_and_std(Split.of(stored, np.zeros(3000, np.int64)), 255.0)
    pixels = stored.size
    assert mean == pytest.approx(1 - 1 / (255 * pixels), rel=1e-15)
    assert deviation == pytest.approx(sqrt((1 / pixels) * (1 - 1 / pixels)) / 255, rel=1e-12)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_one_colour_everywhere_is_refused(dtype):
    stored = np.zeros((4, 2, 3, 3), dtype)
    stored[0, 0, 0, 0] = 9
    with pytest.raises(DataError, match="channel 1 is the same in every pixel"):
        mean_and_std(Split.of(stored, np.zeros(4, np.int64)), 16.0)
