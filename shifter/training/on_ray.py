"""Phase 1 on a Ray cluster: fits of Ray Train, one after another, until no round is left.

A worker that is lost ends a fit, and the next goes on from the state that was saved last.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from shifter.data import load
from shifter.errors import TrainingError
from shifter.recipe import Recipe
from shifter.run import Run
from shifter.training.course import complete, is_trained, recording
from shifter.training.fit import LostError, fit
from shifter.training.imp import OnEvent, check

PATIENCE = 4
"""Fits that may fail one after another without a step of progress."""


def train(recipe: Recipe, run: Run, on_event: OnEvent) -> None:
    """Trains what is left of a run, on the recipe's workers, on the connected Ray cluster.

    Needs one CPU per worker, takes one GPU for each where the cluster has as many when training
    begins (and waits for them from then on), and nothing else; the store has to be reachable from
    every node. If it is interrupted, the workers end when this process leaves the cluster.

    Args:
        run: one that has begun. Its store, with its patience and its guard, is sent to the workers.
        on_event: called in this thread; see :func:`iterative_magnitude_pruning` for what it receives.

    Raises:
        RecipeError: before any worker is started, if the recipe does not fit its data or network.
        DataError: likewise, if the data cannot be used.
        TrainingError: if training diverged, or workers were lost again and again.
    """
    if not is_trained(run):
        check(recipe, load(recipe.data, recipe.seed))
        _train_whatever_is_lost(recipe, run, recording(run, on_event))
    complete(run)


def _train_whatever_is_lost(recipe: Recipe, run: Run, on_event: OnEvent) -> None:
    furthest, failed = (-1, -1), 0
    begun = furthest

    def watch(event: Mapping[str, Any]) -> None:
        nonlocal begun
        if event["event"] == "attempt":
            begun = event["round"], event["iteration"]
        on_event(event)

    while not is_trained(run):
        try:
            fit(recipe, run, watch)
            why = "was asked to stop"
        except LostError as error:
            # What is more than one line is Ray's own report.
            why = f"was lost ({str(error).strip().splitlines()[-1]})"
            failed = 1 if begun > furthest else failed + 1
            furthest = max(begun, furthest)
            if failed == PATIENCE:
                raise TrainingError(
                    f"the workers of {run.name} failed {failed} times without getting any further; the same "
                    f"command goes on from round {run.finished_rounds()}. What Ray says:\n{error}"
                ) from error
        if not is_trained(run):
            text = f"a worker {why}: training goes on from what was saved last"
            on_event({"event": "note", "round": run.finished_rounds(), "text": text})
            time.sleep(failed)
