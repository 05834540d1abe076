"""What a store stands on: a folder (``shifter.folder``) or a bucket (``shifter.bucket``).

A place knows how bytes get a key and come back; what a store promises beyond that is the store's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

T = TypeVar("T")


def scheme_of(uri: str) -> str | None:
    """``s3`` of an address in a bucket, whatever its case; None of a path.

    One slash is enough: who forgets the other means a bucket all the same, and is to be told.
    """
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/", uri)
    return found[1].lower() if found else None


class Patiently(Protocol):
    """Carries out one step, again while it fails for a while; raises StoreError in the end."""

    def __call__(self, step: Callable[[], T], /) -> T: ...


class Draft(Protocol):
    """Bytes that are ready to become a key. Each step raises OSError, and may be repeated."""

    def create(self) -> None:
        """Gives them their key, all of them at once. The same bytes under it already are no error.

        Raises:
            FileExistsError: if the key holds other bytes; it keeps them.
        """

    def replace(self) -> None:
        """Gives them their key, whatever it held."""

    def settle(self) -> None:
        """Makes the key outlast a crash of the machine."""


class Opened(Protocol):
    """A key opened for reading. ``version`` differs once the key holds other bytes, if that is known."""

    @property
    def size(self) -> int: ...

    @property
    def version(self) -> str: ...

    def read_into(self, position: int, buffer: memoryview) -> int:
        """Reads from ``position`` on; returns how many bytes, 0 at the end."""

    def close(self) -> None: ...


class Place(Protocol):
    """Where keys are kept. Each step raises OSError, and may be repeated.

    What takes many steps is given the patience for each of them.
    """

    @property
    def uri(self) -> str: ...

    @property
    def read_ahead(self) -> int:
        """Bytes that are worth reading where fewer are asked for."""

    def probe(self, patiently: Patiently) -> None:
        """Does all that writing does, so that what fails would have failed there."""

    def draft(self, key: str, data: bytes, patiently: Patiently) -> AbstractContextManager[Draft]: ...

    def open(self, key: str) -> Opened:
        """Raises FileNotFoundError if there is no such key."""

    def exists(self, key: str) -> bool: ...

    def version(self, key: str) -> str:
        """That of `open`, without reading a byte. Raises FileNotFoundError if there is no such key."""

    def list(self, prefix: str, patiently: Patiently) -> Iterator[str]:
        """Every name that begins with ``prefix``, in any order; some may be no keys."""

    def delete(self, key: str) -> None:
        """One that is not there is no error."""

    def litter(self, folder: str, patiently: Patiently) -> Iterator[tuple[str, Callable[[], None]]]:
        """What killed writers left under a folder: names, and the step that removes it."""
