"""Which images train, which validate, which are reported."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from shifter.errors import DataError

Indices = NDArray[np.int64]


def split_indices(
    labels: NDArray[np.int64], validation: float, test: float, seed: int
) -> tuple[Indices, Indices, Indices]:
    """Indices of the training, validation and test images, disjoint and together all of them.

    Stratified (each part holds each class in equal proportion); depends on ``seed`` only.

    Args:
        validation, test: fractions of all images; 0 for a part that is not to be held out.

    Raises:
        DataError: if a part cannot hold at least one image of each class.
    """
    rest: Indices = np.arange(len(labels))
    held_out = round(len(labels) * validation), round(len(labels) * test)
    wanted = [size for size, fraction in zip(held_out, (validation, test), strict=True) if fraction > 0]
    smallest = min(*wanted, len(labels) - sum(wanted)) if wanted else len(labels)
    classes = len(np.unique(labels))
    if smallest < classes:
        raise DataError(
            f"{len(labels)} images split with validation {validation:g} and test {test:g} leave a part "
            f"of {smallest}: each part needs at least {classes}, one image of each class"
        )
    none: Indices = np.zeros(0, np.int64)
    parts = {"validation": none, "test": none}
    for part, fraction, size in (("test", test, held_out[1]), ("validation", validation, held_out[0])):
        if fraction > 0:
            found, counts = np.unique(labels[rest], return_counts=True)
            if counts.min() < 2:
                raise DataError(
                    f"class {found[counts.argmin()]} has only {counts.min()} image to hold out for the "
                    f"{part} part and to train on: give it more, or give the set a {part} part of its own"
                )
            rest, parts[part] = train_test_split(
                rest, test_size=size, stratify=labels[rest], random_state=seed
            )
    return rest, parts["validation"], parts["test"]
