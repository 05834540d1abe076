"""Phase 1 on a Ray cluster: one Ray Train fit whose workers run all rounds together.

The only module of this package that knows Ray.
"""

from __future__ import annotations

import os
import tempfile
import threading
import uuid
from concurrent.futures import Future
from typing import Any

import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.util.queue import Empty, Queue

from shifter.data import load
from shifter.errors import ShifterError, TrainingError
from shifter.recipe import Recipe
from shifter.run import Run
from shifter.training.archive import Archive
from shifter.training.course import complete, is_trained, recording
from shifter.training.imp import OnEvent, check, iterative_magnitude_pruning

_POLL_SECONDS = 0.2


def train(recipe: Recipe, store_uri: str, run_name: str, on_event: OnEvent) -> None:
    """Trains what is left of a run, on ``recipe.workers`` workers of the connected Ray cluster.

    Needs one CPU per worker and nothing else of the cluster; the store has to be reachable from
    every node. If it is interrupted, the workers end when this process leaves the cluster.

    Args:
        on_event: called in this thread; see :func:`iterative_magnitude_pruning` for what it receives.

    Raises:
        RecipeError: before any worker is started, if the recipe does not fit its data or network.
        DataError: likewise, if the data cannot be used.
        TrainingError: if training diverged, or a worker was lost.
    """
    run = Run.attach(store_uri, run_name)
    if not is_trained(run):
        check(recipe, load(recipe.data, recipe.seed))
        _fit(recipe, run, recording(run, on_event))
    complete(run)


def _fit(recipe: Recipe, run: Run, on_event: OnEvent) -> None:
    # Ray Train notices the end of training, and a lost worker, at this period (its default is 2 s).
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(_POLL_SECONDS))
    # A queue, because ray.train.report is a barrier for all workers and as slow as that period.
    events = Queue(actor_options={"num_cpus": 0})
    failure: ShifterError | None = None
    try:
        with tempfile.TemporaryDirectory(prefix="shifter-", ignore_cleanup_errors=True) as scratch:
            trainer = TorchTrainer(
                _work,
                train_loop_config={
                    "recipe": recipe.resolved(),
                    "store": run.store.uri,
                    "run": run.name,
                    "events": events,
                },
                torch_config=TorchConfig(backend="gloo"),
                scaling_config=ScalingConfig(num_workers=recipe.workers, resources_per_worker={"CPU": 1}),
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
                raise failure or TrainingError(
                    f"the workers of {run.name} failed; the same command goes on from round "
                    f"{run.finished_rounds()}. What Ray says:\n{error}"
                ) from error
    finally:
        events.shutdown(force=True)


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
    """What each worker runs: all rounds that are left."""
    torch.set_num_threads(1)  # a worker has one CPU
    recipe = Recipe.model_validate(config["recipe"])
    events: Queue = config["events"]
    try:
        archive = Archive(Run.attach(config["store"], config["run"]), recipe.digest())
        iterative_magnitude_pruning(recipe, load(recipe.data, recipe.seed), archive, events.put)
    except ShifterError as error:
        events.put(error)  # Ray Train would pass on its text only
        raise
