"""One round of training: plain PyTorch, in this process alone or on all workers of torch.distributed.

Its result depends on the arguments and the number of workers alone, so a round can be repeated, or
gone on with from its middle, bit for bit (on CPUs, with the same number of threads).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from shifter.data import Dataset, Draw, Images, Split
from shifter.errors import StoppedError, TrainingError
from shifter.training import world
from shifter.training.flat import FlatParameters
from shifter.training.network_state import array, load_state, state_of
from shifter.training.progress import Own, Progress
from shifter.training.round import Epoch, Observer, Round, Trained
from shifter.training.schedule import Schedule
from shifter.training_spec import Training
from shifter.values import Mask, Step, Tensors

CPU = torch.device("cpu")
_EVALUATION_BATCH = 512


def train_round(
    network: nn.Module,
    dataset: Dataset,
    round: Round,
    training: Training,
    schedule: Schedule,
    seed: int,
    observer: Observer,
    progress: Progress | None = None,
    device: torch.device = CPU,
) -> Trained:
    """Trains ``network`` from ``round.start`` with a fresh optimiser. Called on every worker alike.

    Each worker takes its part of every global batch of ``training.batch_size``, so the gradient is
    that of the global batch whatever their number; batch norm normalises by the worker's part. The
    mask is applied after each step, so that no pruned weight ever comes back.

    Args:
        network: overwritten.
        progress: where the round was stopped, to go on from there. If that was with another number
            of workers, all go on with worker 0's statistics, and draw anew.
        device: this worker's.

    Raises:
        StoppedError: if a worker was asked to stop, after ``observer.progress`` was called.
        TrainingError: if the loss is no longer finite, or workers hold different masks or weights.
    """
    # Weights that decay towards zero become denormal, and denormals cost up to 50 times the time.
    torch.set_flush_denormal(True)
    world.require_same(round.mask.digest(), "masks")
    on_cuda = device.type == "cuda"
    torch.backends.cudnn.benchmark = on_cuda  # batches are all of one size
    with torch.random.fork_rng(devices=[device] if on_cuda else []):
        under_way = _Training(network, dataset, round, training, schedule, seed, device)
        return under_way.run(observer, progress)


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
        device: torch.device,
    ) -> None:
        self._dataset = dataset
        self._device = device
        self._round = round
        self._schedule = schedule
        self._seed = seed
        self._batch_size = training.batch_size
        self._bfloat16 = training.precision == "bfloat16"
        self._train = self._images(dataset.train)
        layout = torch.channels_last if training.channels_last else torch.contiguous_format
        self._network = network.to(device).to(memory_format=layout)
        load_state(network, round.start)
        self._parameters = FlatParameters(network, round.mask)
        self._optimiser = torch.optim.SGD(
            [self._parameters.weights],
            lr=schedule.learning_rate,
            momentum=training.momentum,
            weight_decay=training.weight_decay,
            fused=True,  # one pass over memory instead of four
        )
        self._loss = torch.zeros((), dtype=torch.float64, device=device)

    def run(self, observer: Observer, progress: Progress | None) -> Trained:
        """Every iteration that is left, then the round's weights on the CPU and its two accuracies.

        Raises:
            StoppedError: if a worker was asked to stop before the last iteration, once it is saved.
            TrainingError: if an epoch's mean loss is not finite, or the workers' weights differ.
        """
        schedule, round, network = self._schedule, self._round, self._network
        first = self._begin(progress)
        world.require_same(self._parameters.digest(), "weights")
        validation = self._images(self._dataset.validation)
        accuracy, began, begun = 0.0, time.perf_counter(), first.iteration
        for iteration in range(first.iteration, schedule.end.iteration):
            if observer.rewind_point and round.index == 0 and iteration == schedule.rewind.iteration:
                world.average_statistics(network)
                observer.rewind_point(state_of(network))
            stopping = self._step(iteration, observer.asked_to_stop())
            done = iteration + 1
            epoch, rest = divmod(done, schedule.iterations_per_epoch)
            if rest == 0:
                world.average_statistics(network)
                loss = self._mean_loss(epoch)
                accuracy = evaluate(network, validation)  # the last one is the round's
                images, now = (done - begun) * self._batch_size, time.perf_counter()
                observer.epoch(Epoch(epoch, loss, accuracy, images, now - began))
                began, begun = now, done
            if done == schedule.end.iteration:
                break
            if observer.progress and (stopping or done % schedule.save_every == 0):
                self._save(Step(done), observer.progress)
            if stopping:
                raise StoppedError(f"training was stopped in round {round.index} at step {done}")
        world.require_same(self._parameters.digest(), "weights")
        tensors = state_of(network)
        _require_pruned(tensors, round.mask)
        return Trained(tensors, accuracy, evaluate(network, self._images(self._dataset.test)))

    def _images(self, split: Split) -> Images:
        dataset = self._dataset
        return Images.of(split, dataset.input_spec, device=self._device, memory_limit=dataset.memory_limit)

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
            self._loss += own.loss
        else:
            own = progress.workers[0]
            self._loss += sum(worker.loss for worker in progress.workers) if world.rank() == 0 else 0.0
        if len(progress.workers) == world.size() and own.random.keys() == self._random().keys():
            torch.set_rng_state(torch.from_numpy(own.random["cpu"]))
            if self._device.type == "cuda":
                torch.cuda.set_rng_state(torch.from_numpy(own.random["cuda"]), self._device)
        else:
            self._draw_anew(progress.step)
        for name, buffer in self._network.named_buffers():
            buffer.copy_(torch.from_numpy(own.buffers[name]))
        return progress.step

    def _draw_anew(self, step: Step) -> None:
        """Sets torch's random numbers, for dropout and its like; each worker has its own."""
        entropy = [self._seed, self._round.index, step.iteration, world.rank()]
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1))

    def _random(self) -> dict[str, NDArray[np.generic]]:
        states = {"cpu": torch.get_rng_state()}
        if self._device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self._device)
        return {name: state.numpy() for name, state in states.items()}

    def _step(self, iteration: int, asked: bool) -> bool:
        """One optimiser step on the global batch of ``iteration``; whether a worker ``asked`` to stop."""
        epoch, index = divmod(iteration, self._schedule.iterations_per_epoch)
        size = self._batch_size
        images = _permutation(len(self._dataset.train), self._seed, self._round.index, epoch)
        part = world.share(images[index * size : (index + 1) * size])
        draw = Draw(self._dataset.augmentation, self._seed, self._round.index, epoch)
        self._optimiser.param_groups[0]["lr"] = self._schedule.learning_rate_at(Step(iteration))
        self._parameters.zero_gradients()
        inputs, labels = self._train.read(part, draw), self._train.labels[part.to(self._device)]
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bfloat16):
            logits = self._network(inputs)
        # The workers' losses add up to the global batch's mean, also when their parts are unequal.
        loss = functional.cross_entropy(logits.float(), labels, reduction="sum") / size
        torch.autograd.backward(loss)
        asking = self._parameters.add_up_gradients(asked)
        self._optimiser.step()
        self._parameters.prune()
        self._loss += loss.detach()
        # To read a number from an accelerator is to wait for it.
        return bool((self._device.type == "cpu" or iteration % 8 == 0) and asking > 0)

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
            random=self._random(),
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


def evaluate(network: nn.Module, data: Images) -> float:
    """The fraction of images classified right, each counted once, whatever the number of workers.

    In float32, as variants are.
    """
    device = data.labels.device
    network.eval()
    with torch.inference_mode():
        right = torch.zeros((), dtype=torch.int64, device=device)
        for part in torch.split(world.share(torch.arange(len(data.labels))), _EVALUATION_BATCH):
            answers = network(data.read(part)).argmax(1)
            right += (answers == data.labels[part.to(device)]).sum()
    network.train()
    (all_right,) = world.total(int(right))
    return all_right / len(data.labels)


def _require_pruned(tensors: Tensors, mask: Mask) -> None:
    for name, kept in mask.items():
        # Bits, not values: -0.0 equals zero too, and costs a place in the checkpoint.
        assert not np.any(tensors[name][~kept].view(np.uint32)), f"{name} has revived weights"


@lru_cache(maxsize=1)
def _permutation(images: int, seed: int, round: int, epoch: int) -> Tensor:
    """The images in an epoch's order, the same on every worker; a batch is a slice of it."""
    return torch.from_numpy(np.random.default_rng([seed, round, epoch]).permutation(images))
