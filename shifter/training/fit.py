"""One fit of Ray Train, whose workers run all rounds that are left together."""

from __future__ import annotations

import os
import tempfile
import threading
import uuid
from concurrent.futures import Future
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch.config import _TorchBackend
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from shifter.errors import ShifterError, TrainingError
from shifter.recipe import Recipe
from shifter.run import Run
from shifter.training.imp import OnEvent
from shifter.training.worker import heed_sigterm, is_training, stop, work

_HEALTH_SECONDS = 0.5
_EVENT_SECONDS = 1.0
_LAST_EVENT_SECONDS = 0.2
_RESIZE_SECONDS = 60.0
"""Period at which an elastic group is compared with what the cluster has room for."""
_SAVING_SECONDS = 60.0
"""For workers that are to be replaced by fewer or more, to save their state."""


class LostError(Exception):
    """Workers were lost; why, as Ray has it."""


def fit(recipe: Recipe, run: Run, on_event: OnEvent) -> None:
    """Trains until no round is left, or until a worker was asked to stop.

    Raises:
        ShifterError: as a worker raised it.
        LostError: if workers were lost.
        TrainingError: if Ray Train's controller was.
    """
    # Ray Train notices the end of training, and a lost worker, at this period (its default is 2 s);
    # each look is a call to every worker.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(_HEALTH_SECONDS))
    # A queue, because ray.train.report is a barrier for all workers and as slow as that period.
    # On this node, so that it is not lost with a worker's.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    events = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    gpus = _on_gpus(recipe, run)
    failure: ShifterError | None = None
    try:
        with tempfile.TemporaryDirectory(prefix="shifter-", ignore_cleanup_errors=True) as scratch:
            trainer = TorchTrainer(
                work,
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
            ending = _in_thread(trainer)
            while True:
                done = ending.done()
                try:
                    # An event wakes it; each time-out is a call to the queue's process for nothing.
                    event = events.get(timeout=_LAST_EVENT_SECONDS if done else _EVENT_SECONDS)
                except Empty:
                    if done:
                        break
                    continue
                if isinstance(event, ShifterError):
                    failure = failure or event
                else:
                    on_event(event)
            try:
                ending.result()
            except TrainingFailedError as error:
                raise failure or LostError(str(error)) from error
            except RayActorError as error:
                # Its workers may hold their CPUs for a while: another fit might wait for ever.
                raise failure or TrainingError(
                    f"the process that watches the workers of {run.name} was lost; the same command goes "
                    f"on from what was saved last. What Ray says:\n{error}"
                ) from error
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
    """An elastic group saves, and is started again with more workers, when the cluster has room for them."""
    low, high = recipe.min_workers, recipe.max_workers
    return ScalingConfig(
        num_workers=low if low == high else (low, high),  # type: ignore[arg-type]
        use_gpu=gpus,
        resources_per_worker={"CPU": 1, **({"GPU": 1} if gpus else {})},
        elastic_resize_monitor_interval_s=_RESIZE_SECONDS,  # type: ignore[call-arg]
    )


class _Backend(_TorchBackend):
    """torch.distributed, on workers that heed SIGTERM and are let finish their step."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        super().on_start(worker_group, backend_config)
        # Here, because this runs in their main threads, and only those may do it.
        worker_group.execute(heed_sigterm)

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        """A group that is to be replaced by one of another size saves its state first."""
        # Where one has ended, the others may wait for it for ever.
        if all(worker_group.execute(is_training)):
            worker_group.execute(stop, _SAVING_SECONDS)
        super().on_shutdown(worker_group, backend_config)


class _Config(TorchConfig):
    @property
    def backend_cls(self) -> type[_Backend]:
        return _Backend


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
