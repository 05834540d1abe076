"""Parquet files of encoded images and labels, in a local folder or in object storage."""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.compute
import pyarrow.parquet
from pyarrow import fs

from shifter.data.source import TEST, TRAIN, VALIDATION, Row, Source, SourceFile, local_file, local_folder
from shifter.data_spec import Parquet
from shifter.errors import DataError

_BATCH = 64
_BUFFER = 2**20
"""Bytes of a column read ahead, instead of a whole row group."""


def find(spec: Parquet) -> Source:
    """The parts whose file patterns match; the training part always does.

    Raises:
        DataError: if the folder or the training part is not there, two patterns claim the same file,
            or a file is not Parquet, or lacks one of the columns, or has them of another type.
    """
    filesystem, root = _open_folder(spec.folder)
    infos = {info.path[len(root) :].lstrip("/"): info for info in _listed(filesystem, root, spec.folder)}
    found: dict[str, list[str]] = {}
    for part in (TRAIN, VALIDATION, TEST):
        pattern: str | None = getattr(spec.files, part)
        names = sorted(name for name in infos if pattern and fnmatch.fnmatchcase(name, pattern))
        for other, claimed in found.items():
            if both := sorted({*names} & {*claimed}):
                raise DataError(
                    f"{both[0]} would be in both the {other} and the {part} part: give data.files.{part} "
                    "a pattern of its own, or null"
                )
        if names:
            found[part] = names
    if TRAIN not in found:
        raise DataError(
            f"data.files.train: no file in {spec.folder} matches {spec.files.train!r}; "
            f"there are {', '.join(sorted(infos)[:8]) or 'none'}"
        )
    opened = {
        name: partial(filesystem.open_input_file, infos[name].path)
        for names in found.values()
        for name in names
    }
    described = [_described(name, opened[name], spec) for name in opened]
    parts: dict[str, Callable[[], Iterator[Row]]] = {
        part: partial(_rows, [(name, opened[name]) for name in names], spec) for part, names in found.items()
    }
    return Source(
        settings={"set": "parquet", "image": spec.image, "label": spec.label, "parts": found},
        classes=spec.classes or described[0],
        files=[_file(spec.folder, name, infos[name], opened[name]) for name in opened],
        parts=parts,
    )


def read_file(path: Path, image: str, label: str) -> tuple[tuple[str, ...] | None, Iterator[Row]]:
    """(names of the classes, if it says them; rows) of one file, whose columns those are.

    Raises:
        DataError: if it is not there, is not Parquet, or lacks one of the columns, or has it of another type.
    """
    # Of any size: whoever reads the rows decodes them.
    spec = Parquet(name="parquet", folder=str(path.parent), size=1, image=image, label=label)
    opened = partial(path.open, "rb")
    return _described(path.name, opened, spec), _rows([(path.name, opened)], spec)


def _open_folder(folder: str) -> tuple[fs.FileSystem, str]:
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", folder):
        return fs.LocalFileSystem(), local_folder(folder).as_posix()
    try:
        filesystem, root = fs.FileSystem.from_uri(folder)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataError(f"data.folder: {folder!r} cannot be used: {error}") from error
    return filesystem, root.rstrip("/")


def _listed(filesystem: fs.FileSystem, root: str, folder: str) -> Sequence[fs.FileInfo]:
    try:
        listed = filesystem.get_file_info(fs.FileSelector(root, recursive=True))
    except OSError as error:
        raise DataError(f"data.folder: {folder} cannot be listed: {error}") from error
    return [info for info in listed if info.type == fs.FileType.File]


def _file(folder: str, name: str, info: fs.FileInfo, opened: Callable[[], Any]) -> SourceFile:
    if "://" not in folder:
        path = Path(info.path)
        return local_file(path, path.parents[name.count("/")])
    return SourceFile(
        name=name,
        stamp=f"{folder}:{info.size}:{info.mtime_ns}",
        changed=info.mtime_ns / 1e9,
        open=opened,
    )


def _described(name: str, opened: Callable[[], Any], spec: Parquet) -> tuple[str, ...] | None:
    """Checks a file's columns. Returns the names of its classes, if it says them."""
    try:
        with opened() as file:
            schema = pyarrow.parquet.read_schema(file)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataError(f"{name} in {spec.folder} is no Parquet file: {error}") from error
    for key, column in (("image", spec.image), ("label", spec.label)):
        if column not in schema.names:
            raise DataError(f"data.{key}: {name} has no column {column!r}; it has {', '.join(schema.names)}")
    image, label = schema.field(spec.image).type, schema.field(spec.label).type
    if not (_is_bytes(image) or _has_bytes(image)):
        raise DataError(
            f"data.image: {spec.image!r} of {name} holds {image}: it should hold encoded images, "
            "as binary or as a struct with a binary field bytes"
        )
    if not pyarrow.types.is_integer(label):
        raise DataError(f"data.label: {spec.label!r} of {name} holds {label}: it should hold whole numbers")
    return _classes(schema.metadata or {}, spec.label)


def _is_bytes(kind: pyarrow.DataType) -> bool:
    return bool(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))


def _has_bytes(kind: pyarrow.DataType) -> bool:
    if not pyarrow.types.is_struct(kind):
        return False
    index = kind.get_field_index("bytes")
    return index >= 0 and _is_bytes(kind.field(index).type)


def _classes(metadata: dict[bytes, bytes], label: str) -> tuple[str, ...] | None:
    """What the ``datasets`` library of Hugging Face writes of a column of labels."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    usable = isinstance(names, list) and names and all(isinstance(name, str) for name in names)
    return tuple(names) if usable else None


def _rows(files: Sequence[tuple[str, Callable[[], Any]]], spec: Parquet) -> Iterator[Row]:
    for name, opened in files:
        try:
            with (
                opened() as file,
                pyarrow.parquet.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER) as table,
            ):
                index = 0
                # Its threads decode whole row groups ahead.
                for batch in table.iter_batches(_BATCH, columns=[spec.image, spec.label], use_threads=False):
                    images = batch.column(spec.image)
                    if pyarrow.types.is_struct(images.type):
                        # Null where the struct itself is.
                        images = pyarrow.compute.struct_field(images, "bytes")
                    labels = batch.column(spec.label).to_pylist()
                    for image, label in zip(images.to_pylist(), labels, strict=True):
                        yield Row(f"{spec.folder}/{name}", index, image, label)
                        index += 1
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{spec.folder}/{name} cannot be read: {error}") from error
