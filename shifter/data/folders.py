"""Image files in folders: a folder per class (ImageFolder), and Tiny ImageNet as it is published."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from shifter.data.source import TEST, TRAIN, VALIDATION, Row, Source, local_file
from shifter.errors import DataError

_EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"}
)
_ANNOTATIONS = "val_annotations.txt"

Labelled = Sequence[tuple[Path, int | str | None]]


def find_tree(root: Path) -> Source:
    """``train/<class>/…`` and, where they are, ``val/<class>/…`` (or ``validation``) and ``test/<class>/…``.

    Classes are the folders of ``train``, in the order of their names. Files are images if their
    extension says so; others, and hidden ones, are passed over. A class that only another part has
    is a bad label.

    Raises:
        DataError: if there is no ``train``, or one of its classes has no image.
    """
    if not (root / "train").is_dir():
        raise DataError(f"data.folder: {root} has no folder train with a folder of images per class")
    classes = _subfolders(root / "train")
    numbers = {name: number for number, name in enumerate(classes)}
    found: dict[str, Labelled] = {}
    for part, names in ((TRAIN, ["train"]), (VALIDATION, ["val", "validation"]), (TEST, ["test"])):
        present = [root / name for name in names if (root / name).is_dir()]
        if len(present) > 1:
            raise DataError(f"{root} has both val and validation: only one of them can be meant")
        for folder in present:
            found[part] = [
                (path, numbers.get(name, name))
                for name in _subfolders(folder)
                for path in _images(folder / name)
            ]
    filled = {label for _, label in found[TRAIN]}
    empty = [name for name in classes if numbers[name] not in filled]
    if empty or not classes:
        raise DataError(f"{root / 'train' / (empty or [''])[0]} holds no images: each class needs some")
    return _source("image_folder", root, tuple(classes), found, [])


def find_tiny_imagenet(folder: Path) -> Source:
    """Tiny ImageNet; its ``val`` images, the only others with labels, are the test part.

    Classes are WordNet identifiers, in their alphabetical order, whatever the order of ``wnids.txt``.

    Raises:
        DataError: if it is not there, or a file that says which image is of which class is missing
            or cannot be read.
    """
    inner = folder / "tiny-imagenet-200"
    root = folder if (folder / "wnids.txt").is_file() else inner
    lists = [root / "wnids.txt", root / "val" / _ANNOTATIONS]
    for path in lists:
        if not path.is_file():
            raise DataError(
                f"data.folder: {folder} is not Tiny ImageNet: there is no {path.relative_to(root)}; "
                "it should be tiny-imagenet-200, or hold it"
            )
    classes = sorted({line.strip() for line in lists[0].read_text("utf-8").splitlines() if line.strip()})
    numbers = {name: number for number, name in enumerate(classes)}
    train = [(path, numbers[name]) for name in classes for path in _images(root / "train" / name / "images")]
    filled = {label for _, label in train}
    if empty := [name for name in classes if numbers[name] not in filled]:
        raise DataError(f"{root / 'train' / empty[0] / 'images'} holds no images: each class needs some")
    labels = {root / "val/images" / name: wnid for name, wnid in _annotations(lists[1])}
    pictures = sorted({*_images(root / "val/images"), *labels})
    test: list[tuple[Path, int | str | None]] = []
    for path in pictures:
        wnid = labels.get(path)
        test.append((path, None if wnid is None else numbers.get(wnid, wnid)))
    return _source("tiny_imagenet", root, tuple(classes), {TRAIN: train, TEST: test}, lists)


def _source(
    name: str, root: Path, classes: tuple[str, ...], found: Mapping[str, Labelled], others: Sequence[Path]
) -> Source:
    pictures = [path for labelled in found.values() for path, _ in labelled if path.is_file()]
    parts: dict[str, Callable[[], Iterator[Row]]] = {
        part: partial(_rows, labelled) for part, labelled in found.items()
    }
    files = [local_file(path, root) for path in (*others, *pictures)]
    # Empty folders are classes too, and no file tells of them.
    return Source({"set": name, "classes": classes}, classes, files, parts)


def _rows(labelled: Labelled) -> Iterator[Row]:
    for index, (path, label) in enumerate(labelled):
        yield Row(str(path), index, path, label)


def _annotations(path: Path) -> Iterator[tuple[str, str]]:
    """(file, class) of each line: columns separated by tabs, a bounding box after them."""
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if line.strip():
            columns = line.split("\t")
            if len(columns) < 2 or "/" in columns[0]:
                raise DataError(
                    f"{path}, line {number}: {line[:80]!r} should begin with an image and a class"
                )
            yield columns[0], columns[1].strip()


def _subfolders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def _images(folder: Path) -> list[Path]:
    """Every image file below ``folder``, in the order of their paths."""
    found = []
    for where, _, names in os.walk(folder):
        found += [
            Path(where, name)
            for name in names
            if os.path.splitext(name)[1].lower() in _EXTENSIONS and not name.startswith(".")
        ]
    return sorted(found)
