"""Images decoded once per node: uint8 arrays in files that every process of the node maps.

::

    <cache>/
      <key>/                  a decoded set: train.npy, train-labels.npy, train-sums.npy, …, manifest.json
      .<key>-….part/          one that is being built, or whose builder was killed
      <key>.lock              held while it is built
      contents/<stamps>       the digest of files that have not changed since it was taken

The key is the digest of the files' content and of all that decides how they are decoded. A set
appears under its key at once and whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import json
import mmap
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from shifter.data.dataset import Skipped
from shifter.data.decoding import DECODER, BadRowError, check_label, decode
from shifter.data.source import Row, Source, SourceFile
from shifter.data.statistics import sums_of
from shifter.errors import DataError

VERSION = 1
_HEADER_BYTES = 128
_WINDOW = 64
"""Images that are decoded side by side, and so in memory at a time."""
_FIRST = 20
_SETTLED_SECONDS = 2.0
"""A file changed less than this before it was read may change again within the clock's resolution."""


@dataclass(frozen=True)
class Part:
    """Decoded images (n, 3, size, size), a read-only memory map, their labels (n,) and sums.

    ``sums``: of each image, as :func:`shifter.data.statistics.sums_of` gives them, so that no one
    has to read all pixels again to know the mean of some of the images.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    sums: NDArray[np.uint64]


@dataclass(frozen=True)
class Decoded:
    """A decoded set, as published: not yet split."""

    parts: Mapping[str, Part]
    classes: tuple[str, ...]
    skipped: Skipped


def decoded(
    source: Source, *, size: int, bad_rows: Literal["refuse", "skip"], folder: Path, memory_limit: int
) -> Decoded:
    """The images of ``source``, from the cache; decoded into it first if they are not there.

    Whoever asks while another process decodes the same waits for it. Memory used for decoding is
    that of some 64 images, and of a label and a few sums of each.

    Args:
        folder: of the cache; made if need be.
        memory_limit: a part of more bytes than this is read as its images are asked for; a smaller
            one is fetched into memory ahead.

    Raises:
        DataError: naming file and index of the first bad row, if those are to be refused; or if the
            cache cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        key = _key(source, size, folder)
        final = folder / key
        if not _is_whole(final):
            with _locked(folder / f"{key}.lock"):
                if not _is_whole(final):  # it may have been built while this process waited
                    _sweep(folder, key)
                    _build(source, size, bad_rows, final)
        manifest = json.loads((final / "manifest.json").read_text())
        parts = {part: _open(final, part, size, memory_limit) for part in manifest["parts"]}
    except OSError as error:
        raise DataError(
            f"the cache of decoded images {folder} cannot be used: {error}; give another folder in "
            "data.cache or $SHIFTER_CACHE"
        ) from error
    skipped = Skipped(manifest["skipped"], tuple(manifest["first"]))
    if skipped.count and bad_rows == "refuse":
        raise _refusal(skipped.first[0])
    # The number of classes is part of what was decoded; their names are not.
    classes = source.classes or tuple(str(number) for number in range(manifest["classes"]))
    return Decoded(parts, classes, skipped)


def _key(source: Source, size: int, folder: Path) -> str:
    described = {
        "version": VERSION,
        "decoder": DECODER,
        "size": size,
        "classes": None if source.classes is None else len(source.classes),
        "settings": source.settings,
        "content": _content(source, folder / "contents"),
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _content(source: Source, memory: Path) -> str:
    """sha256 over names and content of all files; remembered for as long as no file changes."""
    files = sorted(source.files, key=lambda file: file.name)
    stamps = hashlib.sha256("\n".join(f"{file.name} {file.stamp}" for file in files).encode()).hexdigest()
    known = memory / stamps
    with contextlib.suppress(FileNotFoundError):
        return known.read_text()
    begun = time.time()
    whole = hashlib.sha256()
    with ThreadPoolExecutor(_threads()) as pool:
        for file, digest in zip(files, pool.map(_file_digest, files), strict=True):
            whole.update(f"{digest} {file.name}\n".encode())
    if all(file.changed < begun - _SETTLED_SECONDS for file in files):
        memory.mkdir(exist_ok=True)
        temporary = memory / f".{stamps}-{uuid.uuid4().hex}.part"
        temporary.write_text(whole.hexdigest())
        temporary.replace(known)
    return whole.hexdigest()


def _file_digest(file: SourceFile) -> str:
    try:
        with file.open() as opened:
            digest = hashlib.sha256()
            while data := opened.read(2**20):
                digest.update(data)
            return digest.hexdigest()
    except OSError as error:
        raise DataError(f"{file.name} cannot be read: {error}") from error


def _threads() -> int:
    return min(8, os.cpu_count() or 1)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Held by one process of the node at a time; the system lets go of a killed one's."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_whole(final: Path) -> bool:
    """False too for a set that lost bytes since: it is then decoded again."""
    try:
        files = json.loads((final / "manifest.json").read_text())["files"]
        return all((final / name).stat().st_size == size for name, size in files.items())
    except (FileNotFoundError, ValueError, KeyError):
        return False


def _sweep(folder: Path, key: str) -> None:
    """What killed builders left: whoever holds the lock is the only one alive."""
    for left in (folder / key, *folder.glob(f".{key}-*.part")):
        if left.exists():
            shutil.rmtree(left)


def _build(source: Source, size: int, bad_rows: Literal["refuse", "skip"], final: Path) -> None:
    temporary = final.with_name(f".{final.name}-{uuid.uuid4().hex}.part")
    temporary.mkdir()
    try:
        bad = _Bad(bad_rows)
        classes = None if source.classes is None else len(source.classes)
        for part, rows in source.parts.items():
            labels = _decode_part(part, rows, size, classes, bad, temporary)
            classes = int(labels.max()) + 1 if classes is None else classes
        manifest = {
            "parts": list(source.parts),
            "classes": classes,
            "skipped": bad.count,
            "first": bad.first,
            "files": {path.name: path.stat().st_size for path in sorted(temporary.iterdir())},
        }
        _write(temporary / "manifest.json", lambda file: file.write(json.dumps(manifest).encode()))
        temporary.rename(final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class _Bad:
    """Counts bad rows, or refuses the first."""

    def __init__(self, policy: Literal["refuse", "skip"]) -> None:
        self.policy = policy
        self.count = 0
        self.first: list[str] = []

    def add(self, row: Row, error: BadRowError) -> None:
        complaint = f"{row.file}, image {row.index}: {error}"
        if self.policy == "refuse":
            raise _refusal(complaint)
        self.count += 1
        if len(self.first) < _FIRST:
            self.first.append(complaint)


def _refusal(complaint: str) -> DataError:
    return DataError(f"{complaint}; mend or remove it, or set data.bad_rows to skip")


def _decode_part(
    part: str,
    rows: Callable[[], Iterator[Row]],
    size: int,
    classes: int | None,
    bad: _Bad,
    folder: Path,
) -> NDArray[np.int64]:
    """Writes a part's images, labels and sums; returns the labels."""
    labels: list[int] = []
    sums: list[NDArray[np.uint64]] = []

    def write_images(file: BinaryIO) -> None:
        """A .npy file of uint8 (n, 3, size, size), in the order of the rows, bad ones left out.

        Fills ``labels`` and ``sums`` on the way. Raises DataError at the first bad row, if those are
        to be refused.
        """
        file.write(bytes(_HEADER_BYTES))
        with ThreadPoolExecutor(_threads()) as pool:

            def attempt(row: Row) -> tuple[NDArray[np.uint8], int, NDArray[np.uint64]] | BadRowError:
                try:
                    label, image = check_label(row.label, classes), decode(row, size)
                    return image, label, sums_of(image)
                except BadRowError as error:
                    return error

            remaining = rows()
            while window := list(itertools.islice(remaining, _WINDOW)):
                summed = [np.zeros((0, 2, 3), np.uint64)]
                for row, result in zip(window, pool.map(attempt, window), strict=True):
                    if isinstance(result, BadRowError):
                        bad.add(row, result)
                    else:
                        image, label, of_image = result
                        file.write(image.data)
                        labels.append(label)
                        summed.append(of_image[None])
                sums.append(np.concatenate(summed))
        # Only now is it known how many they are.
        file.seek(0)
        file.write(_header(len(labels), size))

    _write(folder / f"{part}.npy", write_images)
    if not labels:
        raise DataError(f"the {part} part holds no image that can be used")
    whole = np.array(labels, np.int64)
    _write(folder / f"{part}-labels.npy", lambda file: np.save(file, whole))
    _write(folder / f"{part}-sums.npy", lambda file: np.save(file, np.concatenate(sums)))
    return whole


def _header(images: int, size: int) -> bytes:
    """That of a .npy file (format 1.0), of a length that does not depend on the number of images."""
    described = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({images}, 3, {size}, {size}), }}"
    start = b"\x93NUMPY\x01\x00" + (_HEADER_BYTES - 10).to_bytes(2, "little")
    return start + described.ljust(_HEADER_BYTES - 11).encode() + b"\n"


def _write(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Durably: a machine that stops must not leave files of the right size and no content.

    A name that is lost costs decoding again, and nothing else, so folders are not synchronised.
    """
    with path.open("xb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def _open(folder: Path, part: str, size: int, memory_limit: int) -> Part:
    labels, sums = np.load(folder / f"{part}-labels.npy"), np.load(folder / f"{part}-sums.npy")
    with (folder / f"{part}.npy").open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if len(mapped) <= memory_limit:
        mapped.madvise(mmap.MADV_WILLNEED)
    images = np.frombuffer(mapped, np.uint8, offset=_HEADER_BYTES).reshape(-1, 3, size, size)
    return Part(images, labels, sums)
