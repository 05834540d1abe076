"""The workers that train together: torch.distributed where it is initialised, else this process alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from shifter.errors import ShifterError, StoppedError, TrainingError

T = TypeVar("T")


_had_others = False


def _has_others() -> bool:
    """Whether this process has joined others.

    Raises:
        StoppedError: if it has left them: were it to go on alone, it would take itself for worker 0.
    """
    global _had_others
    has = dist.is_initialized()
    if _had_others and not has:
        raise StoppedError("the workers were parted while they trained")
    _had_others = has
    return has


def size() -> int:
    """How many workers there are."""
    return dist.get_world_size() if _has_others() else 1


def rank() -> int:
    """Which of them this process is, from 0."""
    return dist.get_rank() if _has_others() else 0


def share(indices: Tensor) -> Tensor:
    """This worker's part: the workers' parts are disjoint, together all, and as equal as can be."""
    return indices.tensor_split(size())[rank()]


def total(*numbers: float) -> list[float]:
    """Each number summed over all workers; the same on each of them."""
    summed = torch.tensor(numbers, dtype=torch.float64)
    if _has_others():
        dist.all_reduce(summed)
    return [float(number) for number in summed]


def add_up(tensor: Tensor) -> None:
    """Sums ``tensor`` over all workers, in place: bit for bit the same on each and in each repetition."""
    if size() > 1:
        dist.all_reduce(tensor)


def average_statistics(network: nn.Module) -> None:
    """Makes batch norm's running statistics, which each worker has of its own part, their mean."""
    if size() == 1:
        return
    with torch.no_grad():
        for buffer in network.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer /= size()


def from_first(make: Callable[[], T]) -> T:
    """What ``make`` gives on worker 0, on every worker; only that one calls it.

    Raises:
        ShifterError: likewise on every worker.
    """
    made: list[T | ShifterError | None] = [None]
    if rank() == 0:
        try:
            made = [make()]
        except ShifterError as error:
            made = [error]
    if size() > 1:
        dist.broadcast_object_list(made)
    if isinstance(made[0], ShifterError):
        raise made[0]
    return made[0]  # type: ignore[return-value]


def gather(mine: T) -> list[T]:
    """What each worker gave, in their order; empty but on worker 0."""
    if size() == 1:
        return [mine]
    gathered: list[T] = [mine] * size() if rank() == 0 else []
    dist.gather_object(mine, gathered or None)
    return gathered


def require_same(digest: str, what: str) -> None:
    """Stops if a worker holds another ``what`` than the rest: its results would be worth nothing.

    Raises:
        TrainingError: naming the digests.
    """
    if size() == 1:
        return
    digests: list[str | None] = [None] * size()
    dist.all_gather_object(digests, digest)
    if len(set(digests)) > 1:
        held = ", ".join(f"worker {worker}: {found}" for worker, found in enumerate(digests))
        raise TrainingError(f"the workers hold different {what} ({held}): start the run again")
