"""What surrounds the training of a run, with Ray or without: its beginning, its record, its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shifter.run import Run
from shifter.training.archive import forget_unfinished
from shifter.training.imp import OnEvent


def is_trained(run: Run) -> bool:
    """Whether no round is left. Raises TrainingError if the dense network was too poor to go on."""
    return run.finished_rounds() >= run.rounds()


def complete(run: Run) -> None:
    """Once no round is left: records if that was early, deletes what only an unfinished run needs."""
    run.note_early_end()
    forget_unfinished(run)


def recording(run: Run, on_event: OnEvent) -> OnEvent:
    """``on_event``, but attempts go into the run's record."""

    def record(event: Mapping[str, Any]) -> None:
        if event["event"] == "attempt":
            run.note_attempt(**{name: fact for name, fact in event.items() if name != "event"})
        else:
            on_event(event)

    return record
