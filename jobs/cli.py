"""What every job's command line does alike: errors as one line, exit statuses, and shared options."""

from __future__ import annotations

import functools
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Annotated, NoReturn, ParamSpec

import typer

from jobs.console import Style
from shifter import __version__
from shifter.command_line import INTERRUPTED, TERMINATED, Overrides, errors_in_a_line, run, run_app
from shifter.errors import ShifterError

__all__ = [
    "INTERRUPTED",
    "TERMINATED",
    "Overrides",
    "Progress",
    "Terminated",
    "Version",
    "reports_errors",
    "require",
    "run",
    "run_app",
    "terminated_later",
]

P = ParamSpec("P")


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a job as Ctrl-C does."""


def _show_version(asked: bool) -> None:
    if asked:
        print(f"shifter {__version__}")
        raise typer.Exit


Progress = Annotated[
    Style,
    typer.Option(
        help="How to tell of it on stderr: live on a terminal and plain lines elsewhere (auto), plain "
        "lines, a JSON object a line (jsonl), or nothing but errors (none)."
    ),
]
Version = Annotated[
    bool,
    typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True),
]


def reports_errors(command: Callable[P, None]) -> Callable[P, None]:
    """A command that prints what a user can mend as ``error: …`` and exits with status 1.

    Anything else is our own mistake, and keeps its traceback.
    """

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            with errors_in_a_line(), _terminable():
                command(*args, **kwargs)
        except Terminated:
            print("terminated", file=sys.stderr)
            raise typer.Exit(TERMINATED) from None
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None

    return wrapped


class _Deferral:
    """Whether SIGTERM has to wait, and whether it does."""

    depth = 0
    pending = False


def _raise_terminated() -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated


@contextmanager
def terminated_later() -> Iterator[None]:
    """SIGTERM waits for the end of this context.

    For importing and starting what is large: an exception that arrives in the middle of that may be
    swallowed, as whatever is raised in a callback of the garbage collector is.
    """
    _Deferral.depth += 1
    try:
        yield
    finally:
        _Deferral.depth -= 1
        if _Deferral.pending and _Deferral.depth == 0:
            _Deferral.pending = False
            _raise_terminated()


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM arrives as an exception, once; what is said again while the job cleans up changes nothing."""

    def terminate(*_: object) -> None:
        if _Deferral.depth:
            _Deferral.pending = True
        else:
            _raise_terminated()

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread hears of signals
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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
