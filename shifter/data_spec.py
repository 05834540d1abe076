"""The part of a recipe that says which images a network is trained on, and how they are split."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from shifter.configuration import Float, Int, Part

__all__ = [
    "Augmentation",
    "Cifar10",
    "Cifar100",
    "DataSpec",
    "Digits",
    "ImageFolder",
    "Parquet",
    "ParquetFiles",
    "StoredSpec",
    "TinyImageNet",
]

Fraction = Annotated[Float, Field(gt=0, lt=1)]


class Augmentation(Part):
    """How training images are varied, anew in every epoch. Other images never are.

    ``crop``: pixels of black border put round an image before a window of its own size is cut out
    at random; 0 for none. ``flip``: every other image, at random, is mirrored left to right.
    """

    crop: Annotated[Int, Field(ge=0, le=256)] = 0
    flip: Annotated[bool, Field(strict=True)] = False


class _Images(Part):
    """What all sets of images have in common.

    Args:
        size: images of another size are resized to size x size when they are decoded.
        validation: the fraction of the training images that is held out to choose by, stratified by
            class, unless the set has validation images of its own.
        augmentation: of the training images.
    """

    size: Annotated[Int, Field(ge=1, le=1024)]
    validation: Fraction = 0.1
    augmentation: Augmentation = Augmentation()


class Digits(_Images):
    """scikit-learn's handwritten digits. Fractions are of all 1,797 images; what is left trains."""

    name: Literal["digits"]
    size: Annotated[Int, Field(ge=1, le=1024)] = 8
    validation: Fraction = 0.15
    test: Fraction = 0.2

    @model_validator(mode="after")
    def _leaves_images_to_train_on(self) -> Digits:
        _leave_images(self.validation, self.test)
        return self


class _StoredImages(_Images):
    """Images on disk, decoded once per node into a cache.

    Args:
        folder: where they are. A relative one is looked up in ``$SHIFTER_DATA`` where that is set,
            else in the working directory.
        bad_rows: what to do with an image that cannot be decoded or a label that is missing or out
            of range: ``refuse`` the data, or ``skip`` and count them.
        cache: the folder of the cache; by default ``$SHIFTER_CACHE``, or ``shifter`` in the user's
            cache folder.
        memory_mb: images of a part up to this many megabytes are held in memory (the accelerator's,
            where there is one); a larger part is read from the cache batch by batch.
    """

    folder: Annotated[str, Field(min_length=1)]
    bad_rows: Literal["refuse", "skip"] = "refuse"
    cache: Annotated[str, Field(min_length=1)] | None = None
    memory_mb: Annotated[Int, Field(ge=0)] = 4096


_CROP_AND_FLIP = Augmentation(crop=4, flip=True)


class Cifar10(_StoredImages):
    """CIFAR-10 as published: the folder ``cifar-10-batches-py`` or ``-bin``, or the one it lies in."""

    name: Literal["cifar10"]
    size: Annotated[Int, Field(ge=1, le=1024)] = 32
    augmentation: Augmentation = _CROP_AND_FLIP


class Cifar100(_StoredImages):
    """CIFAR-100, fine labels: ``cifar-100-python`` or ``-binary``, or the folder it lies in."""

    name: Literal["cifar100"]
    size: Annotated[Int, Field(ge=1, le=1024)] = 32
    augmentation: Augmentation = _CROP_AND_FLIP


class TinyImageNet(_StoredImages):
    """Tiny ImageNet as published: the folder ``tiny-imagenet-200``, or the one it lies in.

    Its test images have no labels. As is the custom, its ``val`` images are what is reported, as
    the test part; validation images are held out of the training images.
    """

    name: Literal["tiny_imagenet"]
    size: Annotated[Int, Field(ge=1, le=1024)] = 64
    augmentation: Augmentation = _CROP_AND_FLIP


class ImageFolder(_StoredImages):
    """A tree of image files: ``train/<class>/…``, and likewise ``val`` and ``test`` if it has them.

    ``test``: like ``validation``, a fraction of the training images, used if there is no ``test``.
    """

    name: Literal["image_folder"]
    test: Fraction = 0.1

    @model_validator(mode="after")
    def _leaves_images_to_train_on(self) -> ImageFolder:
        _leave_images(self.validation, self.test)
        return self


class ParquetFiles(Part):
    """Which files of the folder hold which part: patterns such as ``train-*.parquet``.

    A pattern other than that of the training part may match nothing, or be null: that part is then
    held out of the training images.
    """

    train: Annotated[str, Field(min_length=1)] = "train*.parquet"
    validation: Annotated[str, Field(min_length=1)] | None = "val*.parquet"
    test: Annotated[str, Field(min_length=1)] | None = "test*.parquet"


class Parquet(_StoredImages):
    """Parquet files of encoded images (bytes, or a struct with ``bytes``) and whole-number labels.

    Args:
        folder: a local folder, or ``s3://bucket/folder``.
        image, label: names of the columns.
        classes: names of the classes, in the order of their labels. By default what the files say
            (as those of Hugging Face do), or else the numbers up to the largest training label.
        test: like ``validation``, used if no file holds the test part.
    """

    name: Literal["parquet"]
    files: ParquetFiles = ParquetFiles()
    image: str = "image"
    label: str = "label"
    classes: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    test: Fraction = 0.1

    @model_validator(mode="after")
    def _leaves_images_to_train_on(self) -> Parquet:
        _leave_images(self.validation, self.test)
        return self


StoredSpec = Cifar10 | Cifar100 | TinyImageNet | ImageFolder | Parquet
"""Which images on disk."""
DataSpec = Digits | StoredSpec
"""Which images, and how they are split."""


def _leave_images(validation: float, test: float) -> None:
    if validation + test >= 1:
        raise ValueError(
            f"validation {validation:g} and test {test:g} leave nothing to train on: "
            "together they should be below 1"
        )
