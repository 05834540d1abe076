"""What every job's command line does alike: errors as one line, exit statuses, and shared options."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Annotated, ParamSpec

import typer

from jobs.console import Style
from shifter import __version__
from shifter.errors import ShifterError

P = ParamSpec("P")

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it. 1 is a failure, 2 a wrong command line."""


def _show_version(asked: bool) -> None:
    if asked:
        print(f"shifter {__version__}")
        raise typer.Exit


Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Change the recipe, as in seed=7 or training.learning_rate=0.05; the value is YAML. "
        "May be repeated.",
        metavar="A.B=C",
        show_default=False,
    ),
]
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
