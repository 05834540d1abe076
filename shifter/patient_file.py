"""A key opened for reading, and opened again where reading failed."""

from __future__ import annotations

import errno
import io
from collections.abc import Callable
from typing import Any

from shifter.errors import StoreError
from shifter.place import Opened, Patiently


class PatientFile(io.RawIOBase):
    """Unbuffered. Its end is where it was when it was opened.

    Args:
        open_key: opens it.
        name: of the key and its store, for the message.

    Raises:
        StoreError: when made or read, if ``patiently`` gives up, or the key was replaced meanwhile.
    """

    def __init__(self, open_key: Callable[[], Opened], name: str, patiently: Patiently) -> None:
        super().__init__()
        self._open_key, self._name, self._patiently = open_key, name, patiently
        self._position = 0
        self._opened: Opened | None = None
        first = patiently(self._reopen)
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
        count = self._patiently(lambda: self._read(view))
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
            self._opened = self._open_key()
        return self._opened

    def _read(self, view: memoryview) -> int:
        opened = self._reopen()
        try:
            if opened.version != self._version:
                raise StoreError(f"{self._name} was replaced while it was read: read it again")
            count = opened.read_into(self._position, view)
            if count == 0 and len(view) and self._position < self._size:
                raise OSError(errno.EIO, "it ends too early")
        except OSError:
            opened.close()
            self._opened = None
            raise
        return count
