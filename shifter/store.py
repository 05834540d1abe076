"""Where artifacts live: a folder, addressed by keys such as ``<run>/rounds/round-00.arrow``.

A key appears at once and whole, or not at all, and is never overwritten; but for the few that only
name other keys and states. A writer that is killed leaves a temporary file that is no key. Storage
that fails for a while is waited for (``shifter.patience``).
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

from shifter.disk import Disk
from shifter.errors import StoreError
from shifter.patience import Patience, is_transient
from shifter.patient_file import PatientFile

T = TypeVar("T")

_REPLACEABLE = frozenset({"run.json", "portfolio.json", "report.html"})
_REPLACEABLE_FOLDERS = frozenset({"lease", "resume"})
_PARTIAL = ".part"


@dataclass(frozen=True)
class Store:
    """A local folder of artifacts. Made by :meth:`open` or :meth:`at`; cheap to send to another process.

    Every method waits for storage that fails for a while, and raises StoreError when ``patience``
    is at its end, or at once where waiting does not help.
    """

    root: Path
    patience: Patience = field(default=Patience(), compare=False)
    disk: Disk = field(default_factory=Disk, compare=False, repr=False)
    guard: Callable[[], None] | None = field(default=None, compare=False, repr=False)

    @classmethod
    def at(cls, uri: str) -> Store:
        """The store at ``uri``, a folder. Touches nothing.

        Raises:
            StoreError: if ``uri`` cannot name one.
        """
        scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", uri)
        if scheme:
            raise StoreError(
                f"the store {uri!r} cannot be used: {scheme[1]}:// is not supported, give a folder"
            )
        if not uri:
            raise StoreError("the store has no name: give a folder")
        # Absolute, because workers are started elsewhere.
        return cls(Path(os.path.abspath(Path(uri).expanduser())), Patience.from_environment())

    @classmethod
    def open(cls, uri: str) -> Store:
        """The store at ``uri``, a folder, which is created if need be.

        Raises:
            StoreError: if it is no folder, or cannot be written to: now, not after hours of training.
        """
        store = cls.at(uri)
        store._probe()
        return store

    def guarded(self, guard: Callable[[], None]) -> Store:
        """This store, but ``guard`` is called before anything is changed, and may raise instead."""
        return replace(self, guard=guard)

    def patient(self, limit_s: float) -> Store:
        """This store, but storage that fails is waited for no longer than that."""
        return replace(self, patience=replace(self.patience, limit_s=limit_s))

    @property
    def uri(self) -> str:
        return str(self.root)

    def write(self, key: str, data: bytes) -> None:
        """Writes a new key, durably and read back, all of it or nothing. Once more is no error.

        Raises:
            StoreError: if the key exists with other bytes (it is left as it is), or the disk refuses.
        """
        if not self.create(key, data):
            raise StoreError(f"{key} is already in the store {self.uri}: artifacts are not overwritten")

    def create(self, key: str, data: bytes) -> bool:
        """The same for who has rivals: False if the key is another's. Raises StoreError otherwise."""
        path = self._path(key)

        def name() -> bool:
            self._ask_guard()
            try:
                # A link, not a rename: it refuses an existing name in the same atomic step.
                self.disk.link(temporary, path)
            except FileExistsError:
                try:
                    # Ours, if the link before was made though it was said to have failed.
                    return self.disk.holds(path, data)
                except FileNotFoundError:
                    return False  # it was another's, which is deleted already
            return True

        with self._temporary(key, data) as temporary:
            created = self._patiently("write", key, name)
        if created:
            self._patiently("write", key, lambda: self.disk.sync(path.parent))
        return created

    def replace(self, key: str, data: bytes) -> None:
        """Writes one of the keys that may change: what only names other keys and states.

        A reader sees the old bytes or the new ones, never a mixture.

        Raises:
            StoreError: if the disk refuses.
        """
        parts = key.split("/")
        assert parts[-1] in _REPLACEABLE or _REPLACEABLE_FOLDERS & set(parts[:-1]), f"{key} is immutable"
        path = self._path(key)

        def name() -> None:
            self._ask_guard()
            try:
                self.disk.rename(temporary, path)
            except FileNotFoundError:
                # Gone, if the renaming before was done though it was said to have failed.
                if not self.disk.holds(path, data):
                    raise

        with self._temporary(key, data) as temporary:
            self._patiently("write", key, name)
        self._patiently("write", key, lambda: self.disk.sync(path.parent))

    def read(self, key: str) -> bytes:
        """All bytes of a key. Raises StoreError if there is none."""
        return self._patiently("read", key, partial(self.disk.read, self._path(key)))

    def open_file(self, key: str) -> BinaryIO:
        """A key as a seekable file, for reading parts of it. Raises StoreError if there is none."""
        patiently = partial(self._patiently, "read", key)
        return cast(BinaryIO, io.BufferedReader(PatientFile(self.disk, self._path(key), patiently)))

    def exists(self, key: str) -> bool:
        path = self._path(key)
        return self._patiently("look up", key, lambda: self.disk.is_file(path))

    def list(self, prefix: str = "") -> list[str]:
        """Every key that begins with ``prefix``, sorted. Temporary files are not keys."""
        keys = (path.relative_to(self.root).as_posix() for path in self._files(prefix.rpartition("/")[0]))
        return sorted(k for k in keys if k.startswith(prefix) and _is_key(k))

    def delete(self, key: str) -> None:
        """Removes a key that is no longer needed (mid-run state); one that is not there is no error."""
        self._unlink(key, self._path(key))

    def sweep(self, prefix: str) -> None:
        """Removes what killed writers left under the folder ``prefix``."""
        for path in self._files(prefix):
            if path.name.startswith(".") and path.name.endswith(_PARTIAL):
                self._unlink(path.name, path)

    def _files(self, folder: str) -> Iterator[Path]:
        """Every file below a folder, keys or not."""
        folders = [self.root / folder]
        while folders:
            top = folders.pop()
            inner, files = self._patiently("list", folder or ".", partial(self.disk.scan, top))
            folders += [top / name for name in inner]
            yield from (top / name for name in files)

    def _unlink(self, key: str, path: Path) -> None:
        def unlink() -> None:
            self._ask_guard()
            self.disk.unlink(path)

        self._patiently("delete", key, unlink)

    @contextlib.contextmanager
    def _temporary(self, key: str, data: bytes) -> Iterator[Path]:
        """A durable temporary file beside ``key``, gone at the end if that can be."""
        path = self._path(key)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{_PARTIAL}")

        def write() -> None:
            self.disk.make_folder(path.parent)
            self.disk.write(temporary, data)
            if not self.disk.holds(temporary, data):
                raise OSError(errno.EIO, "what was written is not what is read back")

        try:
            self._patiently("write", key, write)
            yield temporary
        finally:
            with contextlib.suppress(OSError):  # else it is swept later
                self.disk.unlink(temporary)

    def _patiently(self, verb: str, key: str, action: Callable[[], T]) -> T:
        try:
            return self.patience.attempt(action, f"{verb} {key} in the store {self.uri}")
        except StoreError:
            raise
        except OSError as error:
            if verb == "read" and isinstance(error, FileNotFoundError):
                raise StoreError(f"there is no {key} in the store {self.uri}") from None
            told = f"cannot {verb} {key} in the store {self.uri}: {error.strerror or error}"
            if is_transient(error):
                told += (
                    f"; it was tried for {self.patience.limit_s:.0f} s. What is finished is kept: "
                    "when the storage is back, the same command goes on"
                )
            raise StoreError(told) from error

    def _ask_guard(self) -> None:
        if self.guard is not None:
            self.guard()

    def _path(self, key: str) -> Path:
        assert _is_key(key), f"{key!r} is no key"
        return self.root / key

    def _probe(self) -> None:
        """Does all that :meth:`write` does, so that what fails would have failed there."""
        # Hidden, so that they are never keys, whatever happens.
        first, second = (self.root / f".probe-{uuid.uuid4().hex}{_PARTIAL}" for _ in range(2))

        def probe() -> None:
            self.disk.make_folder(self.root)
            for path in (first, second):
                self.disk.unlink(path)
            self.disk.write(first, b"shifter")
            self.disk.link(first, second)
            for path in (first, second):
                self.disk.unlink(path)

        try:
            self.patience.attempt(probe, f"write to the store {self.uri}")
        except OSError as error:
            raise StoreError(
                f"the store {self.uri} cannot be written to: {error.strerror}; "
                "give a folder that this user may write to, on a file system with hard links"
            ) from error


def _is_key(key: str) -> bool:
    return all(part and not part.startswith(".") for part in key.split("/"))
