"""Runs whose rounds are there without having been trained, on a disk that tells what is done to it."""

from __future__ import annotations

import os
import signal
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jobs.rounds import Evaluation
from shifter.data import load
from shifter.disk import Disk
from shifter.folder import Folder
from shifter.recipe import Recipe
from shifter.run import Run
from shifter.sparse import CheckpointMeta, encode
from shifter.store import Store
from shifter.values import Mask, Tensors

from ..pruning.networks import Builder

RATIOS = (2.0, 4.0, 8.0, 16.0, 32.0)


def begun(folder: Path, rounds: int, **changes: Any) -> Run:
    """A run on scikit-learn's digits that has nothing yet."""
    recipe = Recipe.model_validate(
        {
            "name": "untrained",
            "model": {"name": "vgg", "stages": [[16], [16]]},
            "data": {"name": "digits"},
            "training": {"epochs": 1, "batch_size": 64, "learning_rate": 0.1},
            "pruning": {"ratios": RATIOS[: rounds - 1]},
            "profile": {"samples": 10},
            **changes,
        }
    )
    return Run.begin(Store.open(str(folder)), recipe)


def untrained(folder: Path, rounds: int = 3, **changes: Any) -> Run:
    """The same with ``rounds`` checkpoints of a small network, ever more masked."""
    run = begun(folder, rounds, **changes)
    rng = np.random.default_rng(0)
    builder = Builder(rng, rng.normal(size=(8, 1, 8, 8)))
    x = "images"
    for width in (40, 24, 24):
        x = builder.activation(builder.conv(x, width))
    x = builder.linear(builder.flatten(builder.pool(x), average=True), 10)
    architecture, tensors = builder.finish(x)
    run.store.write(run.architecture_key, architecture)
    for index in range(rounds):
        masks = {}
        for name, array in tensors.items():
            if array.ndim == 4:
                masks[name] = np.ones(array.shape, np.bool_)
                masks[name][: round(len(array) * index / (rounds + 1))] = False
                array[~masks[name]] = 0.0
        write_checkpoint(run, index, tensors, Mask(masks))
    return run


def write_checkpoint(run: Run, index: int, tensors: Tensors, mask: Mask) -> None:
    meta = CheckpointMeta(index, 10, run.recipe.ratio_of_round[index], 0.5, 0.5, mask.digest())
    run.store.write(run.checkpoint_key(index), encode(tensors, mask, meta))


def evaluation_of(run: Run) -> Evaluation:
    recipe = run.recipe
    dataset = load(recipe.data, recipe.seed)
    return Evaluation.of(dataset.validation, dataset.test, dataset.input_spec, recipe.seed)


@dataclass(frozen=True)
class Watched(Disk):
    """Notes in ``log`` what is opened and created; whoever does ``fatal`` for the nth time is killed.

    Args:
        fatal: such as ``open round-01.arrow``.
        nth: from 1; 0 kills each time.
    """

    log: Path
    fatal: str | None = None
    nth: int = 1

    def open(self, path: Path) -> BinaryIO:
        self._note(f"open {path.name}")
        return super().open(path)

    def link(self, source: Path, target: Path) -> None:
        self._note(f"create {target.parent.name}/{target.name}")
        super().link(source, target)

    def _note(self, text: str) -> None:
        own = f"{text} {uuid.uuid4().hex}"
        with self.log.open("a") as file:
            file.write(f"{own}\n")
        if text == self.fatal:
            same = [line for line in self.log.read_text().splitlines() if line.startswith(f"{text} ")]
            if self.nth in (0, same.index(own) + 1):
                os.kill(os.getpid(), signal.SIGKILL)

    def lines(self) -> list[str]:
        return [line.rpartition(" ")[0] for line in self.log.read_text().splitlines()]


def watched(run: Run, disk: Watched) -> Run:
    """The same run, seen through ``disk``."""
    place = run.store.place
    assert isinstance(place, Folder)
    return replace(run, store=replace(run.store, place=replace(place, disk=disk)))
