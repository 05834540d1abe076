"""From a recipe's description of the data to three checked parts."""

from __future__ import annotations

from typing import assert_never

import numpy as np

from shifter.data import cifar, digits, folders, parquet
from shifter.data.cache import Decoded, decoded
from shifter.data.dataset import Dataset, Split, check_images
from shifter.data.decoding import PIXEL_MAX
from shifter.data.source import TEST, TRAIN, VALIDATION, Source, local_folder
from shifter.data.splitting import split_indices
from shifter.data.statistics import from_images, from_sums
from shifter.data_spec import (
    Cifar10,
    Cifar100,
    DataSpec,
    Digits,
    ImageFolder,
    Parquet,
    StoredSpec,
    TinyImageNet,
)
from shifter.user_cache import cache_folder
from shifter.values import InputSpec

_MEGABYTE = 2**20


def load(spec: DataSpec, seed: int) -> Dataset:
    """Reads, checks and splits the images that ``spec`` names.

    Parts that the set does not bring are held out of its training images: stratified, and by
    ``seed`` only. Mean and deviation come from the training part. Images on disk are decoded into
    the node's cache by the first process that asks for them.

    Raises:
        DataError: if the images are not there, an image or label cannot be used (file and index are
            named), or a part would be too small to hold each class.
    """
    return _load_digits(spec, seed) if isinstance(spec, Digits) else _load_stored(spec, seed)


def find(spec: StoredSpec) -> Source:
    """The files and rows that ``spec`` names, nothing decoded yet. Raises DataError."""
    if isinstance(spec, Parquet):
        return parquet.find(spec)
    folder = local_folder(spec.folder)
    if isinstance(spec, Cifar10 | Cifar100):
        return cifar.find(spec.name, folder)
    if isinstance(spec, TinyImageNet):
        return folders.find_tiny_imagenet(folder)
    if isinstance(spec, ImageFolder):
        return folders.find_tree(folder)
    assert_never(spec)


def _load_digits(spec: Digits, seed: int) -> Dataset:
    images, labels = digits.read(spec.size)
    check_images(images, labels, classes=len(digits.CLASSES), pixel_max=digits.PIXEL_MAX)
    train, validation, test = (
        Split(images, where, labels[where])
        for where in split_indices(labels, spec.validation, spec.test, seed)
    )
    mean, std = from_images(train.images.astype(np.float32), digits.PIXEL_MAX)
    _, channels, height, width = images.shape
    input_spec = InputSpec(channels, height, width, digits.PIXEL_MAX, mean, std, digits.CLASSES)
    return Dataset(train, validation, test, input_spec, spec.augmentation)


def _load_stored(spec: StoredSpec, seed: int) -> Dataset:
    limit = spec.memory_mb * _MEGABYTE
    found = decoded(
        find(spec),
        size=spec.size,
        bad_rows=spec.bad_rows,
        folder=cache_folder(spec.cache),
        memory_limit=limit,
    )
    train, validation, test = _parts(found, spec, seed)
    mean, std = from_sums(found.parts[TRAIN].sums[train.where], spec.size**2, PIXEL_MAX)
    input_spec = InputSpec(3, spec.size, spec.size, PIXEL_MAX, mean, std, found.classes)
    return Dataset(train, validation, test, input_spec, spec.augmentation, limit, found.skipped)


def _parts(found: Decoded, spec: StoredSpec, seed: int) -> tuple[Split, Split, Split]:
    published = {name: Split.of(part.images, part.labels) for name, part in found.parts.items()}
    whole = published[TRAIN]
    test_fraction = spec.test if isinstance(spec, ImageFolder | Parquet) else 0.0
    train, validation, test = (
        Split(whole.stored, where, whole.labels[where])
        for where in split_indices(
            whole.labels,
            validation=0.0 if VALIDATION in published else spec.validation,
            test=0.0 if TEST in published else test_fraction,
            seed=seed,
        )
    )
    return train, published.get(VALIDATION, validation), published.get(TEST, test)
