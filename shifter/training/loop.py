"""One round of training: plain PyTorch, in this process alone or on all workers of torch.distributed.

Its result depends on the arguments and the number of workers alone, so a round can be repeated, or
gone on with from its middle, bit for bit (on CPUs, with the same number of threads).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from shifter.data import Dataset, Draw, Images, Split
from shifter.errors import TrainingError
from shifter.recipe import Training
from shifter.training import world
from shifter.training.flat import FlatParameters
from shifter.training.network_state import array, load_state, state_of
from shifter.training.progress import Own, Progress
from shifter.training.schedule import Schedule
from shifter.values import CompressionRatio, Mask, Step, Tensors

_EVALUATION_BATCH = 512


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
    """How training goes: ``number`` counts from 1, ``loss`` is the mean of the epoch's iterations."""

    number: int
    loss: float
    validation_accuracy: float
    seconds: float


@dataclass(frozen=True)
class Observer:
    """Whom a round tells of itself.

    Args:
        epoch: called at the end of each epoch, on every worker.
        progress: called at each ``save_every``, on worker 0, with the state in the middle of the round.
        rewind_point: called in round 0, on every worker, with the state at ``schedule.rewind``.
    """

    epoch: Callable[[Epoch], None]
    progress: Callable[[Progress], None] | None = None
    rewind_point: Callable[[Tensors], None] | None = None


def train_round(
    network: nn.Module,
    dataset: Dataset,
    round: Round,
    training: Training,
    schedule: Schedule,
    seed: int,
    observer: Observer,
    progress: Progress | None = None,
) -> Trained:
    """Trains ``network`` from ``round.start`` with a fresh optimiser. Called on every worker alike.

    Each worker takes its part of every global batch of ``training.batch_size``, so the gradient is
    that of the global batch whatever their number; batch norm normalises by the worker's part. The
    mask is applied after each step, so that no pruned weight ever comes back.

    Args:
        network: overwritten.
        progress: where the round was stopped, to go on from there. If that was with another number
            of workers, all go on with worker 0's statistics, and draw anew.

    Raises:
        TrainingError: if the loss is no longer finite, or workers hold different masks or weights.
    """
    # Weights that decay towards zero become denormal, and denormals cost up to 50 times the time.
    torch.set_flush_denormal(True)
    world.require_same(round.mask.digest(), "masks")
    with torch.random.fork_rng(devices=[]):
        return _Training(network, dataset, round, training, schedule, seed).run(observer, progress)


def fits(progress: Progress, network: nn.Module, round: Round, schedule: Schedule) -> bool:
    """Whether ``network`` can go on with ``round`` from there."""
    tensors = {**progress.weights, **progress.workers[0].buffers}
    own: dict[str, Tensor] = {name: p for name, p in network.named_parameters() if p.requires_grad}
    own |= dict(network.named_buffers())
    return (
        round.first <= progress.step < schedule.end
        and tensors.keys() == own.keys()
        and all(tensors[name].shape == tuple(tensor.shape) for name, tensor in own.items())
    )


class _Training:
    """A round under way, on this worker."""

    def __init__(
        self,
        network: nn.Module,
        dataset: Dataset,
        round: Round,
        training: Training,
        schedule: Schedule,
        seed: int,
    ) -> None:
        self._dataset = dataset
        self._round = round
        self._schedule = schedule
        self._seed = seed
        self._batch_size = training.batch_size
        self._train = _images(dataset, dataset.train)
        self._network = network.to(memory_format=torch.channels_last)
        load_state(network, round.start)
        self._parameters = FlatParameters(network, round.mask)
        self._optimiser = torch.optim.SGD(
            [self._parameters.weights],
            lr=schedule.learning_rate,
            momentum=training.momentum,
            weight_decay=training.weight_decay,
            fused=True,  # one pass over memory instead of four
        )
        self._loss = torch.zeros((), dtype=torch.float64)

    def run(self, observer: Observer, progress: Progress | None) -> Trained:
        schedule, round, network = self._schedule, self._round, self._network
        first = self._begin(progress)
        world.require_same(self._parameters.digest(), "weights")
        validation = _images(self._dataset, self._dataset.validation)
        accuracy, began = 0.0, time.perf_counter()
        for iteration in range(first.iteration, schedule.end.iteration):
            if observer.rewind_point and round.index == 0 and iteration == schedule.rewind.iteration:
                world.average_statistics(network)
                observer.rewind_point(state_of(network))
            self._step(iteration)
            epoch, rest = divmod(iteration + 1, schedule.iterations_per_epoch)
            if rest == 0:
                world.average_statistics(network)
                loss = self._mean_loss(epoch)
                accuracy = evaluate(network, validation)  # the last one is the round's
                observer.epoch(Epoch(epoch, loss, accuracy, time.perf_counter() - began))
                began = time.perf_counter()
            due = (iteration + 1) % schedule.save_every == 0 and iteration + 1 < schedule.end.iteration
            if observer.progress and due:
                self._save(Step(iteration + 1), observer.progress)
        world.require_same(self._parameters.digest(), "weights")
        tensors = state_of(network)
        _require_pruned(tensors, round.mask)
        return Trained(tensors, accuracy, evaluate(network, _images(self._dataset, self._dataset.test)))

    def _begin(self, progress: Progress | None) -> Step:
        """Where to go on: at the round's first step, or with the state of ``progress``."""
        if progress is None:
            self._draw_anew(self._round.first)
            return self._round.first
        parameters = dict(self._network.named_parameters())
        for name, values in progress.weights.items():
            parameters[name].data.copy_(torch.from_numpy(values))
        if progress.momentum:
            momentum = {name: torch.from_numpy(values) for name, values in progress.momentum.items()}
            state = self._optimiser.state[self._parameters.weights]
            state["momentum_buffer"] = self._parameters.filled(momentum)
        if len(progress.workers) == world.size():
            own = progress.workers[world.rank()]
            torch.set_rng_state(torch.from_numpy(own.random["cpu"]))
            self._loss += own.loss
        else:
            own = progress.workers[0]
            self._draw_anew(progress.step)
            self._loss += sum(worker.loss for worker in progress.workers) if world.rank() == 0 else 0.0
        for name, buffer in self._network.named_buffers():
            buffer.copy_(torch.from_numpy(own.buffers[name]))
        return progress.step

    def _draw_anew(self, step: Step) -> None:
        """Sets torch's random numbers, for dropout and its like; each worker has its own."""
        entropy = [self._seed, self._round.index, step.iteration, world.rank()]
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1))

    def _step(self, iteration: int) -> None:
        """One optimiser step on the global batch of ``iteration``."""
        epoch, index = divmod(iteration, self._schedule.iterations_per_epoch)
        size = self._batch_size
        images = _permutation(len(self._dataset.train), self._seed, self._round.index, epoch)
        part = world.share(images[index * size : (index + 1) * size])
        draw = Draw(self._dataset.augmentation, self._seed, self._round.index, epoch)
        self._optimiser.param_groups[0]["lr"] = self._schedule.learning_rate_at(Step(iteration))
        self._parameters.zero_gradients()
        logits = self._network(self._train.read(part, draw))
        # The workers' losses add up to the global batch's mean, also when their parts are unequal.
        loss = functional.cross_entropy(logits, self._train.labels[part], reduction="sum") / size
        torch.autograd.backward(loss)
        self._parameters.add_up_gradients()
        self._optimiser.step()
        self._parameters.prune()
        self._loss += loss.detach()

    def _mean_loss(self, epoch: int) -> float:
        """Over the iterations of ``epoch``, counted from 1, that this round has; begins a new sum."""
        per_epoch = self._schedule.iterations_per_epoch
        iterations = epoch * per_epoch - max((epoch - 1) * per_epoch, self._round.first.iteration)
        (loss,) = world.total(float(self._loss) / iterations)
        self._loss.zero_()
        if not math.isfinite(loss):
            raise TrainingError(
                f"training diverged in round {self._round.index} ({self._round.ratio}), epoch {epoch}: "
                f"the loss is {loss}; lower training.learning_rate or lengthen training.warmup"
            )
        return loss

    def _save(self, step: Step, keep: Callable[[Progress], None]) -> None:
        own = Own(
            buffers={name: array(buffer) for name, buffer in self._network.named_buffers()},
            random={"cpu": torch.get_rng_state().numpy()},
            loss=float(self._loss),
        )
        workers = world.gather(own)
        if world.rank() == 0:
            weights, momentum = self._parameters.named(self._parameters.weights.data), {}
            state = self._optimiser.state[self._parameters.weights]
            if state.get("momentum_buffer") is not None:
                momentum = self._parameters.named(state["momentum_buffer"])
            keep(
                Progress(
                    round=self._round.index,
                    step=step,
                    weights={name: array(tensor) for name, tensor in weights.items()},
                    momentum={name: array(tensor) for name, tensor in momentum.items()},
                    workers=tuple(workers),
                )
            )


def _images(dataset: Dataset, split: Split) -> Images:
    return Images.of(split, dataset.input_spec, memory_limit=dataset.memory_limit)


def evaluate(network: nn.Module, data: Images) -> float:
    """The fraction of images classified right, each counted once, whatever the number of workers."""
    network.eval()
    right = 0
    with torch.inference_mode():
        for part in torch.split(world.share(torch.arange(len(data.labels))), _EVALUATION_BATCH):
            answers = network(data.read(part)).argmax(1)
            right += int((answers == data.labels[part]).sum())
    network.train()
    (all_right,) = world.total(right)
    return all_right / len(data.labels)


def _require_pruned(tensors: Tensors, mask: Mask) -> None:
    for name, kept in mask.items():
        # Bits, not values: -0.0 equals zero too, and costs a place in the checkpoint.
        assert not np.any(tensors[name][~kept].view(np.uint32)), f"{name} has revived weights"


@lru_cache(maxsize=1)
def _permutation(images: int, seed: int, round: int, epoch: int) -> Tensor:
    """The images in an epoch's order, the same on every worker; a batch is a slice of it."""
    return torch.from_numpy(np.random.default_rng([seed, round, epoch]).permutation(images))
