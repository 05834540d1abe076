"""One dense round of our loop on part of CIFAR-10, in a process of its own: what others measure.

::

    python -m benchmarks.dense_round --data FOLDER --model resnet20 --batches 16 --threads 2

With ``--meeting``, and RANK and WORLD_SIZE set, it is one of several workers.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from benchmarks.group import together
from shifter.data import Dataset, Split, load
from shifter.heap import give_own_pages
from shifter.models import create, prunable_names
from shifter.recipe import Recipe
from shifter.training.loop import train_round
from shifter.training.network_state import state_of
from shifter.training.process import set_up
from shifter.training.ranking import dense_mask
from shifter.training.round import Epoch, Observer, Round
from shifter.training.schedule import Schedule
from shifter.values import CompressionRatio, Step

BATCH = 128
_FEW = 64


def make_recipe(folder: Path, model: str, epochs: int, **training: Any) -> Recipe:
    """OpenLTH's hyper-parameters on the CIFAR-10 images in ``folder``, Parquet or as published."""
    folder = folder.absolute()
    if list(folder.glob("train*.parquet")):
        data: dict[str, Any] = {"name": "parquet", "size": 32, "augmentation": {"crop": 4, "flip": True}}
    else:
        data = {"name": "cifar10"}
    return Recipe.model_validate(
        {
            "name": f"bench-{model}",
            "model": {"name": model},
            "data": {**data, "folder": str(folder)},
            "training": {
                "epochs": epochs,
                "batch_size": BATCH,
                "learning_rate": 0.1,
                "weight_decay": 1e-4,
                "save_every": "1000000it",
                **training,
            },
            "pruning": {"ratios": [2.0]},
        }
    )


def part_of(dataset: Dataset, batches: int, seen: int = _FEW) -> Dataset:
    """The first training images, and so few others that an epoch's time is that of its steps."""
    return replace(
        dataset,
        train=_first(dataset.train, batches * BATCH),
        validation=_first(dataset.validation, seen),
        test=_first(dataset.test, seen),
    )


def _first(split: Split, images: int) -> Split:
    assert len(split) >= images, f"{len(split)} images are there, {images} are needed"
    return Split(split.stored, split.where[:images], split.labels[:images])


def train(recipe: Recipe, dataset: Dataset, on_epoch: Callable[[Epoch], None] | None = None) -> list[Epoch]:
    """Trains the dense round; what was observed of its epochs."""
    network = create(recipe.model, dataset.input_spec, recipe.seed)
    start = state_of(network)
    mask = dense_mask(start, prunable_names(network))
    epochs: list[Epoch] = []

    def observe(epoch: Epoch) -> None:
        epochs.append(epoch)
        if on_epoch is not None:
            on_epoch(epoch)

    train_round(
        network,
        dataset,
        Round(0, CompressionRatio(1.0), mask, start, Step(0)),
        recipe.training,
        Schedule.of(recipe, len(dataset.train)),
        recipe.seed,
        Observer(observe),
    )
    return epochs


def parts_of_memory(recipe: Recipe, dataset: Dataset) -> dict[str, int]:
    """Bytes that training cannot do without, by what they are for.

    The activations are what autograd keeps of one batch for the backward pass, each storage counted
    once, and the network's input.
    """
    network = create(recipe.model, dataset.input_spec, recipe.seed).to(memory_format=torch.channels_last)
    weights = sum(p.nbytes for p in network.parameters())
    images = torch.zeros(recipe.training.batch_size, *dataset.input_spec.shape)
    kept: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in (*network.parameters(), *network.buffers())}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = network(images.contiguous(memory_format=torch.channels_last))
        loss = nn.functional.cross_entropy(logits, torch.zeros(len(images), dtype=torch.int64))
    activations = sum(kept.values())
    del loss
    return {
        "weights": weights,
        "gradients": weights,
        "momentum": weights,
        "activations": activations,
        "data": dataset.train.nbytes + dataset.validation.nbytes + dataset.test.nbytes,
    }


def resident_bytes(field: str) -> int:
    """``VmRSS`` or ``VmHWM`` of this process."""
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{field}:")[1].split()[0]) * 1024


def main(
    data: Annotated[Path, typer.Option(help="The folder of CIFAR-10.")],
    model: Annotated[str, typer.Option()] = "resnet20",
    batches: Annotated[int, typer.Option(help="Of each epoch.")] = 16,
    epochs: Annotated[int, typer.Option(help="The first warms up.")] = 2,
    threads: Annotated[int, typer.Option()] = 2,
    precision: Annotated[str, typer.Option()] = "float32",
    whole: Annotated[bool, typer.Option(help="All images, not the first few.")] = False,
    own_pages: Annotated[bool, typer.Option("--own-pages", help="For each large block of memory.")] = False,
    meeting: Annotated[Path | None, typer.Option(help="A file that several workers make and read.")] = None,
) -> None:
    """Prints one JSON line: images/s after the first epoch, peak memory, and what it is made of."""
    if own_pages:
        give_own_pages()
    set_up(threads)
    recipe = make_recipe(data, model, epochs, precision=precision)
    dataset = load(recipe.data, recipe.seed)  # a memory map: its pages count when they are read
    _load_what_is_loaded_late(recipe, dataset)
    before = resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    if not whole:
        dataset = part_of(dataset, batches)
    began = time.perf_counter()
    with together(meeting):
        seen = train(recipe, dataset)
    peak = resident_bytes("VmHWM") - before
    seconds = sum(epoch.seconds for epoch in seen[1:])
    steps = len(dataset.train) // BATCH * (len(seen) - 1)
    told = {
        "images_per_second": steps * BATCH / seconds,
        "seconds": time.perf_counter() - began,
        "validation_accuracy": [epoch.validation_accuracy for epoch in seen],
        "peak_bytes": peak,
        "parts": parts_of_memory(recipe, dataset),
    }
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(told), flush=True)
    if meeting is not None:
        # Without the interpreter's finalisation, which a thread of gloo's may make an abort: see
        # ``shifter.training.__main__``.
        os._exit(0)


def _load_what_is_loaded_late(recipe: Recipe, dataset: Dataset) -> None:
    """Modules and kernels that training would import at its first step."""
    few = Recipe.model_validate(
        recipe.resolved() | {"training": {**recipe.resolved()["training"], "batch_size": 2}}
    )
    train(
        few,
        replace(
            dataset,
            train=_first(dataset.train, 4),
            validation=_first(dataset.validation, 2),
            test=_first(dataset.test, 2),
        ),
    )


if __name__ == "__main__":
    typer.run(main)
