"""What command lines do alike, whether they need Ray or not."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from shifter.errors import ShifterError

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
    app()
