"""From a recipe's description of the data to three checked parts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from shifter.data import digits
from shifter.data.dataset import Dataset, Split, check_images
from shifter.errors import DataError
from shifter.recipe import DataSpec
from shifter.values import InputSpec


def load(spec: DataSpec, seed: int) -> Dataset:
    """Reads, checks and splits the images that ``spec`` names.

    The split is stratified (each part holds each class in equal proportion) and depends on
    ``seed`` only. Mean and deviation come from the training part.

    Raises:
        DataError: if an image or label cannot be used (its index is named), or a part would be
            too small to hold each class.
    """
    images, labels = digits.read(spec.size)
    check_images(images, labels, classes=len(digits.CLASSES), pixel_max=digits.PIXEL_MAX)
    train, validation, test = split_indices(labels, spec.validation, spec.test, seed)
    scaled = images[train] / np.float32(digits.PIXEL_MAX)
    input_spec = InputSpec(
        channels=images.shape[1],
        height=images.shape[2],
        width=images.shape[3],
        pixel_max=digits.PIXEL_MAX,
        mean=tuple(float(m) for m in scaled.mean(axis=(0, 2, 3), dtype=np.float64)),
        std=tuple(float(s) for s in scaled.std(axis=(0, 2, 3), dtype=np.float64)),
        classes=digits.CLASSES,
    )
    return Dataset(
        train=Split(images[train], labels[train]),
        validation=Split(images[validation], labels[validation]),
        test=Split(images[test], labels[test]),
        input_spec=input_spec,
    )


def split_indices(
    labels: NDArray[np.int64], validation: float, test: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the training, validation and test images, disjoint and together all of them.

    Args:
        validation, test: fractions of all images.

    Raises:
        DataError: if a part cannot hold at least one image of each class.
    """
    everything = np.arange(len(labels))
    held_out = round(len(labels) * validation), round(len(labels) * test)
    smallest = min(*held_out, len(labels) - sum(held_out))
    classes = len(np.unique(labels))
    if smallest < classes:
        raise DataError(
            f"{len(labels)} images split with validation {validation:g} and test {test:g} leave a part "
            f"of {smallest}: each part needs at least {classes}, one image of each class"
        )
    rest, test_part = train_test_split(everything, test_size=held_out[1], stratify=labels, random_state=seed)
    train_part, validation_part = train_test_split(
        rest, test_size=held_out[0], stratify=labels[rest], random_state=seed
    )
    return train_part, validation_part, test_part
