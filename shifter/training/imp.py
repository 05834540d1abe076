"""Iterative magnitude pruning (IMP) with rewinding: phase 1, DNNShifter §III-C.

After Frankle et al., *Linear Mode Connectivity and the Lottery Ticket Hypothesis* (2020); with
learning-rate rewinding after Renda et al., *Comparing Rewinding and Fine-tuning* (2020).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from shifter.data import Dataset
from shifter.models import create, export_architecture
from shifter.recipe import Recipe
from shifter.training import world
from shifter.training.archive import Archive
from shifter.training.loop import CPU, fits, train_round
from shifter.training.network_state import state_of
from shifter.training.progress import Progress
from shifter.training.ranking import dense_mask, rank_by_magnitude, require_enough, tensors_to_prune
from shifter.training.round import Epoch, Observer, Round, Trained
from shifter.training.schedule import Schedule
from shifter.values import CompressionRatio, Step

OnEvent = Callable[[Mapping[str, Any]], None]
"""Receives small dictionaries that say how training goes on, for display."""


def iterative_magnitude_pruning(
    recipe: Recipe,
    dataset: Dataset,
    archive: Archive,
    on_event: OnEvent,
    *,
    device: torch.device = CPU,
    asked_to_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Trains the dense network and one sparse network per compression ratio, rounds 0, 1, 2, …

    Ends early after a round that is below ``pruning.accuracy_floor``: :meth:`Run.rounds` leaves it out.

    Called on every worker alike, or in one process without any. Rounds that ``archive`` already has
    are not trained again, and one that was stopped goes on from the state it has of it; what follows
    is then bit for bit what it would have been, since a round depends on the previous one's weights,
    the rewind point, the seed and its number only.

    Args:
        on_event: receives, on worker 0, ``{"event": "attempt", …}`` when training begins or goes on
            (``course.recording`` keeps that), ``{"event": "epoch", …}`` at the end of each epoch,
            ``{"event": "round", …}`` when a round's checkpoint is written (from another thread), and
            ``{"event": "note", "round", "text"}`` where a stopped round goes on, or cannot, and where
            accuracy fell below its floor. An epoch says how many images it trained on, over all
            workers, and how many are left of all rounds.
        device: this worker's.
        asked_to_stop: called at every step; where it says so, all workers save their state and stop.

    Raises:
        RecipeError: if the recipe does not fit the data or the network.
        StoppedError: if a worker was asked to stop.
        TrainingError: if training diverges.
        StoreError: if what is trained cannot be written.
    """
    network = _network(recipe, dataset)
    schedule = Schedule.of(recipe, len(dataset.train))
    _prunable(network, recipe)
    if archive.finished == 0 and world.rank() == 0:
        archive.write_architecture(export_architecture(network, dataset.input_spec))

    floor = recipe.pruning.accuracy_floor or 0.0
    index = archive.finished - 1  # the last round that there is
    accuracy = archive.validation_accuracy(index) if index >= 0 else 1.0
    rewinds_weights = recipe.pruning.rewind == "weights"
    keep_rewind_point = archive.keep_rewind_point if rewinds_weights else None
    with archive:
        while accuracy >= floor and index + 1 < recipe.rounds:
            index += 1
            round = _round(recipe, archive, index, network, schedule)
            tell = _Teller(recipe, round, schedule, device, on_event)
            progress, problem = archive.progress(index) if index == archive.finished else (None, None)
            if progress is not None and not fits(progress, network, round, schedule):
                progress, problem = None, "the mid-round state is of another network"
            if index == archive.finished:
                tell.attempt(progress)
            tell.beginning(progress, problem)
            trained = train_round(
                _network(recipe, dataset),
                dataset,
                round,
                recipe.training,
                schedule,
                recipe.seed,
                Observer(tell.epoch, archive.keep_progress, keep_rewind_point, asked_to_stop),
                progress,
                device,
            )
            archive.keep_round(round, trained, schedule.end, partial(tell.round, trained))
            accuracy = trained.validation_accuracy
    if accuracy < floor and world.rank() == 0:
        text = (
            f"round {index} ({CompressionRatio(recipe.ratio_of_round[index])}) has a validation accuracy "
            f"of {accuracy:.2%}, below the floor of {floor:.2%}: training ends here"
        )
        on_event({"event": "note", "round": index, "text": text})


def _round(recipe: Recipe, archive: Archive, index: int, network: nn.Module, schedule: Schedule) -> Round:
    ratio = CompressionRatio(recipe.ratio_of_round[index])
    if index == 0:
        start = state_of(network)
        mask = dense_mask(start, _prunable(network, recipe))
        return Round(index, ratio, mask, start, Step(0))
    trained, mask = archive.round(index - 1)
    rewound = archive.rewind_point() if recipe.pruning.rewind == "weights" else trained
    return Round(index, ratio, rank_by_magnitude(trained, mask, ratio), rewound, schedule.rewind)


def check(recipe: Recipe, dataset: Dataset) -> Schedule:
    """The schedule of each round, if ``recipe`` fits its data and network; cheap, trains nothing.

    Raises:
        RecipeError: as :func:`iterative_magnitude_pruning` would.
    """
    _prunable(_network(recipe, dataset), recipe)
    return Schedule.of(recipe, len(dataset.train))


def _prunable(network: nn.Module, recipe: Recipe) -> tuple[str, ...]:
    """Names of the tensors to prune, if there is enough in them for the recipe's ratios."""
    names = tensors_to_prune(network, recipe.pruning.exclude)
    state = network.state_dict()
    require_enough(recipe.ratio_of_round, sum(state[name].numel() for name in names))
    return names


def _network(recipe: Recipe, dataset: Dataset) -> nn.Module:
    """The network at its first weights, which the recipe alone decides."""
    return create(recipe.model, dataset.input_spec, recipe.seed)


class _Teller:
    """Events of one round, on worker 0."""

    def __init__(
        self, recipe: Recipe, round: Round, schedule: Schedule, device: torch.device, on_event: OnEvent
    ) -> None:
        self._recipe = recipe
        self._round = round
        self._schedule = schedule
        self._device = device
        self._on_event = on_event if world.rank() == 0 else lambda _: None

    def attempt(self, progress: Progress | None) -> None:
        """Where training begins or goes on, and what of the machine decides the bits of its result."""
        step = self._round.first if progress is None else progress.step
        self._on_event(
            {
                "event": "attempt",
                "workers": world.size(),
                "device": self._device.type,
                "threads": torch.get_num_threads(),
                "round": self._round.index,
                "iteration": step.iteration,
            }
        )

    def beginning(self, progress: Progress | None, problem: str | None) -> None:
        """Notes that a stopped round goes on, or by which ``problem`` it cannot; nothing for a new one."""
        index = self._round.index
        if problem is not None:
            self._note(f"{problem}: round {index} begins anew")
        if progress is None:
            return
        self._note(f"round {index} goes on from step {progress.step.iteration}")

    def _note(self, text: str) -> None:
        self._on_event({"event": "note", "round": self._round.index, "text": text})

    def epoch(self, epoch: Epoch) -> None:
        """``images_left``: of this round's rest and all rounds after it, counted over all workers."""
        schedule, index = self._schedule, self._round.index
        length = schedule.end.iteration - schedule.rewind.iteration  # of every round after this one
        left = schedule.end.iteration - epoch.number * schedule.iterations_per_epoch
        left += (self._recipe.rounds - 1 - index) * length
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
                "images": epoch.images,
                "images_left": left * self._recipe.training.batch_size,
                "workers": world.size(),
                "device": self._device.type,
            }
        )

    def round(self, trained: Trained) -> None:
        """Called from the thread that has written the round's checkpoint."""
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
