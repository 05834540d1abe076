"""Mean and deviation of a part's pixels, channel by channel, in bounded memory."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from shifter.data.dataset import Split
from shifter.errors import DataError

_CHUNK = 1024


def mean_and_std(split: Split, pixel_max: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per channel, of pixels divided by ``pixel_max``.

    Of bytes they are exact but for rounding at the end, since sums of whole numbers are; the memory
    is that of about a thousand images.

    Raises:
        DataError: if all pixels of a channel are the same, which no deviation can normalise.
    """
    if split.stored.dtype == np.uint8:
        means, deviations = _of_bytes(split, pixel_max)
    else:
        scaled = split.images / np.float32(pixel_max)
        means = [float(m) for m in scaled.mean((0, 2, 3), np.float64)]
        deviations = [float(s) for s in scaled.std((0, 2, 3), np.float64)]
    for channel, deviation in enumerate(deviations):
        if deviation == 0:
            raise DataError(f"channel {channel} is the same in every pixel of all training images")
    return tuple(means), tuple(deviations)


def _of_bytes(split: Split, pixel_max: float) -> tuple[list[float], list[float]]:
    channels = split.stored.shape[1]
    sums, squares, count = [0] * channels, [0] * channels, 0
    in_order = replace(split, where=np.sort(split.where))  # the file is read once, from end to end
    for chunk in in_order.batches(_CHUNK):
        count += chunk[:, 0].size
        for channel in range(channels):
            values = chunk[:, channel].astype(np.uint16)
            sums[channel] += int(values.sum(dtype=np.uint64))
            squares[channel] += int((values * values).sum(dtype=np.uint64))
    means = [total / count / pixel_max for total in sums]
    # In whole numbers up to the root: nothing cancels.
    variances = [count * square - total * total for square, total in zip(squares, sums, strict=True)]
    return means, [math.sqrt(variance) / count / pixel_max for variance in variances]
