"""Labelled images in memory, checked when they are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shifter.errors import DataError
from shifter.values import InputSpec


@dataclass(frozen=True)
class Split:
    """One part of a data set.

    Args:
        images: pixels as stored, not normalised: float32 (images, channels, height, width), from 0
            to the data set's ``pixel_max``.
        labels: int64 (images,).
    """

    images: NDArray[np.float32]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """The three parts, and how a network reads the images of any of them.

    The training part trains; the validation part, which training never sees, chooses and
    switches; the test part is only reported. ``input_spec.normalise(split.images)`` is what a
    network reads.
    """

    train: Split
    validation: Split
    test: Split
    input_spec: InputSpec


def check_images(images: NDArray[Any], labels: NDArray[Any], *, classes: int, pixel_max: float) -> None:
    """Refuses what cannot be trained on.

    Args:
        images: (images, channels, height, width).
        labels: (images,).

    Raises:
        DataError: naming the first image whose pixels are not finite or lie outside 0 to
            ``pixel_max``, or the first label that is none of 0 to ``classes - 1``.
    """
    if len(images) != len(labels):
        raise DataError(f"{len(images)} images have {len(labels)} labels: each image needs one")
    pixels = images.reshape(len(images), -1)
    unreadable = np.flatnonzero(~np.isfinite(pixels).all(axis=1))
    if unreadable.size:
        raise DataError(f"image {unreadable[0]} cannot be read: it holds pixels that are not finite numbers")
    outside = np.flatnonzero(((pixels < 0) | (pixels > pixel_max)).any(axis=1))
    if outside.size:
        first = pixels[outside[0]]
        raise DataError(
            f"image {outside[0]} has pixels from {first.min():g} to {first.max():g}: "
            f"they have to lie between 0 and {pixel_max:g}"
        )
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size:
        raise DataError(f"image {wrong[0]} has label {labels[wrong[0]]}: labels go from 0 to {classes - 1}")
