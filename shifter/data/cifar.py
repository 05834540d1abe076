"""CIFAR-10 and CIFAR-100 in the folders that are published, for Python and binary.

Krizhevsky, *Learning Multiple Layers of Features from Tiny Images* (2009).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shifter.data.source import TEST, TRAIN, Row, Source, local_file
from shifter.data.unpickling import read_pickle
from shifter.errors import DataError

_SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32
_BATCH = 1000
"""Images of a binary file that are read at a time."""

Batch = tuple[NDArray[np.uint8], Sequence[object]]
"""Images (n, 3, 32, 32), and as many labels, still unchecked."""


@dataclass(frozen=True)
class _Form:
    """One of the published folders.

    Args:
        label_bytes: 0 for pickles; in binary files, the bytes before an image, the last of which
            is its label.
        key: where a pickle has its labels, and (``…_names``) its names.
    """

    folder: str
    train: tuple[str, ...]
    test: str
    names: str
    label_bytes: int
    key: str


_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
_FORMS = {
    "cifar10": (
        _Form("cifar-10-batches-py", _BATCHES, "test_batch", "batches.meta", 0, "label"),
        _Form(
            "cifar-10-batches-bin",
            tuple(f"{name}.bin" for name in _BATCHES),
            "test_batch.bin",
            "batches.meta.txt",
            1,
            "label",
        ),
    ),
    "cifar100": (
        _Form("cifar-100-python", ("train",), "test", "meta", 0, "fine_label"),
        _Form("cifar-100-binary", ("train.bin",), "test.bin", "fine_label_names.txt", 2, "fine_label"),
    ),
}


def find(name: str, folder: Path) -> Source:
    """The set ``cifar10`` or ``cifar100`` in a published folder, or in the folder that has it.

    Raises:
        DataError: if no published folder is there, or it lacks files.
    """
    root, form = _locate(name, folder)
    files = [root / file for file in (*form.train, form.test, form.names)]
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise DataError(f"{root} is incomplete: it lacks {', '.join(missing)}")
    parts: dict[str, Callable[[], Iterator[Row]]] = {
        TRAIN: partial(_rows, form, [root / file for file in form.train]),
        TEST: partial(_rows, form, [root / form.test]),
    }
    return Source(
        settings={"set": name, "form": form.folder},
        classes=_names(form, root / form.names),
        files=[local_file(path, root) for path in files],
        parts=parts,
    )


def _locate(name: str, folder: Path) -> tuple[Path, _Form]:
    for root in (folder, *(folder / form.folder for form in _FORMS[name])):
        for form in _FORMS[name]:
            if (root / form.train[0]).is_file():
                return root, form
    known = " or ".join(form.folder for form in _FORMS[name])
    raise DataError(f"data.folder: {folder} holds no {name}; it should be {known}, or hold one of them")


def _names(form: _Form, path: Path) -> tuple[str, ...]:
    if form.label_bytes:
        return tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    names = read_pickle(path).get(f"{form.key}_names")
    if not isinstance(names, list) or not names:
        raise DataError(f"{path} is no list of CIFAR's classes: it has no {form.key}_names")
    return tuple(name.decode("utf-8") if isinstance(name, bytes) else str(name) for name in names)


def _rows(form: _Form, paths: Sequence[Path]) -> Iterator[Row]:
    for path in paths:
        index = 0
        try:
            for images, labels in _binary(form, path) if form.label_bytes else _pickled(form, path):
                for image, label in zip(images, labels, strict=True):
                    yield Row(str(path), index, image, label if isinstance(label, int) else None)
                    index += 1
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from error


def _pickled(form: _Form, path: Path) -> Iterator[Batch]:
    held = read_pickle(path)
    images, labels = held.get("data"), held.get(f"{form.key}s")
    if not isinstance(images, np.ndarray) or images.ndim != 2 or images.shape[1] != _PIXELS:
        raise DataError(f"{path} is no batch of CIFAR: its data are not rows of {_PIXELS} bytes")
    if not isinstance(labels, list) or len(labels) != len(images):
        raise DataError(f"{path} is no batch of CIFAR: it has no {form.key}s, one for each image")
    yield images.reshape(-1, *_SHAPE), labels


def _binary(form: _Form, path: Path) -> Iterator[Batch]:
    record = form.label_bytes + _PIXELS
    if path.stat().st_size % record:
        raise DataError(
            f"{path} has {path.stat().st_size:,} bytes, which is no multiple of {record:,}, "
            "the bytes of an image and its label: it is cut off or damaged"
        )
    with path.open("rb") as file:
        while data := file.read(_BATCH * record):
            rows = np.frombuffer(data, np.uint8).reshape(-1, record)
            labels = rows[:, form.label_bytes - 1].tolist()
            yield rows[:, form.label_bytes :].reshape(-1, *_SHAPE), labels
