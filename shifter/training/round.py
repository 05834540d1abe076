"""What a round of training is given, what it tells while it goes on, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from shifter.training.progress import Progress
from shifter.values import CompressionRatio, Mask, Step, Tensors


@dataclass(frozen=True)
class Round:
    """What one round trains.

    Args:
        index: 0 is the dense round.
        start: the weights and buffers that it starts from; the mask is applied to them.
        first: the step that ``start`` belongs to; training goes from there to the schedule's end.
    """

    index: int
    ratio: CompressionRatio
    mask: Mask
    start: Tensors
    first: Step


@dataclass(frozen=True)
class Trained:
    """What came of a round: masked weights are +0.0. Accuracies are fractions, 0 to 1."""

    tensors: Tensors
    validation_accuracy: float
    test_accuracy: float


@dataclass(frozen=True)
class Epoch:
    """How training goes.

    Args:
        number: counts from 1.
        loss: the mean of the epoch's iterations.
        images: trained on in ``seconds``, by all workers together; fewer in an epoch gone on with.
    """

    number: int
    loss: float
    validation_accuracy: float
    images: int
    seconds: float


@dataclass(frozen=True)
class Observer:
    """Whom a round tells of itself, and asks.

    Args:
        epoch: called at the end of each epoch, on every worker.
        progress: called at each ``save_every``, on worker 0, with the state in the middle of the round.
        rewind_point: called in round 0, on every worker, with the state at ``schedule.rewind``.
        asked_to_stop: called at every step, on every worker; one that says so stops them all.
    """

    epoch: Callable[[Epoch], None]
    progress: Callable[[Progress], None] | None = None
    rewind_point: Callable[[Tensors], None] | None = None
    asked_to_stop: Callable[[], bool] = lambda: False
