"""Where artifacts live: a folder or a bucket, addressed by keys such as ``<run>/rounds/round-00.arrow``.

A key appears at once and whole, or not at all, and is never overwritten; but for the few that only
name other keys and states. What a writer that is killed leaves is no key. Storage that fails for a
while is waited for (``shifter.patience``).
"""

from __future__ import annotations

import errno
import io
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import BinaryIO, TypeVar, cast

from shifter.errors import StoreError
from shifter.folder import Folder
from shifter.patience import Patience, is_transient, is_unanswered
from shifter.patient_file import PatientFile
from shifter.place import Place, scheme_of

T = TypeVar("T")

FIRST_CONTACT_S = 10.0
"""For storage that was not heard of before: its address is more likely wrong than it is down."""
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
        store.greet()
        store._probe()
        return store

    def guarded(self, guard: Callable[[], None]) -> Store:
        """This store, but ``guard`` is called before anything is changed, and may raise instead."""
        return replace(self, guard=guard)

    def patient(self, limit_s: float) -> Store:
        """This store, but storage that fails is waited for no longer than that."""
        return replace(self, patience=replace(self.patience, limit_s=limit_s))

    def greet(self) -> None:
        """To be called once, where a job begins: whoever answers then is waited for afterwards.

        Raises:
            StoreError: if nobody answers for some seconds, whatever ``patience`` says.
        """

        def ask() -> None:
            try:
                self.place.exists("run.json")
            except OSError as error:
                if is_unanswered(error):
                    raise

        patience = replace(self.patience, limit_s=min(self.patience.limit_s, FIRST_CONTACT_S))
        try:
            patience.attempt(ask, f"reach the store {self.uri}")
        except OSError as error:
            raise StoreError(f"the store {self.uri} cannot be reached: {error.strerror}") from error

    @property
    def uri(self) -> str:
        return self.place.uri

    def write(self, key: str, data: bytes) -> None:
        """Writes a new key, durably and verified, all of it or nothing. Once more is no error.

        Raises:
            StoreError: if the key exists with other bytes (it is left as it is), or the storage refuses.
        """
        if not self.create(key, data):
            raise StoreError(f"{key} is already in the store {self.uri}: artifacts are not overwritten")

    def create(self, key: str, data: bytes) -> bool:
        """The same for who has rivals: False if the key is another's. Raises StoreError otherwise."""
        patiently = partial(self._patiently, "write", _checked(key))

        def create() -> bool:
            self._ask_guard()
            try:
                draft.create()
            except FileExistsError:
                return False
            return True

        with self.place.draft(key, data, patiently) as draft:
            created = patiently(create)
        if created:
            patiently(draft.settle)
        return created

    def replace(self, key: str, data: bytes) -> None:
        """Writes one of the keys that may change: what only names other keys and states.

        A reader sees the old bytes or the new ones, never a mixture.

        Raises:
            StoreError: if the storage refuses.
        """
        _, *inner = _checked(key).split("/")  # a run's name may be that of one of its folders
        assert (len(inner) == 1 and inner[0] in _REPLACEABLE) or (
            len(inner) > 1 and inner[0] in _REPLACEABLE_FOLDERS
        ), f"{key} is immutable"
        patiently = partial(self._patiently, "write", key)

        def name() -> None:
            self._ask_guard()
            draft.replace()

        with self.place.draft(key, data, patiently) as draft:
            patiently(name)
        patiently(draft.settle)

    def read(self, key: str) -> bytes:
        """All bytes of a key. Raises StoreError if there is none."""

        def whole() -> bytes:
            """In one go: where reading failed the key may hold other bytes by now."""
            with closing(self.place.open(key)) as opened:
                data = bytearray(opened.size)
                filled = 0
                while filled < len(data):
                    count = opened.read_into(filled, memoryview(data)[filled:])
                    if count == 0:
                        raise OSError(errno.EIO, "it ends too early")
                    filled += count
            return bytes(data)

        return self._patiently("read", _checked(key), whole)

    def open_file(self, key: str) -> BinaryIO:
        """A key as a seekable file, for reading parts of it. Raises StoreError if there is none."""
        patiently = partial(self._patiently, "read", _checked(key))
        name = f"{key} in the store {self.uri}"
        file = PatientFile(partial(self.place.open, key), name, patiently)
        return cast(BinaryIO, io.BufferedReader(file, self.place.read_ahead))

    def exists(self, key: str) -> bool:
        return self._patiently("look up", key, partial(self.place.exists, _checked(key)))

    def version(self, key: str) -> str:
        """What differs once a key holds other bytes; reads none of them. Raises StoreError as `read`."""
        return self._patiently("read", _checked(key), partial(self.place.version, key))

    def list(self, prefix: str = "") -> list[str]:
        """Every key that begins with ``prefix``, sorted. What killed writers left is no key."""
        patiently = partial(self._patiently, "list", prefix.rpartition("/")[0] or ".")
        return sorted(name for name in self.place.list(prefix, patiently) if _is_key(name))

    def delete(self, key: str) -> None:
        """Removes a key that is no longer needed (mid-run state); one that is not there is no error."""
        self._remove(key, partial(self.place.delete, _checked(key)))

    def sweep(self, prefix: str, spare: str | None = None) -> None:
        """Removes what killed writers left under the folder ``prefix``, but not under ``spare``."""
        for name, remove in self.place.litter(prefix, partial(self._patiently, "list", prefix or ".")):
            if spare is None or not name.startswith(f"{spare}/"):
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


def _place(uri: str) -> Place:
    scheme = scheme_of(uri)
    if not uri:
        raise StoreError("the store has no name: give a folder or s3://bucket/prefix")
    if scheme is None:
        return Folder.at(uri)
    if scheme != "s3":
        raise StoreError(
            f"the store {uri!r} cannot be used: {scheme}: is not supported, give a folder "
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
