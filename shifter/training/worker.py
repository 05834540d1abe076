"""Phase 1 on a Ray cluster: one Ray Train fit whose workers run all rounds together.

A worker that is lost ends the fit, and another goes on from the state that was saved last. The only
module of this package that knows Ray.
"""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

import ray
import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.train.torch.config import _TorchBackend
from ray.train.v2._internal.execution.context import get_train_context
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from shifter.data import load
from shifter.errors import ShifterError, StoppedError, TrainingError
from shifter.recipe import Recipe
from shifter.run import Run
from shifter.training.archive import Archive
from shifter.training.course import complete, is_trained, recording
from shifter.training.imp import OnEvent, check, iterative_magnitude_pruning

PATIENCE = 4
"""Fits that may fail one after another without a step of progress."""
_POLL_SECONDS = 0.2


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
            _fit(recipe, run, watch)
            why = "was asked to stop"
        except TrainingFailedError as error:
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


def _fit(recipe: Recipe, run: Run, on_event: OnEvent) -> None:
    """Trains until no round is left, or until a worker was asked to stop.

    Raises:
        ShifterError: as a worker raised it.
        TrainingFailedError: if workers were lost.
    """
    # Ray Train notices the end of training, and a lost worker, at this period (its default is 2 s).
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(_POLL_SECONDS))
    # A queue, because ray.train.report is a barrier for all workers and as slow as that period.
    # On this node, so that it is not lost with a worker's.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    events = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    gpus = _on_gpus(recipe, run)
    failure: ShifterError | None = None
    try:
        with tempfile.TemporaryDirectory(prefix="shifter-", ignore_cleanup_errors=True) as scratch:
            trainer = TorchTrainer(
                _work,
                train_loop_config={
                    "recipe": recipe.resolved(),
                    "run": run,
                    "events": events,
                },
                torch_config=_Config(backend="cpu:gloo,cuda:nccl" if gpus else "gloo"),
                scaling_config=_scaling(recipe, gpus),
                # Ray Train would silently take up a former fit of the same name and place.
                run_config=RunConfig(name=uuid.uuid4().hex, storage_path=scratch),
            )
            fit = _in_thread(trainer)
            while True:
                done = fit.done()
                try:
                    event = events.get(timeout=_POLL_SECONDS)
                except Empty:
                    if done:
                        break
                    continue
                if isinstance(event, ShifterError):
                    failure = failure or event
                else:
                    on_event(event)
            try:
                fit.result()
            except TrainingFailedError as error:
                if failure is None:
                    raise
                raise failure from error
    finally:
        events.shutdown(force=True)


def _on_gpus(recipe: Recipe, run: Run) -> bool:
    """As when training began: a GPU that is lost is waited for, and not replaced by CPUs."""
    attempts = run.attempts
    if attempts:
        return bool(attempts[0]["device"] == "cuda")
    gpus: float = ray.cluster_resources().get("GPU", 0)  # type: ignore[no-untyped-call]
    return gpus >= recipe.min_workers


def _scaling(recipe: Recipe, gpus: bool) -> ScalingConfig:
    """An elastic group is started again, larger or smaller, as the cluster's resources change."""
    low, high = recipe.min_workers, recipe.max_workers
    return ScalingConfig(
        num_workers=low if low == high else (low, high),  # type: ignore[arg-type]
        use_gpu=gpus,
        resources_per_worker={"CPU": 1, **({"GPU": 1} if gpus else {})},
    )


class _Backend(_TorchBackend):
    """torch.distributed, on workers that heed SIGTERM."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        super().on_start(worker_group, backend_config)
        # Here, because this runs in their main threads, and only those may do it.
        worker_group.execute(_heed_sigterm)


class _Config(TorchConfig):
    @property
    def backend_cls(self) -> type[_Backend]:
        return _Backend


_sigterm = threading.Event()


def _heed_sigterm() -> None:
    def ask(number: int, frame: object) -> None:
        _sigterm.set()
        signal.signal(signal.SIGTERM, before)  # the next one does what it always did

    before = signal.signal(signal.SIGTERM, ask)


def _asked_to_stop() -> bool:
    """Whether this process got a SIGTERM, or a node of the workers is being drained.

    Ray's public function for that is a barrier for all workers; here, asking costs nothing, and the
    workers tell each other.
    """
    return _sigterm.is_set() or get_train_context().preemption_context.preemption_info is not None


def _in_thread(trainer: TorchTrainer) -> Future[None]:
    """Runs the fit beside this thread, which stays free for events.

    On the main thread ``fit`` would also replace the process's SIGINT handler by one that ends an
    interrupted process with exit status 0.
    """
    future: Future[None] = Future()

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is waited for
            future.set_exception(error)
        else:
            future.set_result(None)

    threading.Thread(target=fit, name="ray-train-fit", daemon=True).start()
    return future


def _work(config: dict[str, Any]) -> None:
    """What each worker runs: all rounds that are left, or until one is asked to stop."""
    torch.set_num_threads(1)  # a worker has one CPU
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
