"""Labelled images in three parts, and how a network reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shifter.data_spec import Augmentation
from shifter.errors import DataError
from shifter.values import InputSpec

NO_AUGMENTATION = Augmentation()
Pixels = NDArray[np.uint8] | NDArray[np.float32]
"""Images as stored, not normalised: (images, channels, height, width), 0 to the set's ``pixel_max``."""


@dataclass(frozen=True)
class Split:
    """One part of a data set: some of the images of an array, which may be a memory map.

    Args:
        stored: an array of images; other parts may share it.
        where: int64 (images,), the place of each image of this part in ``stored``.
        labels: int64 (images,).
    """

    stored: Pixels
    where: NDArray[np.int64]
    labels: NDArray[np.int64]

    def __post_init__(self) -> None:
        assert len(self.where) == len(self.labels)

    @classmethod
    def of(cls, images: Pixels, labels: NDArray[np.int64]) -> Split:
        """All of ``images``, in their order."""
        return cls(images, np.arange(len(images)), labels)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def nbytes(self) -> int:
        """Bytes of its images as stored."""
        return len(self) * int(self.stored[0].nbytes)

    def take(self, indices: NDArray[np.int64]) -> Pixels:
        """A copy of the images ``indices`` of this part, in that order."""
        return self.stored.take(self.where[indices], axis=0)

    @property
    def images(self) -> Pixels:
        """A copy of all images at once."""
        return self.stored.take(self.where, axis=0)


@dataclass(frozen=True)
class Skipped:
    """Images that were left out because they are bad: how many, and what ails the first few."""

    count: int = 0
    first: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """The three parts, and how a network reads the images of any of them.

    The training part trains; the validation part, which training never sees, chooses and
    switches; the test part is only reported. ``input_spec.normalise(split.images)`` is what a
    network reads.

    Args:
        augmentation: how the training images are varied.
        memory_limit: bytes of images up to which a part is held in memory.
        skipped: the bad images of all parts, if the recipe lets them be skipped.
    """

    train: Split
    validation: Split
    test: Split
    input_spec: InputSpec
    augmentation: Augmentation = NO_AUGMENTATION
    memory_limit: int = 2**32
    skipped: Skipped = Skipped()


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
