"""Iterative magnitude pruning (IMP) with weight rewinding: phase 1, DNNShifter §III-C.

After Frankle et al., *Linear Mode Connectivity and the Lottery Ticket Hypothesis* (2020).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from shifter.data import Dataset
from shifter.models import create, export_architecture, prunable_names
from shifter.recipe import Recipe
from shifter.training import world
from shifter.training.archive import Archive
from shifter.training.loop import Epoch, Round, state_of, train_round
from shifter.training.ranking import dense_mask, rank_by_magnitude, require_enough, without_excluded
from shifter.training.schedule import Schedule
from shifter.values import CompressionRatio, Step

OnEvent = Callable[[Mapping[str, Any]], None]
"""Receives small dictionaries that say how training goes on, for display."""


def iterative_magnitude_pruning(
    recipe: Recipe, dataset: Dataset, archive: Archive, on_event: OnEvent
) -> None:
    """Trains the dense network and one sparse network per compression ratio, rounds 0, 1, 2, …

    Called on every worker alike, or in one process without any. Rounds that ``archive`` already has
    are not trained again; what follows is then bit for bit what it would have been, since a round
    depends on the previous one's weights, the rewind point, the seed and its number only.

    Args:
        on_event: receives, on worker 0, ``{"event": "epoch", …}`` at the end of each epoch and
            ``{"event": "round", …}`` when a round's checkpoint is written. An epoch says how many
            images it trained on, over all workers, and how many are left of all rounds.

    Raises:
        RecipeError: if the recipe does not fit the data or the network.
        TrainingError: if training diverges.
    """
    network = _network(recipe, dataset)
    schedule = Schedule.of(recipe, len(dataset.train))
    prunable = _prunable(network, recipe)
    if archive.finished == 0 and world.rank() == 0:
        archive.write_architecture(export_architecture(network, dataset.input_spec))

    for index in range(archive.finished, recipe.rounds):
        ratio = CompressionRatio(recipe.ratio_of_round[index])
        if index == 0:
            start = state_of(network)
            round = Round(index, ratio, dense_mask(start, prunable), start, Step(0))
        else:
            mask = rank_by_magnitude(*archive.round(index - 1), ratio)
            round = Round(index, ratio, mask, archive.rewind_point(), schedule.rewind)
        trained = train_round(
            _network(recipe, dataset),
            dataset,
            round,
            recipe.training,
            schedule,
            recipe.seed,
            on_epoch=_reporter(recipe, round, schedule, on_event),
            on_rewind_point=archive.keep_rewind_point if index == 0 else None,
        )
        archive.keep_round(round, trained, schedule.end)
        if world.rank() == 0:
            on_event(
                {
                    "event": "round",
                    "round": index,
                    "rounds": recipe.rounds,
                    "ratio": ratio.value,
                    "nonzero_weights": round.mask.kept,
                    "validation_accuracy": trained.validation_accuracy,
                    "test_accuracy": trained.test_accuracy,
                }
            )


def check(recipe: Recipe, dataset: Dataset) -> Schedule:
    """The schedule of each round, if ``recipe`` fits its data and network; cheap, trains nothing.

    Raises:
        RecipeError: as :func:`iterative_magnitude_pruning` would.
    """
    _prunable(_network(recipe, dataset), recipe)
    return Schedule.of(recipe, len(dataset.train))


def _prunable(network: nn.Module, recipe: Recipe) -> tuple[str, ...]:
    """Names of the tensors to prune, if there is enough in them for the recipe's ratios."""
    names = without_excluded(prunable_names(network), recipe.pruning.exclude)
    state = network.state_dict()
    require_enough(recipe.pruning.ratios, sum(state[name].numel() for name in names))
    return names


def _network(recipe: Recipe, dataset: Dataset) -> nn.Module:
    """The network at its first weights, which the recipe alone decides."""
    return create(recipe.model, dataset.input_spec, recipe.seed)


def _reporter(recipe: Recipe, round: Round, schedule: Schedule, on_event: OnEvent) -> Callable[[Epoch], None]:
    size = recipe.training.batch_size
    length = schedule.end.iteration - schedule.rewind.iteration  # of every round after this one

    def report(epoch: Epoch) -> None:
        if world.rank() == 0:
            end = epoch.number * schedule.iterations_per_epoch
            begin = max(round.first.iteration, end - schedule.iterations_per_epoch)
            left = schedule.end.iteration - end + (recipe.rounds - 1 - round.index) * length
            on_event(
                {
                    "event": "epoch",
                    "round": round.index,
                    "rounds": recipe.rounds,
                    "ratio": round.ratio.value,
                    "epoch": epoch.number,
                    "epochs": recipe.training.epochs,
                    "loss": epoch.loss,
                    "validation_accuracy": epoch.validation_accuracy,
                    "seconds": epoch.seconds,
                    "images": (end - begin) * size,
                    "images_left": left * size,
                    "workers": world.size(),
                    "device": "cpu",
                }
            )

    return report
