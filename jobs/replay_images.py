"""The images that a replay asks about, and their labels: arrays, a folder per class, or Parquet."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs import cli
from jobs.protocols import is_jpeg, is_png, to_png
from shifter.errors import DataError

_EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
_PARQUET = frozenset({".parquet", ".pq"})


@dataclass(frozen=True, eq=False)
class Images:
    """Images in the order in which they are asked about.

    Args:
        pixels: numbers (n, c, h, w) in the data set's own range; None where they are files.
        encoded: else the files, each PNG or JPEG.
        labels: whole numbers from 0 on; None if they are not known.
        classes: names, in the order of the labels; None if they are not known.
    """

    pixels: NDArray[Any] | None
    encoded: Sequence[bytes] | None
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...] | None = None

    def __len__(self) -> int:
        if self.pixels is not None:
            return len(self.pixels)
        assert self.encoded is not None
        return len(self.encoded)

    def decoded(self, channels: int) -> NDArray[Any]:
        """The pixels, of files as uint8.

        Raises:
            DataError: if files are not all of one size, or one cannot be decoded.
        """
        if self.pixels is not None:
            return self.pixels
        assert self.encoded is not None
        decoded = [_pixels(encoded, channels) for encoded in self.encoded]
        shapes = sorted({pixels.shape for pixels in decoded})
        if len(shapes) > 1:
            raise DataError(
                f"the images are of several sizes, {shapes[0]} and {shapes[-1]} among them, and binary "
                "tensors and JSON carry pixels of the model's size: --protocol predict with one image a "
                "request sends the files, which the service resizes"
            )
        return np.stack(decoded)


def read(path: Path, labels: Path | None, *, columns: tuple[str, str], most: int, seed: int) -> Images:
    """At most ``most`` images, drawn at random and in random order: neighbours are often of one class.

    Args:
        path: a ``.npz`` (``images``, ``labels``), a ``.npy``, a ``.parquet``, or a folder with a
            folder of images for each class.
        labels: of arrays, a ``.npy`` or a text of one number a line; otherwise the names of all
            classes in the order of their labels, one a line.
        columns: of Parquet: that of the images, and that of the labels.

    Raises:
        DataError: naming what cannot be read, or does not fit together.
    """
    if path.is_dir():
        return _of_folder(path, _names(labels), most, seed)
    if path.suffix.lower() in _PARQUET:
        return _of_parquet(path, _names(labels), columns, most, seed)
    return _of_arrays(path, labels, most, seed)


def _order(count: int, most: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).permutation(count)[:most]


def _of_arrays(path: Path, labels_path: Path | None, most: int, seed: int) -> Images:
    labels = None
    if path.suffix.lower() == ".npz":
        arrays = _npz(path)
        if "images" not in arrays:
            raise DataError(
                f"the images {path} hold the arrays {', '.join(sorted(arrays)) or '(none)'}: 'images', of "
                "shape (images, channels, height, width), is looked for, and 'labels'"
            )
        pixels, labels = arrays["images"], arrays.get("labels")
        check_pixels(path, pixels)
    else:
        pixels = read_pixels(path)
    if labels_path is not None:
        labels = _numbers(labels_path)
    if labels is not None:
        labels = _checked_labels(labels, len(pixels), labels_path or path)
    order = _order(len(pixels), most, seed)
    return Images(np.array(pixels[order]), None, None if labels is None else labels[order])


def read_pixels(path: Path) -> NDArray[Any]:
    """The pixels of a ``.npy`` file, real numbers of shape (n, c, h, w).

    Raises:
        DataError: if it cannot be read, or holds anything else.
    """
    pixels = _npy(path, "images")
    check_pixels(path, pixels)
    return pixels


def check_pixels(path: Path, pixels: NDArray[Any]) -> None:
    """Raises DataError unless they are real numbers of shape (n, c, h, w), one at least."""
    if pixels.ndim != 4 or not pixels.size or pixels.dtype.kind not in "iuf":
        raise DataError(
            f"the images {path} are an array of {pixels.dtype}, shape {pixels.shape}: numbers of shape "
            "(images, channels, height, width) are wanted"
        )


def _npy(path: Path, what: str) -> NDArray[Any]:
    try:
        with path.open("rb") as file:
            array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    except OSError as error:
        raise DataError(f"the {what} {path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise DataError(
            f"the {what} {path} are no .npy file of numbers ({error}): write one with numpy.save"
        ) from None
    return array


def _npz(path: Path) -> dict[str, NDArray[Any]]:
    from zipfile import BadZipFile

    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, BadZipFile, EOFError) as error:
        raise DataError(
            f"the images {path} are no .npz file of numbers ({error}): write one with numpy.savez"
        ) from None
    except OSError as error:
        raise DataError(f"the images {path} cannot be read: {error.strerror or error}") from None


def _numbers(path: Path) -> NDArray[Any]:
    if path.suffix.lower() == ".npy":
        return _npy(path, "labels")
    lines = _lines(path)
    try:
        return np.array([int(line) for line in lines], np.int64)
    except (ValueError, OverflowError):
        bad = next(n for n, line in enumerate(lines, 1) if not re.fullmatch(r"\s*[0-9]{1,18}\s*", line))
        raise DataError(
            f"the labels {path}, line {bad}: {lines[bad - 1]!r} is no whole number; a label a line is wanted"
        ) from None


def _checked_labels(labels: NDArray[Any], images: int, path: Path) -> NDArray[np.int64]:
    if labels.shape != (images,):
        raise DataError(
            f"the labels {path} are of shape {labels.shape}, and there are {images} images: one each"
        )
    if labels.dtype.kind not in "iu" or labels.min() < 0:
        raise DataError(f"the labels {path} are {labels.dtype}, from {labels.min()} on: whole numbers from 0")
    return labels.astype(np.int64)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8").splitlines()
    except OSError as error:
        raise DataError(f"the labels {path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise DataError(f"the labels {path} are no text: one a line is wanted") from None


def _names(path: Path | None) -> tuple[str, ...] | None:
    if path is None:
        return None
    names = tuple(line.strip() for line in _lines(path) if line.strip())
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not names:
        wrong = f"hold {twice[0]!r} twice" if twice else "are empty"
        raise DataError(f"the labels {path} {wrong}: the name of each class once, one a line, is wanted")
    return names


def _of_folder(path: Path, names: tuple[str, ...] | None, most: int, seed: int) -> Images:
    folders = sorted(one.name for one in path.iterdir() if one.is_dir() and not one.name.startswith("."))
    classes = names or tuple(folders)
    if unknown := [name for name in folders if name not in classes]:
        raise DataError(
            f"{path / unknown[0]} is none of the classes that --labels names: {', '.join(classes[:8])}"
            f"{', …' if len(classes) > 8 else ''}"
        )
    found = [
        (file, classes.index(name))
        for name in folders
        for file in sorted((path / name).rglob("*"))
        if file.suffix.lower() in _EXTENSIONS and file.is_file()
    ]
    if not found:
        raise DataError(
            f"the images {path} are a folder without images: a folder of images for each class, named "
            "after it, is wanted"
        )
    chosen = [found[place] for place in _order(len(found), most, seed)]
    rows = ((str(file), _file(file), label) for file, label in chosen)
    return _of_rows(rows, classes)


def _file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None


def _of_parquet(
    path: Path, names: tuple[str, ...] | None, columns: tuple[str, str], most: int, seed: int
) -> Images:
    cli.require("replay of Parquet", "train", "pyarrow", "torch")
    from shifter.data.parquet import read_file

    if not path.is_file():
        raise DataError(f"the images {path} cannot be read: there is no such file")
    told, rows = read_file(path, *columns)
    drawn = _draw(((f"{row.file}, row {row.index}", row.image, row.label) for row in rows), most, seed)
    return _of_rows(drawn, names or told)


def _draw(rows: Iterator[Any], most: int, seed: int) -> list[Any]:
    """At most ``most`` of them, each as likely, in random order, without holding the others."""
    random = np.random.default_rng(seed)
    held: list[Any] = []
    for index, row in enumerate(rows):
        if index < most:
            held.append(row)
        elif (place := int(random.integers(index + 1))) < most:
            held[place] = row
    return [held[place] for place in random.permutation(len(held))]


def _of_rows(rows: Iterable[tuple[str, Any, Any]], classes: tuple[str, ...] | None) -> Images:
    encoded, labels = [], []
    rows = iter(rows)
    first = next(rows, None)
    if first is None:
        raise DataError("there are no images in it")
    for where, image, label in chain([first], rows):
        if not isinstance(image, bytes):
            raise DataError(f"{where} holds no image")
        if not isinstance(label, int) or label < 0 or (classes is not None and label >= len(classes)):
            known = "whole numbers from 0 on" if classes is None else f"0 to {len(classes) - 1}"
            raise DataError(f"{where}: its label is {label}; labels are {known}")
        encoded.append(image if is_png(image) or is_jpeg(image) else _as_png(where, image))
        labels.append(label)
    return Images(None, encoded, np.array(labels, np.int64), classes)


def _as_png(where: str, encoded: bytes) -> bytes:
    """A file of another format as the PNG that services read, pixel by pixel the same."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(encoded), formats=("WEBP", "BMP")) as image:
            return to_png(image.convert("L" if image.mode == "L" else "RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{where} is no image that can be sent: PNG, JPEG, WebP or BMP ({error})") from None


def _pixels(encoded: bytes, channels: int) -> NDArray[np.uint8]:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(encoded), formats=("PNG", "JPEG")) as image:
            array = np.asarray(image.convert("L" if channels == 1 else "RGB"), np.uint8)
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"an image cannot be decoded: {error}") from None
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))
