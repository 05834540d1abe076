"""Mean and deviation of a part's pixels, channel by channel."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from shifter.errors import DataError

MeanAndStd = tuple[tuple[float, ...], tuple[float, ...]]
"""Per channel, of pixels divided by the largest value that they can have."""


def sums_of(image: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Of one image (channels, height, width): sums of its pixels and of their squares, (2, channels)."""
    pixels = image.reshape(len(image), -1).astype(np.uint32)
    return np.stack([pixels.sum(axis=1, dtype=np.uint64), (pixels * pixels).sum(axis=1, dtype=np.uint64)])


def from_sums(sums: NDArray[np.uint64], image_pixels: int, pixel_max: float) -> MeanAndStd:
    """Exact but for rounding at the end, since sums of whole numbers are.

    Args:
        sums: (images, 2, channels), of the images that count.
        image_pixels: height times width.

    Raises:
        DataError: if all pixels of a channel are the same, which no deviation can normalise.
    """
    count = len(sums) * image_pixels
    # As numbers without a largest one: nothing overflows or cancels up to the root.
    totals, squares = ([int(number) for number in row] for row in sums.sum(axis=0))
    means = tuple(total / count / pixel_max for total in totals)
    variances = [count * square - total * total for total, square in zip(totals, squares, strict=True)]
    return means, _varied(math.sqrt(variance) / count / pixel_max for variance in variances)


def from_images(images: NDArray[np.float32], pixel_max: float) -> MeanAndStd:
    """Of a few images (images, channels, height, width), at once.

    Raises:
        DataError: as :func:`from_sums`.
    """
    scaled = images / np.float32(pixel_max)
    means = tuple(float(mean) for mean in scaled.mean((0, 2, 3), np.float64))
    return means, _varied(float(deviation) for deviation in scaled.std((0, 2, 3), np.float64))


def _varied(deviations: Iterable[float]) -> tuple[float, ...]:
    found = tuple(deviations)
    for channel, deviation in enumerate(found):
        if deviation == 0:
            raise DataError(f"channel {channel} is the same in every pixel of all training images")
    return found
