"""Rounds of a VGG-16 in a store, planned and rebuilt by the Ray tasks of phase 2, or in this process."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import ray

from benchmarks import networks
from jobs import reduction as phase2
from jobs.rounds import TASK_BYTES, batches
from shifter.pruning.plan import plan_round
from shifter.pruning.rebuild import rebuild
from shifter.recipe import Recipe
from shifter.run import Run
from shifter.sparse import CheckpointMeta, SparseCheckpoint, encode
from shifter.store import Store
from shifter.values import Mask

ROUNDS, ROUND_TO = 9, 8


class Rounds:
    """A run whose nine rounds are sparser and sparser, as training would leave them.

    ``tasks`` is how many the last call of :meth:`by_tasks` sent.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="rounds-")
        self.tasks = 0

    def __enter__(self) -> Rounds:
        recipe = Recipe.load(str(Path(phase2.__file__).parent / "recipes" / "digits.yaml"))
        self._run = Run.begin(Store.open(self._folder.name), recipe)
        store = self._run.store
        for index in range(ROUNDS):
            subject = networks.vgg16(1 - 0.08 * index, 2.0**index)
            if index == 0:
                store.write(self._run.architecture_key, subject.architecture)
            weights = {n: np.array(v) for n, v in subject.tensors.items() if n.endswith("conv.weight")}
            mask = Mask({name: value != 0 for name, value in weights.items()})
            meta = CheckpointMeta(index, 0, 2.0**index, 0.0, 0.0, mask.digest())
            tensors = {name: np.where(value == 0, 0, value) for name, value in subject.tensors.items()}
            store.write(self._run.checkpoint_key(index), encode(tensors, mask, meta))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._folder.cleanup()

    def by_tasks(self, count: int) -> float:
        """Seconds until every layer of ``count`` rounds has been rebuilt, on the connected cluster."""
        began = time.perf_counter()
        run = ray.put(self._run)
        plans = {phase2._plan.remote(run, index, ROUND_TO): index for index in range(count)}
        self.tasks, rebuilt = count, []
        while plans:
            (ready, *_), _ = ray.wait(list(plans), num_returns=1)
            index, plan = plans.pop(ready), ray.get(ready)
            for batch in batches(plan, TASK_BYTES):
                rebuilt.append(phase2._rebuild.remote(run, index, batch))
        self.tasks += len(rebuilt)
        ray.wait(rebuilt, num_returns=len(rebuilt), fetch_local=False)
        taken = time.perf_counter() - began
        ray.get(rebuilt[-1])  # raises if it failed
        return taken

    def in_one_process(self, count: int) -> float:
        """The same, without Ray."""
        began = time.perf_counter()
        made: list[Any] = []
        for index in range(count):
            with self._run.store.open_file(self._run.checkpoint_key(index)) as file:
                tensors = SparseCheckpoint.open(file).tensors()
            plan = plan_round(self._run.store.read(self._run.architecture_key), tensors, ROUND_TO)
            made.append(rebuild(plan, tensors, np.float64))
        return time.perf_counter() - began
