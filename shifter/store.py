"""Where artifacts live: a folder, addressed by keys such as ``<run>/rounds/round-00.arrow``.

A key appears at once and whole, or not at all, and is never overwritten; but for the few that only
name other keys and states. A writer that is killed leaves a temporary file that is no key.
"""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from shifter.errors import StoreError

_REPLACEABLE = frozenset({"run.json", "portfolio.json", "report.html"})
_REPLACEABLE_FOLDERS = frozenset({"lease", "resume"})
_PARTIAL = ".part"


@dataclass(frozen=True)
class Store:
    """A local folder of artifacts. Made by :meth:`open`; cheap to send to another process."""

    root: Path
    guard: Callable[[], None] | None = field(default=None, compare=False, repr=False)

    @classmethod
    def open(cls, uri: str) -> Store:
        """The store at ``uri``, a folder, which is created if need be.

        Raises:
            StoreError: if it is no folder, or cannot be written to: now, not after hours of training.
        """
        scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", uri)
        if scheme:
            raise StoreError(
                f"the store {uri!r} cannot be used: {scheme[1]}:// is not supported, give a folder"
            )
        if not uri:
            raise StoreError("the store has no name: give a folder")
        # Absolute, because workers are started elsewhere.
        store = cls(Path(os.path.abspath(Path(uri).expanduser())))
        store._probe()
        return store

    def guarded(self, guard: Callable[[], None]) -> Store:
        """This store, but ``guard`` is called before anything is changed, and may raise instead."""
        return replace(self, guard=guard)

    @property
    def uri(self) -> str:
        return str(self.root)

    def write(self, key: str, data: bytes) -> None:
        """Writes a new key, durably, all of it or nothing.

        Raises:
            StoreError: if the key exists (it is left as it is), or the disk refuses.
        """
        path = self._path(key)
        self._ask_guard()
        try:
            with _partial(path, data) as partial:
                # A link, not a rename: it refuses an existing name in the same atomic step.
                os.link(partial, path)
            _sync_folder(path.parent)
        except FileExistsError:
            raise StoreError(
                f"{key} is already in the store {self.uri}: artifacts are not overwritten"
            ) from None
        except OSError as error:
            raise self._refused("write", key, error) from error

    def replace(self, key: str, data: bytes) -> None:
        """Writes one of the keys that may change: what only names other keys and states.

        A reader sees the old bytes or the new ones, never a mixture.

        Raises:
            StoreError: if the disk refuses.
        """
        parts = key.split("/")
        assert parts[-1] in _REPLACEABLE or _REPLACEABLE_FOLDERS & set(parts[:-1]), f"{key} is immutable"
        self._ask_guard()
        path = self._path(key)
        try:
            with _partial(path, data) as partial:
                os.replace(partial, path)
            _sync_folder(path.parent)
        except OSError as error:
            raise self._refused("write", key, error) from error

    def read(self, key: str) -> bytes:
        """All bytes of a key. Raises StoreError if there is none."""
        with self.open_file(key) as file:
            return file.read()

    def open_file(self, key: str) -> BinaryIO:
        """A key as a seekable file, for reading parts of it. Raises StoreError if there is none."""
        path = self._path(key)
        try:
            return path.open("rb")
        except FileNotFoundError:
            raise StoreError(f"there is no {key} in the store {self.uri}") from None
        except OSError as error:
            raise self._refused("read", key, error) from error

    def exists(self, key: str) -> bool:
        return self._path(key).is_file()

    def list(self, prefix: str = "") -> list[str]:
        """Every key that begins with ``prefix``, sorted. Temporary files are not keys."""
        top = self.root / prefix.rpartition("/")[0]
        keys = (p.relative_to(self.root).as_posix() for p in top.rglob("*") if p.is_file())
        return sorted(k for k in keys if k.startswith(prefix) and _is_key(k))

    def delete(self, key: str) -> None:
        """Removes a key that is no longer needed (mid-run state); one that is not there is no error."""
        self._ask_guard()
        try:
            self._path(key).unlink(missing_ok=True)
        except OSError as error:
            raise self._refused("delete", key, error) from error

    def sweep(self, prefix: str) -> None:
        """Removes what killed writers left under the folder ``prefix``."""
        self._ask_guard()
        for path in (self.root / prefix).rglob(f".*{_PARTIAL}"):
            path.unlink(missing_ok=True)

    def _ask_guard(self) -> None:
        if self.guard is not None:
            self.guard()

    def _path(self, key: str) -> Path:
        assert _is_key(key), f"{key!r} is no key"
        return self.root / key

    def _probe(self) -> None:
        """Does all that :meth:`write` does, so that what fails would have failed there."""
        # Hidden, so that it is never a key, whatever happens.
        target = self.root / f".probe-{uuid.uuid4().hex}{_PARTIAL}"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with _partial(target, b"shifter") as partial:
                os.link(partial, target)
            target.unlink()
        except OSError as error:
            raise StoreError(
                f"the store {self.uri} cannot be written to: {error.strerror}; "
                "give a folder that this user may write to, on a file system with hard links"
            ) from error

    def _refused(self, verb: str, key: str, error: OSError) -> StoreError:
        return StoreError(f"cannot {verb} {key} in the store {self.uri}: {error.strerror or error}")


def _is_key(key: str) -> bool:
    return all(part and not part.startswith(".") for part in key.split("/"))


@contextlib.contextmanager
def _partial(path: Path, data: bytes) -> Iterator[Path]:
    """A durable temporary file beside ``path``, gone at the end whatever happens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}{_PARTIAL}")
    try:
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Makes a new name durable, not only the bytes under it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
