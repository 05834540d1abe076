"""A store's place in a folder: a key is a file, linked or renamed to its name once it is whole."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

from shifter.disk import Disk
from shifter.place import Patiently

_PARTIAL = ".part"


@dataclass(frozen=True)
class Folder:
    """A local folder, or one of a network file system with hard links."""

    root: Path
    disk: Disk = field(default_factory=Disk, compare=False, repr=False)

    exclusive: ClassVar[bool] = True
    read_ahead: ClassVar[int] = io.DEFAULT_BUFFER_SIZE

    @classmethod
    def at(cls, path: str) -> Folder:
        """The folder at ``path``, which may begin with ``~``; it need not be there."""
        # Absolute, because workers are started elsewhere.
        return cls(Path(os.path.abspath(Path(path).expanduser())))

    @property
    def uri(self) -> str:
        return str(self.root)

    def probe(self, patiently: Patiently) -> None:
        """Makes the folder, and in it a file with two names, which are removed again.

        Raises:
            OSError: the last that ``patiently`` raised, its text ending in the remedy.
        """
        # Hidden, so that they are never keys, whatever happens.
        first, second = (self.root / f".probe-{uuid.uuid4().hex}{_PARTIAL}" for _ in range(2))

        def link() -> None:
            with contextlib.suppress(FileExistsError):  # made, though it was said to have failed
                self.disk.link(first, second)

        try:
            patiently(lambda: self.disk.make_folder(self.root))
            patiently(lambda: self.disk.write(first, b"shifter"))
            patiently(link)
            patiently(lambda: self.disk.unlink(first))
            patiently(lambda: self.disk.unlink(second))
        except OSError as error:
            remedy = "give a folder that this user may write to, on a file system with hard links"
            raise OSError(error.errno, f"{error.strerror}; {remedy}") from error

    @contextlib.contextmanager
    def draft(self, key: str, data: bytes, patiently: Patiently) -> Iterator[_Draft]:
        """A durable temporary file beside the key, read back; gone at the end if that can be."""
        path = self.root / key
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{_PARTIAL}")

        def write() -> None:
            self.disk.make_folder(path.parent)
            self.disk.write(temporary, data)
            if not self.disk.holds(temporary, data):
                raise OSError(errno.EIO, "what was written is not what is read back")

        try:
            patiently(write)
            yield _Draft(self.disk, temporary, path, data)
        finally:
            with contextlib.suppress(OSError):  # else it is swept later
                self.disk.unlink(temporary)

    def open(self, key: str) -> _OpenFile:
        """Raises FileNotFoundError if there is no such key."""
        return _OpenFile(self.disk, self.root / key)

    def exists(self, key: str) -> bool:
        return self.disk.is_file(self.root / key)

    def version(self, key: str) -> str:
        with contextlib.closing(self.open(key)) as opened:
            return opened.version

    def list(self, prefix: str, patiently: Patiently) -> Iterator[str]:
        """Drafts among them: their names begin with a dot."""
        for path in self._files(prefix.rpartition("/")[0], patiently):
            name = path.relative_to(self.root).as_posix()
            if name.startswith(prefix):
                yield name

    def delete(self, key: str) -> None:
        self.disk.unlink(self.root / key)

    def litter(self, folder: str, patiently: Patiently) -> Iterator[tuple[str, Callable[[], None]]]:
        """Drafts that nobody will finish."""
        for path in self._files(folder, patiently):
            if path.name.startswith(".") and path.name.endswith(_PARTIAL):
                yield path.relative_to(self.root).as_posix(), partial(self.disk.unlink, path)

    def _files(self, folder: str, patiently: Patiently) -> Iterator[Path]:
        """Every file below a folder, keys or not."""
        folders = [self.root / folder]
        while folders:
            top = folders.pop()
            inner, files = patiently(partial(self.disk.scan, top))
            folders += [top / name for name in inner]
            yield from (top / name for name in files)


@dataclass(frozen=True)
class _Draft:
    disk: Disk
    temporary: Path
    path: Path
    data: bytes

    def create(self) -> None:
        try:
            # A link, not a rename: it refuses an existing name in the same atomic step.
            self.disk.link(self.temporary, self.path)
        except FileExistsError:
            try:
                # Ours, if the link before was made though it was said to have failed.
                ours = self.disk.holds(self.path, self.data)
            except FileNotFoundError:
                ours = False  # it was another's, which is deleted already
            if not ours:
                raise

    def replace(self) -> None:
        try:
            self.disk.rename(self.temporary, self.path)
        except FileNotFoundError:
            # Gone, if the renaming before was done though it was said to have failed.
            if not self.disk.holds(self.path, self.data):
                raise

    def settle(self) -> None:
        self.disk.sync(self.path.parent)


class _OpenFile:
    def __init__(self, disk: Disk, path: Path) -> None:
        self._disk = disk
        self._file = disk.open(path)
        self.size = self._file.seek(0, io.SEEK_END)
        # A key is replaced by another file, which may get the number of one that is deleted.
        about = os.fstat(self._file.fileno())
        self.version = f"{about.st_ino}-{about.st_mtime_ns}"

    def read_into(self, position: int, buffer: memoryview) -> int:
        return self._disk.read_into(self._file, position, buffer)

    def close(self) -> None:
        self._file.close()
