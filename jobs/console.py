"""How a job shows what it is doing: a live table on a terminal, plain or JSON lines elsewhere.

Always on stderr; stdout is for results.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console as Terminal
from rich.console import RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table

from jobs.progress import Training, clock, line

QUIET_SECONDS = 5.0
"""Plain lines: an epoch is told of this long after the last line; rounds and variants always are."""


class Style(StrEnum):
    """How to show it; ``AUTO`` is live on a terminal, and plain elsewhere."""

    AUTO = "auto"
    PLAIN = "plain"
    JSONL = "jsonl"
    NONE = "none"


class Console:
    """Shows lines, and events of phases 1 and 2 as they come in; this one as plain lines."""

    def __init__(self, terminal: Terminal, clock: Callable[[], float] = time.monotonic) -> None:
        self._terminal = terminal
        self._clock = clock
        self._began = clock()
        self._spoke = self._began - QUIET_SECONDS
        self._trainings: dict[str, Training] = {}

    @classmethod
    @contextmanager
    def open(cls, style: Style) -> Iterator[Console]:
        """A console on stderr; a live display is gone from the screen at the end."""
        # soft_wrap: a line is a line, however narrow the log.
        terminal = Terminal(stderr=True, soft_wrap=True, highlight=False, markup=False)
        if style is Style.AUTO and terminal.is_terminal and not terminal.is_dumb_terminal:
            live = LiveConsole(terminal)
            with live.display:
                yield live
        elif style is Style.JSONL:
            yield JsonConsole(terminal)
        elif style is Style.NONE:
            yield SilentConsole(terminal)
        else:
            yield Console(terminal)

    def say(self, line: str) -> None:
        """One line, with the seconds since the beginning."""
        self._spoke = self._clock()
        self._print(f"{self._spoke - self._began:6.1f} s  {line}")

    def on_event(self, event: Mapping[str, Any]) -> None:
        """Shows an event of ``shifter.training.imp`` or ``jobs.reduction``.

        Of several runs at once, each event says by ``run`` whose it is.
        """
        run = event.get("run", "")
        if event["event"] == "epoch":
            if run not in self._trainings:
                self._trainings[run] = Training(event, self._clock())
            else:
                self._trainings[run].take(event, self._clock())
            self._show_epoch(self._trainings[run])
        else:
            if event["event"] in ("reduced", "profiling"):
                self._trainings.clear()
            self._show(event)

    def _show_epoch(self, training: Training) -> None:
        if self._clock() - self._spoke >= QUIET_SECONDS:
            self.say(training.line(self._clock()))

    def _show(self, event: Mapping[str, Any]) -> None:
        self.say(line(event))

    def _print(self, text: str) -> None:
        self._terminal.print(text)


class LiveConsole(Console):
    """Lines above a table of the epoch just trained, or, in other phases, a sign that work goes on."""

    def __init__(self, terminal: Terminal, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(terminal, clock)
        self._spinner = Spinner("line")
        self.display = Live(
            get_renderable=self._render, console=terminal, transient=True, refresh_per_second=4
        )

    def _show_epoch(self, training: Training) -> None:
        self.display.refresh()

    def _show(self, event: Mapping[str, Any]) -> None:
        self.display.refresh()  # printing alone would repeat what was last drawn
        super()._show(event)

    def _render(self) -> RenderableType:
        now = self._clock()
        if not self._trainings:
            self._spinner.update(text=clock(now - max(self._spoke, self._began)))
            return self._spinner
        table = Table(header_style="bold", box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
        rows = [training.cells(now) for training in list(self._trainings.values())]
        for heading in rows[0]:
            table.add_column(heading, justify="right")
        for cells in rows:
            table.add_row(*cells.values())
        return table


class JsonConsole(Console):
    """A JSON object a line: every event with its own fields and ``elapsed`` seconds.

    ``message`` is an event too; an epoch comes with images/s, seconds left and worker-seconds.
    """

    def say(self, line: str) -> None:
        self._write({"event": "message", "text": line})

    def _show_epoch(self, training: Training) -> None:
        self._write({**training.epoch, **training.figures(self._clock())})

    def _show(self, event: Mapping[str, Any]) -> None:
        self._write(event)

    def _write(self, event: Mapping[str, Any]) -> None:
        elapsed = round(self._clock() - self._began, 3)
        self._print(json.dumps({"elapsed": elapsed, **event}, ensure_ascii=False))


class SilentConsole(Console):
    """Shows nothing."""

    def _print(self, text: str) -> None:
        pass


@contextmanager
def results_only_on_stdout() -> Iterator[Callable[[str], None]]:
    """Yields what prints to stdout; whatever else is printed meanwhile, by any library, goes to stderr."""
    stdout = sys.stdout
    sys.stdout = sys.stderr
    try:
        yield lambda text: print(text, file=stdout, flush=True)
    finally:
        sys.stdout = stdout
