"""What phase 1 costs, against what it could cost. ``benchmarks/README.md`` has the figures.

::

    python -m benchmarks.training throughput --data FOLDER
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.comparison import Figure, Row, compared, in_turns, save
from benchmarks.dense_round import BATCH, make_recipe, part_of, train
from benchmarks.group import outputs_of
from benchmarks.stock import StockLoop
from shifter.data import Dataset, load
from shifter.models import create
from shifter.recipe import Recipe

BATCHES = {"resnet20": 24, "vgg16": 8}
FASTER = {"resnet20": ">= 1.3", "vgg16": ">= 0.95"}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)
Data = Annotated[Path, typer.Option(help="The folder of CIFAR-10: Parquet files, or as published.")]
Model = Annotated[str, typer.Option(help="resnet20 or vgg16.")]
Repetitions = Annotated[int, typer.Option(help="Pairs of measurements.")]
OwnPages = Annotated[
    bool, typer.Option("--own-pages", help="Each large block of memory in pages of its own.")
]
Out = Annotated[Path, typer.Option(help="Rows are added to this file, as JSON lines.")]
RESULTS = Path("benchmarks/results/training.jsonl")


def _finish(row: Row, out: Path) -> None:
    print(row, flush=True)
    # Where the images lie is no part of what was measured.
    words = ["FOLDER" if before == "--data" else word for before, word in pairwise(["", *sys.argv[1:]])]
    save(row, out, " ".join(["python", "-m", "benchmarks.training", *words]))


@app.command()
def throughput(
    data: Data, model: Model = "resnet20", repetitions: Repetitions = 7, out: Out = RESULTS
) -> None:
    """Images/s of our loop against the stock loop: same network, batch, images and cores, float32."""
    recipe = make_recipe(data, model, epochs=2)
    dataset = part_of(load(recipe.data, recipe.seed), BATCHES[model])
    images = BATCHES[model] * BATCH
    best, loop = _fastest_stock_loop(recipe, dataset)

    def ours() -> float:
        return images / train(recipe, dataset)[-1].seconds  # the epoch before it warms up

    def theirs() -> float:
        loop.epoch()
        return images / loop.epoch()

    measured = in_turns(ours, theirs, repetitions)
    row = compared(
        f"images/s, {model}, batch {BATCH}, float32, ours / stock loop",
        FASTER[model],
        ("ours", "stock"),
        measured,
        threads=torch.get_num_threads(),
        dataloader_workers=best,
        batches=BATCHES[model],
    )
    _finish(row, out)


def _fastest_stock_loop(recipe: Recipe, dataset: Dataset) -> tuple[int, StockLoop]:
    """With as many DataLoader workers as are fastest on this machine, and their number."""

    def stock(workers: int) -> StockLoop:
        network = create(recipe.model, dataset.input_spec, recipe.seed)
        return StockLoop(network, dataset.train, dataset.input_spec, batch_size=BATCH, workers=workers)

    loops = {workers: stock(workers) for workers in (0, 1, os.cpu_count() or 1)}
    for loop in loops.values():
        loop.epoch()
    tried = {workers: loop.epoch() for workers, loop in loops.items()}
    best = min(tried, key=lambda workers: tried[workers])
    return best, loops[best]


@app.command()
def bfloat16(
    data: Data,
    model: Model = "resnet20",
    repetitions: Repetitions = 5,
    epochs: Annotated[int, typer.Option(help="Of training for the accuracies; 0 for none.")] = 4,
    out: Out = RESULTS,
) -> None:
    """Images/s of our loop in bfloat16 against the stock loop in float32, and what it does to accuracy."""
    recipes = {
        p: make_recipe(data, model, epochs=2, precision=p, channels_last=True)
        for p in ("float32", "bfloat16")
    }
    whole = load(recipes["float32"].data, 0)
    dataset = part_of(whole, BATCHES[model])
    images = BATCHES[model] * BATCH
    best, loop = _fastest_stock_loop(recipes["float32"], dataset)

    def ours() -> float:
        return images / train(recipes["bfloat16"], dataset)[-1].seconds

    def theirs() -> float:
        loop.epoch()
        return images / loop.epoch()

    measured = in_turns(ours, theirs, repetitions)
    accuracies: dict[str, Any] = {}
    if epochs:
        some = part_of(whole, batches=78, seen=2000)  # 9,984 images
        for precision in recipes:
            recipe = make_recipe(data, model, epochs, precision=precision, channels_last=True)
            accuracies[precision] = [epoch.validation_accuracy for epoch in train(recipe, some)]
    row = compared(
        f"images/s, {model}, batch {BATCH}, ours in bfloat16 / stock loop in float32",
        ">= 1.8",
        ("ours", "stock"),
        measured,
        threads=torch.get_num_threads(),
        dataloader_workers=best,
        validation_accuracy_by_epoch=accuracies,
    )
    _finish(row, out)


@app.command()
def workers(data: Data, model: Model = "resnet20", repetitions: Repetitions = 7, out: Out = RESULTS) -> None:
    """Images/s of two workers with a core each against one worker with two cores."""
    batches = BATCHES[model]

    def two() -> float:
        return float(_rounds(data, model, batches, threads=1, workers=2)["images_per_second"])

    def one() -> float:
        return float(_rounds(data, model, batches, threads=2, workers=1)["images_per_second"])

    measured = in_turns(two, one, repetitions)
    row = compared(
        f"images/s, {model}, batch {BATCH}, 2 workers x 1 core / 1 worker x 2 cores",
        ">= 0.9",
        ("two workers", "one worker"),
        measured,
        batches=batches,
    )
    _finish(row, out)


@app.command()
def pages(data: Data, model: Model = "resnet20", repetitions: Repetitions = 7, out: Out = RESULTS) -> None:
    """Images/s of a one-core worker with pages of their own for large blocks, against a heap alone."""

    def speed(own_pages: bool) -> float:
        told = _rounds(data, model, BATCHES[model], threads=1, workers=1, own_pages=own_pages)
        return float(told["images_per_second"])

    measured = in_turns(lambda: speed(True), lambda: speed(False), repetitions)
    row = compared(
        f"images/s, {model}, batch {BATCH}, 1 core, large blocks in own pages / on the heap",
        ">= 0.98",
        ("own pages", "heap"),
        measured,
        batches=BATCHES[model],
    )
    _finish(row, out)


@app.command()
def memory(
    data: Data,
    model: Model = "resnet20",
    repetitions: Repetitions = 3,
    own_pages: OwnPages = False,
    out: Out = RESULTS,
) -> None:
    """Peak memory of the loop above its imports against what training cannot do without.

    Of one dense round that saves nothing: a worker of a run also holds the rewind point, and a copy
    of weights and momentum while it writes them.
    """
    peaks, needed, parts = [], [], {}
    for _ in range(repetitions):
        told = _rounds(data, model, 8, threads=2, workers=1, own_pages=own_pages)
        peaks.append(told["peak_bytes"] / 2**20)
        needed.append(sum(told["parts"].values()) / 2**20)
        parts = {name: round(size / 2**20, 1) for name, size in told["parts"].items()}
    row = compared(
        f"peak MiB of a worker, {model}, batch {BATCH}, measured / added up",
        "<= 1.3",
        ("measured", "added up"),
        (peaks, needed),
        parts_mib=parts,
        own_pages=own_pages,
    )
    _finish(row, out)


def _rounds(
    data: Path, model: str, batches: int, *, threads: int, workers: int, own_pages: bool = False
) -> dict[str, Any]:
    """What worker 0 of a dense round in ``workers`` processes tells."""
    arguments = [f"--data={data}", f"--model={model}", f"--batches={batches}", f"--threads={threads}"]
    arguments += ["--epochs=2", *(["--own-pages"] if own_pages else [])]
    told: dict[str, Any] = json.loads(outputs_of("benchmarks.dense_round", arguments, workers)[0])
    return told


@app.command()
def ray(
    data: Data,
    model: Model = "resnet20",
    rounds: Annotated[int, typer.Option(help="That are measured.")] = 3,
    epochs: Annotated[int, typer.Option(help="Of a round; it should take a minute or more.")] = 4,
    workers: Annotated[int, typer.Option(help="Of a core each; leave none idle.")] = 2,
    out: Out = RESULTS,
) -> None:
    """CPU-seconds that Ray Train, checkpoints and reports add to a round, against plain processes.

    Plain workers train without Ray, and write nothing. Those of Ray Train save a mid-round state each
    epoch, and a checkpoint; the CPU-seconds of all processes of its cluster are counted, from the end
    of one round to that of the next. Plain rounds are measured before and after.
    """
    from benchmarks.ray_overhead import cpu_seconds_under_ray, cpu_seconds_without_ray, recipe_for

    recipe = recipe_for(data, model, epochs, rounds, workers)
    plain = [cpu_seconds_without_ray(recipe)]
    by_kind = cpu_seconds_under_ray(recipe)
    under_ray = [sum(kinds.values()) for kinds in by_kind]
    plain += [cpu_seconds_without_ray(recipe) for _ in range(rounds - 1)]
    ratios = [a / b - 1 for a, b in zip(under_ray, plain, strict=True)]
    kinds = {
        kind: round(statistics.median(each.get(kind, 0.0) for each in by_kind), 2) for kind in by_kind[0]
    }
    row = Row(
        f"CPU-seconds added to a round of {model}, {workers} workers, Ray Train / plain processes - 1",
        Figure.of(ratios),
        "<= 0.03",
        {"under Ray Train": Figure.of(under_ray), "plain processes": Figure.of(plain)},
        {"epochs": epochs, "by kind of process": {kind: spent for kind, spent in kinds.items() if spent}},
    )
    _finish(row, out)


if __name__ == "__main__":
    app()
