"""One round of training: plain PyTorch, in this process alone or on all workers of torch.distributed.

Its result depends on the arguments and the number of workers alone, so a round can be repeated bit
for bit (on CPUs, with the same number of threads).
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from shifter.data import Dataset, Draw, Images, Split
from shifter.errors import TrainingError
from shifter.recipe import Training
from shifter.training import world
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


def train_round(
    network: nn.Module,
    dataset: Dataset,
    round: Round,
    training: Training,
    schedule: Schedule,
    seed: int,
    *,
    on_epoch: Callable[[Epoch], None],
    on_rewind_point: Callable[[Tensors], None] | None = None,
) -> Trained:
    """Trains ``network`` from ``round.start`` with a fresh optimiser. Called on every worker alike.

    Each worker takes its part of every global batch of ``training.batch_size``, so the gradient is
    that of the global batch whatever their number; batch norm normalises by the worker's part. The
    mask is applied after each step, so that no pruned weight ever comes back.

    Args:
        network: overwritten.
        on_epoch: called at the end of each epoch, on every worker.
        on_rewind_point: called once, with the state at ``schedule.rewind``, on every worker.

    Raises:
        TrainingError: if the loss is no longer finite, or workers hold different masks.
    """
    # Weights that decay towards zero become denormal, and denormals cost up to 50 times the time.
    torch.set_flush_denormal(True)
    world.require_same(round.mask.digest(), "masks")
    train = _images(dataset, dataset.train)
    validation = _images(dataset, dataset.validation)
    network.to(memory_format=torch.channels_last)
    load_state(network, round.start)
    pruned = _Pruned(network, round.mask)
    pruned.zero()
    model = _distributed(network)
    optimiser = torch.optim.SGD(
        network.parameters(),
        lr=schedule.learning_rate,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        foreach=True,
    )
    began, loss_sum, iterations, accuracy = time.perf_counter(), 0.0, 0, 0.0
    for iteration in range(round.first.iteration, schedule.end.iteration):
        if on_rewind_point is not None and iteration == schedule.rewind.iteration:
            world.average_statistics(network)
            on_rewind_point(state_of(network))
        optimiser.param_groups[0]["lr"] = schedule.learning_rate_at(Step(iteration))
        batch = _batch(len(dataset.train), iteration, schedule, training.batch_size, seed, round.index)
        epoch = iteration // schedule.iterations_per_epoch
        draw = Draw(dataset.augmentation, seed, round.index, epoch)
        loss_sum += _step(model, optimiser, train, batch, draw)
        pruned.zero()
        iterations += 1
        if (iteration + 1) % schedule.iterations_per_epoch == 0:
            number = (iteration + 1) // schedule.iterations_per_epoch
            world.average_statistics(network)
            (loss,) = world.total(loss_sum / iterations)
            if not math.isfinite(loss):
                raise TrainingError(
                    f"training diverged in round {round.index} ({round.ratio}), epoch {number}: "
                    f"the loss is {loss}; lower training.learning_rate or lengthen training.warmup"
                )
            accuracy = evaluate(network, validation)  # the last one is the round's
            on_epoch(Epoch(number, loss, accuracy, time.perf_counter() - began))
            began, loss_sum, iterations = time.perf_counter(), 0.0, 0
    tensors = state_of(network)
    _require_pruned(tensors, round.mask)
    test = _images(dataset, dataset.test)
    return Trained(tensors, accuracy, evaluate(network, test))


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


def state_of(network: nn.Module) -> dict[str, np.ndarray]:
    """Weights and batch norm statistics as arrays of their own, C-contiguous.

    Without ``num_batches_tracked``, which nothing reads where batch norm has a momentum.
    """
    return {
        name: tensor.detach().clone(memory_format=torch.contiguous_format).numpy()
        for name, tensor in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }


def load_state(network: nn.Module, tensors: Tensors) -> None:
    """The opposite of :func:`state_of`, in place, bit for bit.

    Raises:
        ValueError: if a tensor of the network is missing.
    """
    state = network.state_dict()
    for name, tensor in state.items():
        if not name.endswith("num_batches_tracked"):
            if name not in tensors:
                raise ValueError(f"there are no weights for {name}")
            tensor.copy_(torch.tensor(tensors[name]))


class _Pruned:
    """The pruned weights of a network, zeroed in place."""

    def __init__(self, network: nn.Module, mask: Mask) -> None:
        parameters = dict(network.named_parameters())
        self._places = []
        for name, kept in mask.items():
            if not kept.all():
                where = torch.empty_like(parameters[name], dtype=torch.bool)
                self._places.append((parameters[name], where.copy_(torch.tensor(~kept))))

    @torch.no_grad()
    def zero(self) -> None:
        # Not a product with the mask: that gives -0.0 for negative weights and NaN for infinite ones.
        for parameter, where in self._places:
            parameter.masked_fill_(where, 0.0)


def _require_pruned(tensors: Tensors, mask: Mask) -> None:
    for name, kept in mask.items():
        # Bits, not values: -0.0 equals zero too, and costs a place in the checkpoint.
        assert not np.any(tensors[name][~kept].view(np.uint32)), f"{name} has revived weights"


def _distributed(network: nn.Module) -> nn.Module:
    """``network`` with gradients averaged over the workers, if there are several."""
    if world.size() == 1:
        return network
    with warnings.catch_warnings():
        # Its successor, forward_sync_buffers, is not in every release of torch that we support.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        # Statistics are averaged when they are read; sending them at every step only costs time.
        return DistributedDataParallel(network, broadcast_buffers=False)


def _batch(images: int, iteration: int, schedule: Schedule, size: int, seed: int, round: int) -> Tensor:
    """Indices of the global batch: a slice of the epoch's permutation, the same on every worker."""
    epoch, index = divmod(iteration, schedule.iterations_per_epoch)
    return _permutation(images, seed, round, epoch)[index * size : (index + 1) * size]


@lru_cache(maxsize=1)
def _permutation(images: int, seed: int, round: int, epoch: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng([seed, round, epoch]).permutation(images))


def _step(
    model: nn.Module, optimiser: torch.optim.Optimizer, data: Images, batch: Tensor, draw: Draw
) -> float:
    """One optimiser step on the global ``batch``; this worker's part of its mean loss."""
    part = world.share(batch)
    optimiser.zero_grad()
    logits = model(data.read(part, draw))
    # The workers' losses add up to the global batch's mean, also when their parts are unequal.
    loss = functional.cross_entropy(logits, data.labels[part], reduction="sum") / len(batch)
    torch.autograd.backward(loss * world.size())
    optimiser.step()
    return float(loss.detach())
