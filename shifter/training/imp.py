"""Iterative magnitude pruning (IMP) with weight rewinding: phase 1, DNNShifter §III-C.

After Frankle et al., *Linear Mode Connectivity and the Lottery Ticket Hypothesis* (2020).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from shifter.data import Dataset
from shifter.models import create, export_architecture, prunable_names
from shifter.recipe import Recipe
from shifter.training import world
from shifter.training.archive import Archive
from shifter.training.loop import Epoch, Observer, Round, Trained, fits, train_round
from shifter.training.network_state import state_of
from shifter.training.progress import Progress
from shifter.training.ranking import dense_mask, rank_by_magnitude, without_excluded
from shifter.training.schedule import Schedule
from shifter.values import CompressionRatio, Step

OnEvent = Callable[[Mapping[str, Any]], None]
"""Receives small dictionaries that say how training goes on, for display."""


def iterative_magnitude_pruning(
    recipe: Recipe, dataset: Dataset, archive: Archive, on_event: OnEvent
) -> None:
    """Trains the dense network and one sparse network per compression ratio, rounds 0, 1, 2, …

    Called on every worker alike, or in one process without any. Rounds that ``archive`` already has
    are not trained again, and one that was stopped goes on from the state it has of it; what follows
    is then bit for bit what it would have been, since a round depends on the previous one's weights,
    the rewind point, the seed and its number only.

    Args:
        on_event: receives, on worker 0, ``{"event": "epoch", …}`` at the end of each epoch,
            ``{"event": "round", …}`` when a round's checkpoint is written (from another thread), and
            ``{"event": "note", "round", "text"}`` where a stopped round goes on, or cannot.

    Raises:
        RecipeError: if the recipe does not fit the data or the network.
        TrainingError: if training diverges.
        StoreError: if what is trained cannot be written.
    """
    network = _network(recipe, dataset)
    schedule = Schedule.of(recipe, len(dataset.train))
    prunable = without_excluded(prunable_names(network), recipe.pruning.exclude)
    if archive.finished == 0 and world.rank() == 0:
        archive.write_architecture(export_architecture(network, dataset.input_spec))

    with archive:
        for index in range(archive.finished, recipe.rounds):
            ratio = CompressionRatio(recipe.ratio_of_round[index])
            if index == 0:
                start = state_of(network)
                round = Round(index, ratio, dense_mask(start, prunable), start, Step(0))
            else:
                mask = rank_by_magnitude(*archive.round(index - 1), ratio)
                round = Round(index, ratio, mask, archive.rewind_point(), schedule.rewind)
            tell = _Teller(recipe, round, on_event)
            progress, problem = archive.progress(index) if index == archive.finished else (None, None)
            if progress is not None and not fits(progress, network, round, schedule):
                progress, problem = None, "the mid-round state is of another network"
            tell.beginning(progress, problem)
            trained = train_round(
                _network(recipe, dataset),
                dataset,
                round,
                recipe.training,
                schedule,
                recipe.seed,
                Observer(tell.epoch, archive.keep_rewind_point, archive.keep_progress),
                progress,
            )
            archive.keep_round(round, trained, schedule.end, partial(tell.round, trained))


def check(recipe: Recipe, dataset: Dataset) -> Schedule:
    """The schedule of each round, if ``recipe`` fits its data and network; cheap, trains nothing.

    Raises:
        RecipeError: as :func:`iterative_magnitude_pruning` would.
    """
    without_excluded(prunable_names(_network(recipe, dataset)), recipe.pruning.exclude)
    return Schedule.of(recipe, len(dataset.train))


def _network(recipe: Recipe, dataset: Dataset) -> nn.Module:
    """The network at its first weights, which the recipe alone decides."""
    return create(recipe.model, dataset.input_spec, recipe.seed)


class _Teller:
    """Events of one round, on worker 0."""

    def __init__(self, recipe: Recipe, round: Round, on_event: OnEvent) -> None:
        self._recipe = recipe
        self._round = round
        self._on_event = on_event if world.rank() == 0 else lambda _: None

    def beginning(self, progress: Progress | None, problem: str | None) -> None:
        index = self._round.index
        if problem is not None:
            self._note(f"{problem}: round {index} begins anew")
        if progress is None:
            return
        self._note(f"round {index} goes on from step {progress.step.iteration}")
        before, now = len(progress.workers), world.size()
        if before != now:
            self._note(
                f"round {index} goes on with {now} workers instead of {before}: "
                "its result is not the one it would have been"
            )

    def _note(self, text: str) -> None:
        self._on_event({"event": "note", "round": self._round.index, "text": text})

    def epoch(self, epoch: Epoch) -> None:
        self._on_event(
            {
                "event": "epoch",
                "round": self._round.index,
                "rounds": self._recipe.rounds,
                "ratio": self._round.ratio.value,
                "epoch": epoch.number,
                "epochs": self._recipe.training.epochs,
                "loss": epoch.loss,
                "validation_accuracy": epoch.validation_accuracy,
                "seconds": epoch.seconds,
            }
        )

    def round(self, trained: Trained) -> None:
        self._on_event(
            {
                "event": "round",
                "round": self._round.index,
                "rounds": self._recipe.rounds,
                "ratio": self._round.ratio.value,
                "nonzero_weights": self._round.mask.kept,
                "validation_accuracy": trained.validation_accuracy,
                "test_accuracy": trained.test_accuracy,
            }
        )
