"""What a folder store asks of the operating system, and no more: tests put faults in its place."""

from __future__ import annotations

import os
import stat
from io import FileIO
from pathlib import Path

_CHUNK = 2**20


class Disk:
    """Plain file operations. Each raises OSError; each may be repeated."""

    def make_folder(self, folder: Path) -> None:
        """With those above it; one that is there is no error."""
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, path: Path, data: bytes) -> None:
        """All of ``data``, on the medium when this returns."""
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):
                # What is read back is to come from where it lies, not from this machine's memory.
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def holds(self, path: Path, data: bytes) -> bool:
        """Whether a file holds just these bytes."""
        left = memoryview(data)
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                if left[: len(chunk)] != chunk:
                    return False
                left = left[len(chunk) :]
        return not left

    def open(self, path: Path) -> FileIO:
        """For reading, unbuffered; FileNotFoundError if it is not there."""
        return FileIO(path)

    def read_into(self, file: FileIO, position: int, buffer: memoryview) -> int:
        """Reads from ``position`` on; returns how many bytes, 0 at the end."""
        file.seek(position)
        return file.readinto(buffer) or 0

    def link(self, path: Path, name: Path) -> None:
        """A second name; FileExistsError if it is taken."""
        os.link(path, name)

    def rename(self, path: Path, name: Path) -> None:
        """In one step, whatever has the name; FileNotFoundError if there is no ``path``."""
        os.replace(path, name)

    def unlink(self, path: Path) -> None:
        """One that is not there is no error."""
        path.unlink(missing_ok=True)

    def is_file(self, path: Path) -> bool:
        """Whether there is a regular file, or a link to one."""
        try:
            return stat.S_ISREG(path.stat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def scan(self, folder: Path) -> tuple[list[str], list[str]]:
        """Names of the folders and of the files in a folder; none if it is not there."""
        folders, files = [], []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.name)
                    elif entry.is_file():
                        files.append(entry.name)
        except (FileNotFoundError, NotADirectoryError):
            pass  # it may have been removed meanwhile
        return folders, files

    def sync(self, folder: Path) -> None:
        """Makes new names durable, not only the bytes under them."""
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
