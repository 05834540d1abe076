"""Where a service gets its portfolio from."""

from __future__ import annotations

import json
from pathlib import Path

from shifter.errors import PackageError, StoreError
from shifter.portfolio import Portfolio
from shifter.run import Run
from shifter.store import Store

_WHERE_RELATIVE_PATHS_BEGIN = (
    "; a relative path begins where the node was started ('ray start') or 'serve run' was called"
)


def find_package(path: Path) -> Path:
    """``path`` itself, or the current package of the run whose folder it is.

    Raises:
        PackageError: if it is a folder, but not that of a run with a portfolio.
    """
    path = path.absolute()
    if not path.is_dir():
        return path
    # Not `Store.open`, which wants to write: a node that serves may only be allowed to read.
    run = Run(Store(path.parent), path.name)
    try:
        current = json.loads(run.store.read(run.portfolio_json))["current"]
    except StoreError as error:
        raise PackageError(f"{path} is no run with a portfolio, nor a package: {error}") from error
    except (ValueError, LookupError, TypeError) as error:
        raise PackageError(f"{path.parent / run.portfolio_json} is damaged: {error}") from error
    return path.parent / run.portfolio_key(current)


def read_portfolio(path: Path) -> Portfolio:
    """A package, or the current package of the run whose folder ``path`` is.

    Raises:
        PackageError: naming the file, if there is none, or it is broken.
    """
    package = find_package(path)
    try:
        return Portfolio.open(package)
    except OSError as error:
        raise PackageError(
            f"no portfolio can be read at {package}: {error.strerror}; give a .zip or a run's folder"
            + ("" if path.is_absolute() else _WHERE_RELATIVE_PATHS_BEGIN)
        ) from error
    except PackageError as error:
        raise PackageError(f"{package}: {error}") from error
