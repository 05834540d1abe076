"""How a job shows what it is doing: a live display on a terminal, plain lines elsewhere.

Always on stderr; stdout is for results.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console as Terminal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

QUIET_SECONDS = 5.0
"""Plain lines: an epoch is told of this long after the last line; rounds and variants always are."""


class Console:
    """Shows lines, and events of phases 1 and 2 as they come in."""

    def __init__(self, terminal: Terminal, clock: Callable[[], float] = time.monotonic) -> None:
        self._terminal = terminal
        self._clock = clock
        self._began = clock()
        self._spoke = self._began - QUIET_SECONDS
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=terminal,
            disable=not terminal.is_terminal,
        )
        self._bars: dict[str, Any] = {}

    @classmethod
    @contextmanager
    def open(cls) -> Iterator[Console]:
        """A console on stderr; the live display is gone from the screen at the end."""
        # soft_wrap: a line is a line, however narrow the log.
        console = cls(Terminal(stderr=True, soft_wrap=True, highlight=False, markup=False))
        with console._progress:
            yield console

    def say(self, line: str) -> None:
        """One line, above the live display, with the seconds since the beginning."""
        self._spoke = self._clock()
        self._terminal.print(f"{self._spoke - self._began:6.1f} s  {line}")

    def on_event(self, event: Mapping[str, Any]) -> None:
        """Shows an event of ``shifter.training.imp`` or ``jobs.reduction``."""
        kind = event["event"]
        if kind == "epoch":
            done = event["round"] * event["epochs"] + event["epoch"]
            note = (
                f"round {event['round']} ({event['ratio']:g}x), epoch {event['epoch']} of {event['epochs']}: "
                f"loss {event['loss']:.4f}, validation accuracy {event['validation_accuracy']:.2%}"
            )
            self._advance("train", done, event["rounds"] * event["epochs"], note)
            if not self._terminal.is_terminal and self._clock() - self._spoke >= QUIET_SECONDS:
                self.say(note)
        elif kind == "round":
            self.say(
                f"round {event['round']} of 0–{event['rounds'] - 1} ({event['ratio']:g}x) is finished: "
                f"{event['nonzero_weights']:,} weights, "
                f"validation accuracy {event['validation_accuracy']:.2%}"
            )
        elif kind == "note":
            self.say(event["text"])
        elif kind == "reduced":
            self._advance("reduce", event["done"], event["of"], "")
            self.say(
                f"reduced {event['variant']} ({event['done']} of {event['of']}): "
                f"{event['structural_parameters']:,} structural parameters, "
                f"relative error {event['error']:.1e}"
            )
        elif kind == "profiling":
            self.say(f"profiling {event['variants']} variants")
        else:
            raise AssertionError(f"an event that nobody shows: {event}")

    def _advance(self, phase: str, done: int, total: int, note: str) -> None:
        if phase not in self._bars:
            self._bars[phase] = self._progress.add_task(phase, total=total, note=note)
        self._progress.update(self._bars[phase], completed=done, note=note)


@contextmanager
def results_only_on_stdout() -> Iterator[Callable[[str], None]]:
    """Yields what prints to stdout; whatever else is printed meanwhile, by any library, goes to stderr."""
    stdout = sys.stdout
    sys.stdout = sys.stderr
    try:
        yield lambda text: print(text, file=stdout, flush=True)
    finally:
        sys.stdout = stdout
