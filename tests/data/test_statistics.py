"""Mean and deviation: exact for bytes, whatever the order and size of the part."""

from __future__ import annotations

from fractions import Fraction
from math import sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shifter.data.statistics import from_images, from_sums, sums_of
from shifter.errors import DataError


def of_bytes(stored):
    return from_sums(np.stack([sums_of(image) for image in stored]), stored[0, 0].size, 255.0)


@given(st.integers(0, 2**32 - 1), st.integers(2, 30), st.integers(1, 3), st.integers(0, 255))
def test_bytes_are_summed_exactly(seed, count, channels, low):
    random = np.random.default_rng(seed)
    stored = random.integers(low, 256, (count, channels, 3, 3), np.uint8)
    stored[0, :, 0, 0] = 255 - stored[0, :, 0, 1]
    means, deviations = of_bytes(stored)
    for channel in range(channels):
        values = [Fraction(int(v), 255) for v in stored[:, channel].ravel()]
        mean = sum(values) / len(values)
        variance = sum((v - mean) ** 2 for v in values) / len(values)
        assert means[channel] == pytest.approx(float(mean), rel=1e-14)
        assert deviations[channel] == pytest.approx(sqrt(variance), rel=1e-14)


def test_a_deviation_far_below_the_mean_does_not_vanish():
    stored = np.full((3000, 1, 16, 16), 255, np.uint8)
    stored[1234, 0, 3, 4] = 254
    (mean,), (deviation,) = of_bytes(stored)
    pixels = stored.size
    assert mean == pytest.approx(1 - 1 / (255 * pixels), rel=1e-15)
    assert deviation == pytest.approx(sqrt((1 / pixels) * (1 - 1 / pixels)) / 255, rel=1e-12)


def test_one_colour_everywhere_is_refused():
    stored = np.zeros((4, 2, 3, 3), np.uint8)
    stored[0, 0, 0, 0] = 9
    for statistics in (of_bytes, lambda images: from_images(images.astype(np.float32), 16.0)):
        with pytest.raises(DataError, match="channel 1 is the same in every pixel"):
            statistics(stored)


@given(st.integers(0, 2**32 - 1))
def test_both_ways_agree(seed):
    stored = np.random.default_rng(seed).integers(0, 256, (20, 3, 4, 4), np.uint8)
    assert np.allclose(of_bytes(stored), from_images(stored.astype(np.float32), 255.0), rtol=1e-6)
