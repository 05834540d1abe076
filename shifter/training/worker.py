"""What each process of a fit runs: phase 1 as :mod:`shifter.training.imp` has it, and heed to SIGTERM."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

from ray.train.torch import get_device
from ray.train.v2._internal.execution.context import get_train_context
from ray.util.queue import Queue

from shifter.data import load
from shifter.errors import ShifterError, StoppedError
from shifter.recipe import Recipe
from shifter.run import Run
from shifter.training.archive import Archive
from shifter.training.imp import iterative_magnitude_pruning
from shifter.training.process import set_up

_asked = threading.Event()


def heed_sigterm() -> None:
    """Has the first SIGTERM ask this worker to stop. To be called in its main thread."""

    def ask(number: int, frame: object) -> None:
        _asked.set()
        signal.signal(signal.SIGTERM, before)  # the next one does what it always did

    before = signal.signal(signal.SIGTERM, ask)


def stop(patience_s: float) -> None:
    """Asks this worker to stop, and waits until it has saved its state, or no longer than that."""
    _asked.set()
    end = time.monotonic() + patience_s
    while is_training() and time.monotonic() < end:
        time.sleep(0.05)


def is_training() -> bool:
    """Whether :func:`work` is under way in this worker."""
    return bool(get_train_context().execution_context.training_thread_runner.is_running())


def _asked_to_stop() -> bool:
    """Whether this process is to stop, or a node of the workers is being drained.

    Ray's public function for that is a barrier for all workers; here, asking costs nothing, and the
    workers tell each other.
    """
    return _asked.is_set() or get_train_context().preemption_context.preemption_info is not None


def work(config: dict[str, Any]) -> None:
    """What each worker runs: all rounds that are left, or until one is asked to stop."""
    set_up(threads=1)  # a worker has one CPU
    recipe = Recipe.model_validate(config["recipe"])
    events: Queue = config["events"]
    try:
        run: Run = config["run"]
        iterative_magnitude_pruning(
            recipe,
            load(recipe.data, recipe.seed),
            Archive(run, recipe.digest()),
            events.put,
            device=get_device(),
            asked_to_stop=_asked_to_stop,
        )
    except StoppedError:
        return  # what is saved is there; the driver sees that rounds are left
    except ShifterError as error:
        events.put(error)  # Ray Train would pass on its text only
        raise
