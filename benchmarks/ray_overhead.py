"""CPU-seconds of a round under Ray Train, all processes together, and of the same steps without Ray.

Without Ray the same workers are plain processes that sum their gradients over gloo, and write nothing.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import typer

from benchmarks.dense_round import make_recipe, part_of, train
from benchmarks.group import outputs_of, together
from shifter.data import load
from shifter.recipe import Recipe
from shifter.run import Run
from shifter.store import Store
from shifter.training.process import set_up

_TICKS_PER_SECOND = 100
"""What /proc counts in, on every Linux that Python runs on."""


def cpu_seconds_under_ray(recipe: Recipe) -> list[dict[str, float]]:
    """Of each round but the first, whose start is the fit's, by kind of process: a cluster of one node."""
    from jobs.cluster import cluster
    from shifter.training.on_ray import train as train_on_ray

    marks: list[dict[str, float]] = []

    def on_event(event: Mapping[str, Any]) -> None:
        if event["event"] == "round":
            marks.append(_cpu_seconds_of_all())

    with tempfile.TemporaryDirectory() as folder, cluster(recipe.max_workers, lambda line: None):
        run = Run.begin(Store.open(folder), recipe)
        train_on_ray(recipe, run, on_event)
    return [
        {kind: after[kind] - before.get(kind, 0.0) for kind in after} for before, after in pairwise(marks)
    ]


def cpu_seconds_without_ray(recipe: Recipe) -> float:
    """Of a dense round in plain processes, one a worker, after a short one that warms up."""
    with tempfile.TemporaryDirectory(prefix="shifter-") as folder:
        file = Path(folder, "recipe.json")
        file.write_text(json.dumps(recipe.resolved()))
        return sum(map(float, outputs_of("benchmarks.ray_overhead", [str(file)], recipe.max_workers)))


def plain_worker(recipe: Path, meeting: Path | None = None) -> None:
    """Prints the CPU-seconds of this one."""
    set_up(threads=1)  # as a worker of Ray Train has
    read = Recipe.model_validate_json(recipe.read_text())
    dataset = load(read.data, read.seed)
    with together(meeting):
        train(read, part_of(dataset, batches=4))
        began = time.process_time()
        train(read, dataset)
        print(time.process_time() - began)


def recipe_for(data: Path, model: str, epochs: int, rounds: int, workers: int) -> Recipe:
    """Mid-round states at each epoch, so many rounds after the dense one.

    Of CIFAR-10 in Parquet only the first file trains, so that a round takes a minute or two.
    """
    recipe = make_recipe(data, model, epochs, save_every="1ep").resolved()
    recipe["workers"] = workers
    recipe["pruning"]["ratios"] = [2.0**n for n in range(1, rounds + 1)]
    if recipe["data"]["name"] == "parquet":
        recipe["data"]["files"]["train"] = sorted(data.glob("train*.parquet"))[0].name
    return Recipe.model_validate(recipe)


def _cpu_seconds_of_all() -> dict[str, float]:
    """Of this process, all that descend from it, and those of them that have ended, by its name."""
    parents: dict[int, int] = {}
    ticks: dict[int, tuple[str, int]] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            before, _, after = (folder / "stat").read_text().rpartition(")")
        except (FileNotFoundError, ProcessLookupError):
            continue
        fields = after.split()
        parents[int(folder.name)] = int(fields[1])
        ticks[int(folder.name)] = before.partition("(")[2], sum(map(int, fields[11:15]))
    ours = {os.getpid()}
    while True:
        more = {pid for pid, parent in parents.items() if parent in ours} - ours
        if not more:
            break
        ours |= more
    seconds: dict[str, float] = {}
    for name, spent in (ticks[pid] for pid in ours):
        seconds[name] = seconds.get(name, 0.0) + spent / _TICKS_PER_SECOND
    return seconds


if __name__ == "__main__":
    typer.run(plain_worker)
