"""What every job's command line does alike: errors as one line, and exit statuses that mean something."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import ParamSpec

import typer

from shifter.errors import ShifterError

P = ParamSpec("P")

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it. 1 is a failure, 2 a wrong command line."""


def reports_errors(command: Callable[P, None]) -> Callable[P, None]:
    """A command that prints what a user can mend as ``error: …`` and exits with status 1.

    Anything else is our own mistake, and keeps its traceback.
    """

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except ShifterError as error:
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None

    return wrapped


def require(job: str, extras: str, *modules: str) -> None:
    """Refuses to start what would fail half-way for want of a package.

    Raises:
        ShifterError: naming the modules that are not installed and the extras that bring them.
    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise ShifterError(
            f"{job} needs {', '.join(missing)}, which this Python has not: pip install 'shifter[{extras}]'"
        )


def run(command: Callable[..., None]) -> None:
    """Runs one job as a command line of its own (``python -m jobs.NAME``)."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    app()
