"""Storage that fails: the file operations of a store, of which some calls go wrong."""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from io import FileIO
from pathlib import Path
from typing import TypeVar

from shifter.disk import Disk
from shifter.folder import Folder
from shifter.patience import Patience
from shifter.store import Store

T = TypeVar("T")

HASTY = Patience(limit_s=60, first_pause_s=0.0005, longest_pause_s=0.01)
"""Of who waits for faults that are only played."""


def fault(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class FaultyDisk(Disk):
    """A share of all calls fails, before or after it has been done, is cut off, or is slow.

    Args:
        share: of the calls, 0 to 1; drawn from ``seed``.
        gone: once it is true, every call fails.
    """

    def __init__(self, share: float, seed: int = 0) -> None:
        self.share, self.gone = share, False
        self.calls: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, object]:
        """For a worker, which has a lock of its own."""
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    def _call(self, operation: str, act: Callable[[], T], cut: Callable[[], T] | None = None) -> T:
        with self._lock:
            self.calls[operation] += 1
            kinds = ["before", "slow"] + (["after"] if operation != "open" else []) + (["cut"] if cut else [])
            kind = self._random.choice(kinds) if self._random.random() < self.share else "none"
            number = self._random.choice([errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN])
            kind = "before" if self.gone else kind
            self.faults[kind] += kind != "none"
        if kind == "before":
            raise fault(number)
        if kind == "slow":
            time.sleep(0.002)
        result = cut() if cut and kind == "cut" else act()
        if kind == "after":
            raise fault(number)
        return result

    def make_folder(self, folder: Path) -> None:
        self._call("make_folder", lambda: super(FaultyDisk, self).make_folder(folder))

    def write(self, path: Path, data: bytes) -> None:
        whole, half = super().write, data[: len(data) // 2]
        self._call("write", lambda: whole(path, data), cut=lambda: whole(path, half))

    def holds(self, path: Path, data: bytes) -> bool:
        return self._call("holds", lambda: super(FaultyDisk, self).holds(path, data))

    def open(self, path: Path) -> FileIO:
        return self._call("open", lambda: super(FaultyDisk, self).open(path))

    def read_into(self, file: FileIO, position: int, buffer: memoryview) -> int:
        read, some = super().read_into, buffer[: len(buffer) // 2]
        return self._call(
            "read_into", lambda: read(file, position, buffer), cut=lambda: read(file, position, some)
        )

    def link(self, path: Path, name: Path) -> None:
        self._call("link", lambda: super(FaultyDisk, self).link(path, name))

    def rename(self, path: Path, name: Path) -> None:
        self._call("rename", lambda: super(FaultyDisk, self).rename(path, name))

    def unlink(self, path: Path) -> None:
        self._call("unlink", lambda: super(FaultyDisk, self).unlink(path))

    def is_file(self, path: Path) -> bool:
        return self._call("is_file", lambda: super(FaultyDisk, self).is_file(path))

    def scan(self, folder: Path) -> tuple[list[str], list[str]]:
        return self._call("scan", lambda: super(FaultyDisk, self).scan(folder))

    def sync(self, folder: Path) -> None:
        self._call("sync", lambda: super(FaultyDisk, self).sync(folder))


MOMENTS = [
    (name, when)
    for name, value in vars(Disk).items()
    if callable(value)
    for when in ("before", "after")
    if (name, when) != ("open", "after")  # a file that failed to open is not there to be closed
]
"""Each operation, and when it may fail: before or after it has been done."""


class FailingOnce(Disk):
    """One call of one operation fails, ``before`` or ``after`` it has been done."""

    def __init__(self, operation: str, when: str, number: int = errno.EIO) -> None:
        self.failed = False
        act = getattr(Disk, operation)

        def once(*arguments: object) -> object:
            if self.failed:
                return act(self, *arguments)
            self.failed = True
            if when == "after":
                act(self, *arguments)
            raise fault(number)

        setattr(self, operation, once)


def on(disk: Disk, store: Store, patience: Patience = HASTY) -> Store:
    """The same store, reached through ``disk``."""
    assert isinstance(store.place, Folder)
    return replace(store, place=replace(store.place, disk=disk), patience=patience)
