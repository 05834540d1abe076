"""Where a portfolio lies: a package, or a run whose current package is meant; in a folder or a bucket."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shifter.errors import PackageError, StoreError
from shifter.place import scheme_of

if TYPE_CHECKING:
    from shifter.portfolio.package import Portfolio
    from shifter.store import Store


@dataclass(frozen=True)
class Source:
    """A place that holds one portfolio now, and perhaps a newer one later.

    Args:
        place: a package (``.zip``), or a run's folder, whose ``portfolio.json`` names the package;
            either may be in a bucket (``s3://bucket/prefix/run``). Nothing is written there.
        patience_s: for how long storage that fails is waited for; None: as everywhere
            (`shifter.patience`).
    """

    place: str
    patience_s: float | None = None

    def version(self) -> str:
        """What differs once another package is meant; reads no package.

        The digest that a run names; else the ETag of a key, or of a file what changes with its bytes.

        Raises:
            StoreError: if nothing can be read there. PackageError: if the run's portfolio.json is damaged.
        """
        package, digest = self._find()
        if digest is not None:
            return digest
        try:
            if scheme_of(package):
                uri, name = _parted(package)
                return self._store(uri).version(name)
            about = Path(package).stat()
        except OSError as error:
            raise _unreadable(package, error) from error
        return f"{about.st_ino}-{about.st_size}-{about.st_mtime_ns}"

    def open(self, most_bytes: int | None = None) -> Portfolio:
        """The portfolio that is there now; its content is checked as it is inflated.

        Args:
            most_bytes: a larger package is refused before it is read; None for any size.

        Raises:
            StoreError: naming the file, if it cannot be read. PackageError: if it is broken, hostile, of
                another format version, or not the one that the run names.
        """
        from shifter.portfolio.package import Portfolio

        package, digest = self._find()
        data = self._read(package, most_bytes)
        if digest is not None and (found := hashlib.sha256(data).hexdigest()) != digest:
            raise PackageError(f"{package} has sha256 {found}: it is not the package that it was named after")
        try:
            return Portfolio(data)
        except PackageError as error:
            raise PackageError(f"{package}: {error}") from error

    def package(self, digest: str | None = None) -> str:
        """Where the package lies that is meant now, or that one of a run's whose sha256 is known.

        Raises:
            StoreError, PackageError: as `version`; but nothing is read for one that is known.
        """
        return self._find(digest)[0]

    def _find(self, digest: str | None = None) -> tuple[str, str | None]:
        """The package that is meant, and its sha256 if a run names it."""
        place = self.place
        if scheme_of(place):
            if place.endswith(".zip"):
                return place, None
        else:
            path = Path(place).absolute()
            if not path.is_dir():
                return str(path), None
            place = str(path)
        from shifter.run import Run  # which reads recipes: a service of a package starts faster without

        uri, name = _parted(place)
        try:
            self._store(place)  # refuses what names nothing
            run = Run(self._store(uri), name)
            if digest is not None:
                return f"{uri}/{run.portfolio_key(digest)}", digest
            named = run.store.read(run.portfolio_json)
        except StoreError as error:
            raise StoreError(f"{place} is no run with a portfolio, nor a package: {error}") from error
        try:
            digest = json.loads(named)["current"]
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise PackageError(f"{uri}/{run.portfolio_json} is damaged: {error!r}") from error
        if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
            raise PackageError(f"{uri}/{run.portfolio_json} is damaged: it names {digest!r}, no sha256")
        return f"{uri}/{run.portfolio_key(digest)}", digest

    def _read(self, package: str, most_bytes: int | None) -> bytes:
        try:
            if scheme_of(package) is None:
                with Path(package).open("rb") as file:
                    _check_size(package, os.fstat(file.fileno()).st_size, most_bytes)
                    return file.read()
            uri, name = _parted(package)
            store = self._store(uri)
            if most_bytes is not None:
                with store.open_file(name) as opened:
                    _check_size(package, opened.seek(0, os.SEEK_END), most_bytes)
            return store.read(name)
        except OSError as error:
            raise _unreadable(package, error) from error

    def _store(self, uri: str) -> Store:
        from shifter.store import Store

        # Not `Store.open`, which wants to write: who reads may only be allowed to read.
        store = Store.at(uri)
        return store if self.patience_s is None else store.patient(self.patience_s)


def _unreadable(package: str, error: OSError) -> StoreError:
    return StoreError(
        f"no portfolio can be read at {package}: {error.strerror or error}; give a .zip or a run's folder"
    )


def _check_size(package: str, size: int, most: int | None) -> None:
    if most is not None and size > most:
        raise PackageError(f"{package} has {size} bytes: there is room for {max(0, most)}")


def _parted(place: str) -> tuple[str, str]:
    """The folder or prefix in which something lies, and its name there."""
    uri, _, name = place.rstrip("/").rpartition("/")
    return uri or "/", name
