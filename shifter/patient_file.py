"""A file opened for reading, and opened again where reading failed."""

from __future__ import annotations

import errno
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shifter.disk import Disk


class PatientFile(io.RawIOBase):
    """Unbuffered. Its end is where it was when it was opened: its key does not change.

    Args:
        patiently: calls a function until it returns a number, and returns that.

    Raises:
        What ``patiently`` raises, also when it is made.
    """

    def __init__(self, disk: Disk, path: Path, patiently: Callable[[Callable[[], int]], int]) -> None:
        super().__init__()
        self._disk, self._path, self._patiently = disk, path, patiently
        self._position = 0
        self._file: io.FileIO | None = None
        self._size = patiently(self._open)

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

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        super().close()

    def _open(self) -> int:
        """Opens it; returns its size."""
        file = self._disk.open(self._path)
        self._file = file
        return file.seek(0, io.SEEK_END)

    def _read(self, view: memoryview) -> int:
        if self._file is None:
            self._open()
        assert self._file is not None
        try:
            count = self._disk.read_into(self._file, self._position, view)
            if count == 0 and len(view) and self._position < self._size:
                raise OSError(errno.EIO, "it ends too early")
        except OSError:
            self._file.close()
            self._file = None
            raise
        return count
