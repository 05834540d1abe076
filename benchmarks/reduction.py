"""What phase 2 costs and gains, beside other tools. ``benchmarks/README.md`` has the figures.

::

    python -m benchmarks.reduction resnet50
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.comparison import Figure, Row, compared, in_rotation, in_turns, save

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)
Repetitions = Annotated[int, typer.Option(help="Measurements of each way, in turns.")]
Threads = Annotated[int, typer.Option(help="Cores to use.")]
Out = Annotated[Path, typer.Option(help="Rows are added to this file, as JSON lines.")]
RESULTS = Path("benchmarks/results/reduction.jsonl")
MODELS = Path("benchmarks/results/models.jsonl")

# Structural parameters of the paper's VGG-16 variants, constants dropped (its public notebook).
PAPER = {2: 14.72e6, 4: 14.30e6, 16: 13.42e6, 64: 8.75e6, 256: 2.86e6}


def _finish(row: Row, out: Path) -> None:
    print(row, flush=True)
    save(row, out, " ".join(["python", "-m", "benchmarks.reduction", *sys.argv[1:]]))


def _milliseconds(values: list[float]) -> list[float]:
    return [1000 * value for value in values]


@app.command()
def resnet50(
    repetitions: Repetitions = 15, threads: Threads = 2, round_to: int = 8, out: Out = RESULTS
) -> None:
    """One sparse ResNet-50: plan and rebuild, against torch-simplify, Torch-Pruning, and a bare copy."""
    import torch

    from benchmarks import networks, rivals
    from benchmarks.reducing import Reducer

    torch.set_num_threads(threads)
    subject, dead = networks.resnet50()
    tensors = subject.tensors
    ours = Reducer(subject.architecture, tensors, round_to, threads)
    parts: dict[str, list[float]] = {}

    def noting(name: str, seconds: dict[str, float]) -> float:
        for part, taken in seconds.items():
            parts.setdefault(f"{name}: {part}", []).append(1000 * taken)
        return sum(taken for part, taken in seconds.items() if not part.startswith("CPU"))

    def copies() -> float:
        cpu, began = time.process_time(), time.perf_counter()
        fresh = {name: value.copy() for name, value in tensors.items()}
        taken = {"all": time.perf_counter() - began, "CPU": time.process_time() - cpu}
        assert len(fresh) == len(tensors)
        return noting("copy", taken)

    ways: dict[str, Callable[[], float]] = {
        "ours": lambda: noting("ours", ours.once()),
        "copy": copies,
        "torch-simplify": lambda: noting(
            "torch-simplify", dict(rivals.torch_simplify(subject.module, subject.size).seconds)
        ),
        "Torch-Pruning": lambda: noting(
            "Torch-Pruning", dict(rivals.torch_pruning(subject.module, subject.size, dead).seconds)
        ),
    }
    in_rotation(ways, 1)  # warms up
    parts.clear()
    found = {name: _milliseconds(values) for name, values in in_rotation(ways, repetitions).items()}
    images = subject.images(3)
    notes: dict[str, Any] = {
        "threads": threads,
        "parameters": ours.counts(),
        "error": {
            "ours, float64": ours.error(images),
            "torch-simplify": subject.error_of(
                rivals.torch_simplify(subject.module, subject.size).module, images
            ),
            "Torch-Pruning": subject.error_of(
                rivals.torch_pruning(subject.module, subject.size, dead).module, images
            ),
        },
        "tools": rivals.versions(),
        "parts, ms": {part: str(Figure.of(values)) for part, values in parts.items()},
    }
    print(json.dumps(notes, indent=1), flush=True)
    figures = {name: Figure.of(values) for name, values in found.items()}
    _finish(Row("ms, sparse ResNet-50, plan + rebuild", figures["ours"], "<= 40", figures, notes), out)
    for other, target in (("torch-simplify", ">= 10"), ("Torch-Pruning", ">= 1"), ("copy", "")):
        name = f"ms, sparse ResNet-50, {other} / ours"
        _finish(compared(name, target, (other, "ours"), (found[other], found["ours"])), out)


@app.command()
def live(repetitions: Repetitions = 3, threads: Threads = 2, out: Out = RESULTS) -> None:
    """``shifter.prune`` on a torch ResNet-50: with its proof, the one-time export apart."""
    import torch

    import shifter
    from benchmarks import networks
    from shifter.models.exports import cached_export

    torch.set_num_threads(threads)
    subject, _ = networks.resnet50()
    images = torch.from_numpy(subject.images(2))
    began = time.perf_counter()
    cached_export(subject.module, (3, subject.size, subject.size))
    exported = time.perf_counter() - began
    taken, results = [], []
    for _ in range(repetitions):
        began = time.perf_counter()
        results = [shifter.prune(subject.module, images)]
        taken.append(time.perf_counter() - began)
    figure = Figure.of(taken)
    notes = {
        "threads": threads,
        "error, float64": results[0].relative_error,
        "parameters": results[0].report.parameters,
    }
    figures = {"prune": figure, "export, once": Figure.of([exported])}
    _finish(Row("s, shifter.prune on a live ResNet-50, proof included", figure, "", figures, notes), out)


@app.command()
def rounds(
    repetitions: Repetitions = 5,
    counts: Annotated[str, typer.Option(help="Numbers of rounds, comma-separated.")] = "1,3,9",
    cpus: Annotated[int, typer.Option(help="Of the cluster, where one is started here.")] = 2,
    out: Out = RESULTS,
) -> None:
    """Rounds of a VGG-16 planned and rebuilt by warm Ray tasks that read a store, against one process."""
    from benchmarks.reduction_rounds import Rounds
    from jobs.cluster import cluster

    with Rounds() as made, cluster(cpus, lambda line: print(line, file=sys.stderr)):
        made.by_tasks(9)  # starts the workers
        for count in map(int, counts.split(",")):
            measured = in_turns(
                partial(made.by_tasks, count), partial(made.in_one_process, count), repetitions
            )
            figures = {
                name: Figure.of(values)
                for name, values in zip(("Ray tasks", "one process"), measured, strict=True)
            }
            name, target = f"s, {count} VGG-16 rounds, plan + rebuild", "<= 1" if count == 9 else ""
            notes = {"cpus": cpus, "tasks": made.tasks}
            _finish(Row(name, figures["Ray tasks"], target, figures, notes), out)


@app.command()
def paper(
    variants: Annotated[str, typer.Option(help="Compression ratios, comma-separated.")] = "256",
    repetitions: Repetitions = 15,
    threads: Threads = 1,
    out: Out = RESULTS,
) -> None:
    """The paper's VGG-16: spatial compression with constants kept, and the speed-up against fused dense."""
    from benchmarks import networks
    from benchmarks.reducing import Reducer, share_for, timed_calls
    from shifter.switching.engine import OnnxEngine

    for ratio in map(int, variants.split(",")):
        share = share_for(PAPER[ratio])
        subject = networks.vgg16(share, ratio)
        dense = networks.vgg16(1.0, 1.0)
        images = subject.images(4)
        one = images[:1]
        base = OnnxEngine(*Reducer(dense.architecture, dense.tensors, 8).made(), threads=threads)
        for round_to in (1, 8):
            reducer = Reducer(subject.architecture, subject.tensors, round_to)
            engine = OnnxEngine(*reducer.made(), threads=threads)
            counts = reducer.counts()
            notes = {
                "parameters": counts,
                "paper's": PAPER[ratio],
                "carriers": reducer.plan().carriers,
                "error, float64": reducer.error(images),
                "threads": threads,
                "round_to": round_to,
            }
            compression = Figure.of([counts["dense"] / counts["reduced"]])
            wanted = ">= 5.0" if ratio == 256 else ""
            name = f"VGG-16 {ratio}x, round_to {round_to}"
            _finish(Row(f"spatial compression, {name}", compression, wanted, {}, notes), out)
            measured = in_turns(
                partial(timed_calls, base, one), partial(timed_calls, engine, one), repetitions
            )
            _finish(
                compared(
                    f"ms, batch 1, fused dense / {name}",
                    ">= 1.67" if ratio == 256 else "",
                    ("fused dense", "reduced"),
                    measured,
                    **notes,
                ),
                out,
            )


@app.command()
def models(
    only: Annotated[str, typer.Option("--models", help="Names, comma-separated; all unless given.")] = "",
    again: Annotated[bool, typer.Option(help="Also those that the file has already.")] = False,
    limit_s: Annotated[int, typer.Option(help="Seconds that one model may take.")] = 3600,
    out: Out = MODELS,
) -> None:
    """Every classification network of torchvision, one process each; those in the file are skipped."""
    from torchvision import models as zoo

    names = only.split(",") if only else zoo.list_models(module=zoo)
    done = set() if again or not out.exists() else {json.loads(line)["model"] for line in out.open()}
    for name in names:
        if name in done:
            print(f"{name}: done already", flush=True)
            continue
        command = [sys.executable, "-m", "benchmarks.reduction_model", name, str(out)]
        try:
            code: int | str = subprocess.run(command, timeout=limit_s, check=False).returncode
        except subprocess.TimeoutExpired:
            code = f"more than {limit_s} s"
        if code:
            print(f"{name}: failed ({code})", flush=True)


@app.command()
def table(out: Out = MODELS) -> None:
    """The rows of ``models`` as a table; the last of each model counts."""
    from benchmarks.reduction_model import as_table, summary

    rows = {row["model"]: row for row in map(json.loads, out.open())}
    in_order = [rows[name] for name in sorted(rows)]
    print(as_table(in_order), summary(in_order), sep="\n\n")


if __name__ == "__main__":
    app()
