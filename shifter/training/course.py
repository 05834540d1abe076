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
    """``on_event``, but attempts go into the run's record.

    One that differs from the last in what decides the bits is told of as a note.
    """

    def record(event: Mapping[str, Any]) -> None:
        """Raises StoreError if an attempt cannot be written, RunError if the run's lease is lost."""
        if event["event"] != "attempt":
            on_event(event)
            return
        before, now = run.attempts, {name: fact for name, fact in event.items() if name != "event"}
        run.note_attempt(**now)
        changed = [
            f"{now[name]} instead of {before[-1][name]} ({name})"
            for name in ("workers", "device", "threads")
            if before and before[-1][name] != now[name]
        ]
        if changed:
            text = (
                f"training goes on with {', '.join(changed)}: "
                "its result is not, bit for bit, the one it would have been"
            )
            if now["workers"] != before[-1]["workers"]:
                text += " (batch norm sees other parts of each batch)"
            on_event({"event": "note", "round": now["round"], "text": text})

    return record
