"""Where a service gets its portfolio from."""

from __future__ import annotations

import json
from pathlib import Path

from shifter.errors import PackageError, StoreError
from shifter.portfolio import Portfolio
from shifter.run import Run
from shifter.store import Store


def read_portfolio(path: Path) -> Portfolio:
    """A package, or the current package of the run whose folder ``path`` is.

    Raises:
        PackageError: if there is none, or it is broken.
    """
    given, path = path, path.absolute()
    if path.is_dir():
        # Not `Store.open`, which wants to write: a node that serves may only be allowed to read.
        run = Run(Store(path.parent), path.name)
        try:
            current = json.loads(run.store.read(run.portfolio_json))["current"]
            return Portfolio.open(run.store.read(run.portfolio_key(current)))
        except StoreError as error:
            raise PackageError(f"{path} is no run with a portfolio, nor a package: {error}") from error
    try:
        return Portfolio.open(path)
    except OSError as error:
        start = (
            ""
            if given.is_absolute()
            else (
                "; a relative path begins where the node was started ('ray start') or 'serve run' was called"
            )
        )
        raise PackageError(
            f"no portfolio can be read at {path}: {error.strerror}; give a .zip or a run's folder{start}"
        ) from error
