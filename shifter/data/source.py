"""A set of images as it lies on disk: files to know it by, rows to decode, parts as published."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from shifter.errors import DataError

TRAIN, VALIDATION, TEST = "train", "validation", "test"


@dataclass(frozen=True)
class Row:
    """One image and its label, either of which may turn out to be bad.

    Args:
        file, index: where it is, for people: ``index`` counts from 0 in the file, or in the part
            where each image is a file of its own.
        image: an encoded image, the path of one, or uint8 (3, height, width); None if missing.
        label: a number, or the unknown name that stands in a number's place; None if missing.
    """

    file: str
    index: int
    image: bytes | Path | NDArray[np.uint8] | None
    label: int | str | None


@dataclass(frozen=True)
class SourceFile:
    """A file that the rows come from.

    Args:
        name: relative to the set, with ``/``.
        stamp: differs whenever the file was changed or exchanged.
        changed: when it last was, in seconds since the epoch.
    """

    name: str
    stamp: str
    changed: float
    open: Callable[[], BinaryIO]


@dataclass(frozen=True)
class Source:
    """A set of images.

    Args:
        settings: whatever beside the files decides the rows; JSON.
        classes: their names, or None if the training labels tell how many there are.
        files: every file that rows, labels or classes are read from.
        parts: the rows of each part that the set has, the training part first.
    """

    settings: Mapping[str, Any]
    classes: tuple[str, ...] | None
    files: Sequence[SourceFile]
    parts: Mapping[str, Callable[[], Iterator[Row]]]


def _open(path: Path) -> BinaryIO:
    return path.open("rb")


def local_file(path: Path, root: Path) -> SourceFile:
    """A file below the folder ``root``."""
    found = path.stat()
    # The change time as well: unlike the modification time it cannot be set back.
    stamp = f"{found.st_dev}:{found.st_ino}:{found.st_size}:{found.st_mtime_ns}:{found.st_ctime_ns}"
    changed = max(found.st_mtime, found.st_ctime)
    return SourceFile(path.relative_to(root).as_posix(), stamp, changed, partial(_open, path))


def local_folder(folder: str) -> Path:
    """The folder that a recipe names.

    Raises:
        DataError: if there is none.
    """
    path = Path(os.path.abspath(Path(os.environ.get("SHIFTER_DATA", ".")) / Path(folder).expanduser()))
    if not path.is_dir():
        raise DataError(
            f"data.folder: there is no folder {path}; give the one that holds the images, absolute or "
            "relative to $SHIFTER_DATA or the working directory"
        )
    return path
