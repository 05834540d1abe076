"""CPU-seconds of a round under Ray Train, all processes together, and of the same steps in a plain loop."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from benchmarks.dense_round import make_recipe, part_of, train
from shifter.data import load
from shifter.recipe import Recipe
from shifter.run import Run
from shifter.store import Store

_TICKS_PER_SECOND = 100
"""What /proc counts in, on every Linux that Python runs on."""


def cpu_seconds_under_ray(recipe: Recipe) -> list[float]:
    """Of each round but the first, whose start is the fit's: a cluster of one node, one worker."""
    from jobs.cluster import cluster
    from shifter.training.on_ray import train as train_on_ray

    marks: list[float] = []

    def on_event(event: Mapping[str, Any]) -> None:
        if event["event"] == "round":
            marks.append(_cpu_seconds_of_all())

    with tempfile.TemporaryDirectory() as folder, cluster(recipe.workers, lambda line: None):
        run = Run.begin(Store.open(folder), recipe)
        train_on_ray(recipe, run, on_event)
    return [after - before for before, after in pairwise(marks)]


def cpu_seconds_of_the_loop(recipe: Recipe) -> float:
    """Of a dense round in this process, which writes nothing, after a short one that warms up."""
    torch.set_num_threads(1)  # as a worker has
    dataset = load(recipe.data, recipe.seed)
    train(recipe, part_of(dataset, batches=4))
    began = time.process_time()
    train(recipe, dataset)
    return time.process_time() - began


def recipe_for(data: Path, model: str, epochs: int, rounds: int) -> Recipe:
    """Mid-round states at each epoch, so many rounds after the dense one.

    Of CIFAR-10 in Parquet only the first file trains, so that a round takes a minute or two.
    """
    recipe = make_recipe(data, model, epochs, save_every="1ep").resolved()
    recipe["pruning"]["ratios"] = [2.0**n for n in range(1, rounds + 1)]
    if recipe["data"]["name"] == "parquet":
        recipe["data"]["files"]["train"] = sorted(data.glob("train*.parquet"))[0].name
    return Recipe.model_validate(recipe)


def _cpu_seconds_of_all() -> float:
    """Of this process, all that descend from it, and those of them that have ended."""
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        parents[int(folder.name)] = int(fields[1])
        ticks[int(folder.name)] = sum(map(int, fields[11:15]))
    ours = {os.getpid()}
    while True:
        more = {pid for pid, parent in parents.items() if parent in ours} - ours
        if not more:
            break
        ours |= more
    return sum(ticks[pid] for pid in ours) / _TICKS_PER_SECOND
