"""What command lines do alike, whether they need Ray or not."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from shifter.errors import ShifterError

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it. 1 is a failure, 2 a wrong command line."""
TERMINATED = 143
"""Exit status after SIGTERM, likewise."""

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


@contextmanager
def errors_in_a_line() -> Iterator[None]:
    """What a user can mend is printed as ``error: …``, and the status is 1 (:class:`typer.Exit`).

    Anything else is our own mistake, and keeps its traceback.
    """
    try:
        yield
    except ShifterError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None


def run(command: Callable[..., None]) -> None:
    """Runs a command as a program of its own, with this process's arguments; raises SystemExit."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    run_app(app)


def run_app(app: Callable[[], object]) -> None:
    """Runs a command line; raises SystemExit.

    One that was interrupted has cleaned up, and leaves without the interpreter's own end: threads of
    libraries that were in the middle of something may abort the process there, with another status.
    """
    try:
        app()
    except SystemExit as ended:
        if ended.code in (INTERRUPTED, TERMINATED):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(ended.code)
        raise
