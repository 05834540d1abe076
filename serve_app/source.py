"""Where a service gets its portfolio from."""

from __future__ import annotations

import json
import re
from pathlib import Path

from shifter.errors import PackageError, StoreError
from shifter.portfolio import Portfolio
from shifter.run import Run
from shifter.store import Store

_WHERE_RELATIVE_PATHS_BEGIN = (
    "; a relative path begins where the node was started ('ray start') or 'serve run' was called"
)


def find_package(place: str) -> str:
    """``place`` itself, or the current package of the run that it is.

    Args:
        place: a file, a run's folder, or either of them in a bucket (``s3://…``).

    Raises:
        PackageError: if it is a folder, but not that of a run with a portfolio.
    """
    if _is_in_bucket(place):
        if place.endswith(".zip"):
            return place
    else:
        path = Path(place).absolute()
        if not path.is_dir():
            return str(path)
        place = str(path)
    uri, name = _parted(place)
    try:
        Store.at(place)  # refuses what names nothing
        # Not `Store.open`, which wants to write: a node that serves may only be allowed to read.
        run = Run(Store.at(uri), name)
        named = run.store.read(run.portfolio_json)
    except StoreError as error:
        raise PackageError(f"{place} is no run with a portfolio, nor a package: {error}") from error
    try:
        current = json.loads(named)["current"]
    except (ValueError, LookupError, TypeError) as error:
        raise PackageError(f"{uri}/{run.portfolio_json} is damaged: {error}") from error
    return f"{uri}/{run.portfolio_key(current)}"


def read_portfolio(place: str) -> Portfolio:
    """A package, or the current package of a run; ``place`` as for :func:`find_package`.

    Raises:
        PackageError: naming the file, if there is none, or it is broken.
    """
    package = find_package(place)
    try:
        return Portfolio.open(_read(package))
    except OSError as error:
        begins = "" if _is_in_bucket(place) or Path(place).is_absolute() else _WHERE_RELATIVE_PATHS_BEGIN
        raise PackageError(
            f"no portfolio can be read at {package}: {error.strerror or error}; "
            f"give a .zip or a run's folder{begins}"
        ) from error
    except PackageError as error:
        raise PackageError(f"{package}: {error}") from error


def _read(package: str) -> bytes:
    if not _is_in_bucket(package):
        return Path(package).read_bytes()
    uri, name = _parted(package)
    return Store.at(uri).read(name)


def _is_in_bucket(place: str) -> bool:
    return re.match("s3:/", place, re.IGNORECASE) is not None


def _parted(place: str) -> tuple[str, str]:
    """The folder or prefix in which something lies, and its name there."""
    uri, _, name = place.rstrip("/").rpartition("/")
    return uri or "/", name
