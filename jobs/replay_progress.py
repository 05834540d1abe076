"""How far a replay is: a bar on a terminal, a line every few seconds elsewhere; always on stderr."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console as Terminal
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from jobs.console import QUIET_SECONDS, Console, Style

Watch = Callable[[Mapping[str, Any]], None]


def line(told: Mapping[str, Any], seconds: float) -> str:
    """What the client's process told, for people."""
    return (
        f"{told['seconds']:,.0f} s of {seconds:,.4g}: {told['sent']:,} sent, {told['answered']:,} answered, "
        f"{told['in_flight']:,} in flight"
    )


@contextmanager
def watching(style: Style, console: Console, seconds: float) -> Iterator[Watch]:
    """What to hand the client's reports to, for a load of so many seconds.

    Args:
        console: a plain one; it is used where there is no terminal.
    """
    terminal = Terminal(stderr=True, highlight=False, markup=False)
    if style is Style.AUTO and terminal.is_terminal and not terminal.is_dumb_terminal:
        with Progress(
            BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn(),
            console=terminal, transient=True,
        ) as progress:  # fmt: skip
            task = progress.add_task("the load begins", total=seconds)

            def show(told: Mapping[str, Any]) -> None:
                progress.update(task, completed=told["seconds"], description=line(told, seconds))

            yield show
    elif style is Style.JSONL:
        yield lambda told: console.on_event({"event": "load", "of_seconds": seconds, **told})
    else:
        spoke = time.monotonic()

        def say(told: Mapping[str, Any]) -> None:
            nonlocal spoke
            if time.monotonic() - spoke >= QUIET_SECONDS:
                spoke = time.monotonic()
                console.say(line(told, seconds))

        yield say
