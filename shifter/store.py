"""Where artifacts live: a folder or a bucket, addressed by keys such as ``<run>/rounds/round-00.arrow``.

A key appears at once and whole, or not at all, and is never overwritten; but for the few that only
name other keys and states. What a writer that is killed leaves is no key. Storage that fails for a
while is waited for (``shifter.patience``).
"""

from __future__ import annotations

import errno
import io
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, BinaryIO, TypeVar, cast

from shifter.errors import StoreError
from shifter.folder import Folder
from shifter.patience import Patience, is_transient
from shifter.place import Opened, Place

T = TypeVar("T")

_REPLACEABLE = frozenset({"run.json", "portfolio.json", "report.html"})
_REPLACEABLE_FOLDERS = frozenset({"lease", "resume"})


@dataclass(frozen=True)
class Store:
    """Artifacts in one place. Made by :meth:`open` or :meth:`at`; cheap to send to another process.

    Every method waits for storage that fails for a while, and raises StoreError when ``patience``
    is at its end, or at once where waiting does not help.
    """

    place: Place
    patience: Patience = field(default=Patience(), compare=False)
    guard: Callable[[], None] | None = field(default=None, compare=False, repr=False)

    @classmethod
    def at(cls, uri: str) -> Store:
        """The store at ``uri``: a folder, or ``s3://bucket/prefix``. Touches nothing.

        Raises:
            StoreError: if ``uri`` cannot name one.
        """
        return cls(_place(uri), Patience.from_environment())

    @classmethod
    def open(cls, uri: str) -> Store:
        """The store at ``uri``. A folder is created if need be, a bucket is not.

        Raises:
            StoreError: if it is not there, or cannot be written to: now, not after hours of training.
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
        return self.place.uri

    @property
    def exclusive(self) -> bool:
        """Whether of several who write one new key at once certainly only one succeeds."""
        return self.place.exclusive

    def write(self, key: str, data: bytes) -> None:
        """Writes a new key, durably and verified, all of it or nothing. Once more is no error.

        Raises:
            StoreError: if the key exists with other bytes (it is left as it is), or the storage refuses.
        """
        patiently = partial(self._patiently, "write", _checked(key))

        def create() -> None:
            self._ask_guard()
            try:
                draft.create()
            except FileExistsError:
                raise StoreError(
                    f"{key} is already in the store {self.uri}: artifacts are not overwritten"
                ) from None

        with self.place.draft(key, data, patiently) as draft:
            patiently(create)
        patiently(draft.settle)

    def replace(self, key: str, data: bytes) -> None:
        """Writes one of the keys that may change: what only names other keys and states.

        A reader sees the old bytes or the new ones, never a mixture.

        Raises:
            StoreError: if the storage refuses.
        """
        parts = _checked(key).split("/")
        assert parts[-1] in _REPLACEABLE or _REPLACEABLE_FOLDERS & set(parts[:-1]), f"{key} is immutable"
        patiently = partial(self._patiently, "write", key)

        def name() -> None:
            self._ask_guard()
            draft.replace()

        with self.place.draft(key, data, patiently) as draft:
            patiently(name)
        patiently(draft.settle)

    def read(self, key: str) -> bytes:
        """All bytes of a key. Raises StoreError if there is none."""
        with self.open_file(key) as file:
            return file.read()

    def open_file(self, key: str) -> BinaryIO:
        """A key as a seekable file, for reading parts of it. Raises StoreError if there is none."""
        return cast(BinaryIO, io.BufferedReader(_PatientFile(self, _checked(key)), self.place.read_ahead))

    def exists(self, key: str) -> bool:
        return self._patiently("look up", key, partial(self.place.exists, _checked(key)))

    def list(self, prefix: str = "") -> list[str]:
        """Every key that begins with ``prefix``, sorted. What killed writers left is no key."""
        patiently = partial(self._patiently, "list", prefix.rpartition("/")[0] or ".")
        return sorted(name for name in self.place.list(prefix, patiently) if _is_key(name))

    def delete(self, key: str) -> None:
        """Removes a key that is no longer needed (mid-run state); one that is not there is no error."""
        self._remove(key, partial(self.place.delete, _checked(key)))

    def sweep(self, prefix: str) -> None:
        """Removes what killed writers left under the folder ``prefix``."""
        for name, remove in self.place.litter(prefix, partial(self._patiently, "list", prefix or ".")):
            self._remove(name, remove)

    def _remove(self, name: str, remove: Callable[[], None]) -> None:
        def guarded() -> None:
            self._ask_guard()
            remove()

        self._patiently("delete", name, guarded)

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

    def _probe(self) -> None:
        try:
            self.place.probe(partial(self.patience.attempt, what=f"write to the store {self.uri}"))
        except OSError as error:
            raise StoreError(f"the store {self.uri} cannot be written to: {error.strerror}") from error


class _PatientFile(io.RawIOBase):
    """A key opened for reading; opened again where reading failed."""

    def __init__(self, store: Store, key: str) -> None:
        super().__init__()
        self._store, self._key = store, key
        self._position = 0
        self._opened: Opened | None = None
        first = store._patiently("read", key, self._reopen)
        self._size, self._version = first.size, first.version

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        count = self._store._patiently("read", self._key, lambda: self._read(view))
        self._position += count
        return count

    def readall(self) -> bytes:
        data = bytearray(max(0, self._size - self._position))
        filled = 0
        while filled < len(data) and (count := self.readinto(memoryview(data)[filled:])):
            filled += count
        return bytes(data[:filled])

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()
            self._opened = None
        super().close()

    def _reopen(self) -> Opened:
        if self._opened is None:
            self._opened = self._store.place.open(self._key)
        return self._opened

    def _read(self, view: memoryview) -> int:
        opened = self._reopen()
        try:
            if opened.version != self._version:
                raise StoreError(
                    f"{self._key} in the store {self._store.uri} was replaced while it was read: "
                    "read it again"
                )
            count = opened.read_into(self._position, view)
            if count == 0 and len(view) and self._position < self._size:
                raise OSError(errno.EIO, "it ends too early")
        except OSError:
            opened.close()
            self._opened = None
            raise
        return count


def _place(uri: str) -> Place:
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/", uri)
    if not uri:
        raise StoreError("the store has no name: give a folder or s3://bucket/prefix")
    if scheme is None:
        return Folder.at(uri)
    if scheme[1].lower() != "s3":
        raise StoreError(
            f"the store {uri!r} cannot be used: {scheme[1]}: is not supported, give a folder "
            "or s3://bucket/prefix"
        )
    try:
        from shifter.bucket import Bucket
    except ModuleNotFoundError as error:
        raise StoreError(
            f"the store {uri!r} needs {error.name}: pip install 'shifter[train]', or 'shifter[edge]'"
        ) from error
    return Bucket.at(uri)


def _checked(key: str) -> str:
    assert _is_key(key), f"{key!r} is no key"
    return key


def _is_key(key: str) -> bool:
    return all(part and not part.startswith(".") for part in key.split("/"))
