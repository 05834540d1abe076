"""What phase 3 costs, against what it could cost. ``benchmarks/README.md`` has the figures.

::

    python -m benchmarks.switching switch --cache ~/.cache/portfolios
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Self

import typer

from benchmarks.comparison import Figure, Row, compared, in_rotation, save
from benchmarks.switching_worker import ALL, Told
from shifter.portfolio import Portfolio
from shifter.switching.engines import make_engine
from shifter.switching.initialise import initialise

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)
Cache = Annotated[Path, typer.Option(help="Folder in which the portfolios are kept; built on the first run.")]
Models = Annotated[str, typer.Option(help="VGG-16, ResNet-50, or both, comma-separated.")]
Repetitions = Annotated[int, typer.Option(help="Measurements of each way, in turns.")]
Threads = Annotated[int, typer.Option(help="Cores that one inference may use.")]
Out = Annotated[Path, typer.Option(help="Rows are added to this file, as JSON lines.")]
RESULTS = Path("benchmarks/results/switching.jsonl")
BOTH = "VGG-16,ResNet-50"
MIB = 2**20


def _finish(row: Row, out: Path) -> None:
    print(row, flush=True)
    # Where the portfolios lie is no part of what was measured.
    words = ["FOLDER" if before == "--cache" else word for before, word in pairwise(["", *sys.argv[1:]])]
    save(row, out, " ".join(["python", "-m", "benchmarks.switching", *words]))


def _packages(models: str, cache: Path) -> Iterator[tuple[str, Path]]:
    """Each model's name, and the file of its package."""
    from benchmarks.portfolios import PORTFOLIOS

    for model in models.split(","):
        package = PORTFOLIOS[model](cache)
        path = cache / f".{os.getpid()}.zip"
        path.write_bytes(package)
        try:
            yield model, path
        finally:
            path.unlink()


@app.command()
def switch(
    cache: Cache,
    models: Models = BOTH,
    repetitions: Repetitions = 9,
    threads: Threads = 1,
    out: Out = RESULTS,
) -> None:
    """From the decision to the first answer possible: ours, the published way, and a supernet."""
    for model, path in _packages(models, cache):
        portfolio = Portfolio.open(path)
        with (
            _Switched(portfolio, threads, ahead=False) as cold,
            _Switched(portfolio, threads, ahead=True) as ahead,
            _Rivals(path, threads) as rivals,
        ):
            found = {}
            for name in portfolio.names:
                ways = {
                    "ours": partial(cold.milliseconds, name),
                    "ours, inflated ahead": partial(ahead.milliseconds, name),
                    "published": partial(rivals.milliseconds, "published", name),
                    "supernet": partial(rivals.milliseconds, "supernet", name),
                }
                in_rotation(ways, 1)  # warms up
                found[name] = in_rotation(ways, repetitions)
        _tell_switches(model, found, threads, out)


def _tell_switches(
    model: str, found: Mapping[str, Mapping[str, list[float]]], threads: int, out: Path
) -> None:
    """Rows of each variant, and those that are judged: of the whole portfolio."""
    notes = {"threads": threads}
    for name, ways in found.items():
        ratio = Figure.of(_ratios(ways["ours"], ways["published"]))
        figures = {way: Figure.of(values) for way, values in ways.items()}
        title = f"ms, {model}, switch to {name} from its neighbour, ours / published"
        _finish(Row(title, ratio, "", figures, notes), out)
    for other, target in (("published", "<= 0.333"), ("supernet", "")):
        by_variant = [_ratios(ways["ours"], ways[other]) for ways in found.values()]
        means = [_geometric_mean(turn) for turn in zip(*by_variant, strict=True)]
        title = f"{model}, cold switch, ours / {other}, geometric mean over the portfolio"
        _finish(Row(title, Figure.of(means), target, {}, notes), out)
    slowest = [max(turn) for turn in zip(*(w["ours, inflated ahead"] for w in found.values()), strict=True)]
    title = f"ms, {model}, switch to a neighbour inflated ahead, the slowest of the portfolio"
    _finish(Row(title, Figure.of(slowest), "<= 1", {}, notes), out)


def _ratios(ones: list[float], others: list[float]) -> list[float]:
    return [one / other for one, other in zip(ones, others, strict=True)]


def _geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


class _Switched:
    """A host that is told what to switch to; a context manager."""

    def __init__(self, portfolio: Portfolio, threads: int, *, ahead: bool) -> None:
        self._names, self._ahead = portfolio.names, ahead
        self._policy = Told(portfolio.names[0])
        self._host = initialise(
            portfolio,
            self._policy,
            dwell=0.0,
            build=make_engine(threads=threads),
            ahead_bytes=ALL if ahead else 0,
        )

    def milliseconds(self, name: str) -> float:
        """What the host counts of a switch to ``name`` from its smaller neighbour, or its larger one."""
        at = self._names.index(name)
        self._policy.variant = self._names[at - 1 if at else 1]
        self._host.tick()  # and what is done off the path of requests: optimised, inflated ahead
        self._policy.variant = name
        self._host.tick()
        last = self._host.status().switches[-1]
        assert (last.after, last.ahead, last.error) == (name, self._ahead, None), last
        return 1000 * last.seconds

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._host.close()


class _Rivals:
    """The process of `benchmarks.pruned_modules`; a context manager."""

    def __init__(self, path: Path, threads: int) -> None:
        command = [sys.executable, "-m", "benchmarks.pruned_modules", str(path), str(threads)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def milliseconds(self, way: str, name: str) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(way, name, file=self._process.stdin, flush=True)
        return float(self._process.stdout.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=60)  # which ends its input, and so itself


@app.command()
def latency(
    cache: Cache,
    models: Models = BOTH,
    repetitions: Repetitions = 15,
    cores: Annotated[str, typer.Option(help="Numbers of them, comma-separated; all by default.")] = "",
    out: Out = RESULTS,
) -> None:
    """Batch 1: eager torch on the pruned model / the engine of the same variant, on as many cores."""
    import torch

    torch.set_flush_denormal(True)
    for model, path in _packages(models, cache):
        for threads in map(int, (cores or str(len(os.sched_getaffinity(0)))).split(",")):
            torch.set_num_threads(threads)
            for name, found in _latencies(Portfolio.open(path), threads, repetitions):
                # What answers until the engine is optimised is a row of its own.
                for mine, target in (("engine", ">= 2.5"), ("quick engine", "")):
                    pair = (found["eager torch"], found[mine])
                    title = f"ms, batch 1, {model} {name}, {threads} cores, eager torch / {mine}"
                    _finish(compared(title, target, ("eager torch", mine), pair, threads=threads), out)


def _latencies(
    portfolio: Portfolio, threads: int, repetitions: int
) -> Iterator[tuple[str, dict[str, list[float]]]]:
    """Of each variant, milliseconds by what answers."""
    import numpy as np

    from benchmarks.pruned_modules import Eager, pruned_module, require_same
    from benchmarks.reducing import timed_calls
    from shifter.switching.engine import OnnxEngine

    image = np.random.default_rng(0).normal(size=(1, *portfolio.input_spec.shape)).astype(np.float32)
    for name in portfolio.names:
        variant = portfolio.inflate(name)
        module = pruned_module(portfolio.model, variant.tensors)
        require_same(module, variant, np.concatenate([image, -image, image**2]))
        engine, quick = (
            OnnxEngine(variant.graph, variant.tensors, threads=threads, quick=is_quick)
            for is_quick in (False, True)
        )
        ways = {
            "engine": partial(timed_calls, engine, image),
            "quick engine": partial(timed_calls, quick, image),
            "eager torch": partial(timed_calls, Eager(module), image),
        }
        yield name, in_rotation(ways, repetitions)


@app.command()
def memory(cache: Cache, models: Models = BOTH, repetitions: Repetitions = 3, out: Out = RESULTS) -> None:
    """Resident memory that a portfolio adds to a process: deflated and one active / all variants loaded."""
    for model, path in _packages(models, cache):
        names = Portfolio.open(path).names
        ways = {"nothing": ["nothing"], "ensemble": ["ensemble"]}
        ways |= {f"{name} {how}": ["active", name, how] for name in names for how in ("alone", "ahead")}
        found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
        for _ in range(repetitions):
            for way, (command, *arguments) in ways.items():
                found[way].append(_worker(command, str(path), *arguments))
        bare = [run["resident"] / MIB for run in found["nothing"]]
        added = {
            way: [run["resident"] / MIB - base for run, base in zip(runs, bare, strict=True)]
            for way, runs in found.items()
        }
        for how, besides in (("alone", ""), ("ahead", " + neighbours inflated ahead")):
            for name in names:
                runs = found[f"{name} {how}"]
                figures = {
                    "ours": Figure.of(added[f"{name} {how}"]),
                    "ensemble": Figure.of(added["ensemble"]),
                    "peak of the process": Figure.of([run["peak"] / MIB for run in runs]),
                    "of the process without": Figure.of(bare),
                    "next switch, ms": Figure.of([run["switch_ms"] for run in runs]),
                }
                ratio = Figure.of(_ratios(added[f"{name} {how}"], added["ensemble"]))
                target = "" if besides else "<= 0.333" if name == names[0] else "<= 1"
                title = f"MiB resident, {model} deflated + {name} active{besides} / ensemble"
                _finish(Row(title, ratio, target, figures, {}), out)


@app.command()
def start(
    cache: Cache, models: Models = "ResNet-50", repetitions: Repetitions = 7, out: Out = RESULTS
) -> None:
    """From the first import to the first answer, in a fresh process; the ResNet-50's package has 30 MB."""
    for model, path in _packages(models, cache):
        _worker("start", str(path))  # fills the disk's cache
        runs = [_worker("start", str(path)) for _ in range(repetitions)]
        figures = {part: Figure.of([run[part] for run in runs]) for part in ("imports", "initialise")}
        figures["peak, MiB"] = Figure.of([run["peak"] / MIB for run in runs])
        notes = {"package, MB": runs[0]["deflated"] / 1e6}
        seconds = Figure.of([run["seconds"] for run in runs])
        _finish(Row(f"s, import to first answer, {model}", seconds, "<= 1", figures, notes), out)


def _worker(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.switching_worker", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    app()
