"""One network of torchvision, sparse, reduced by us and by other tools: one line of JSON.

::

    python -m benchmarks.reduction_model resnet18 models.jsonl
"""

from __future__ import annotations

import json
import platform
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import nn
from torchvision import models as zoo

from benchmarks import networks, rivals
from benchmarks.networks import Subject
from benchmarks.reducing import Reducer, timed_calls
from shifter.pruning.exactness import relative_error
from shifter.run import provenance
from shifter.switching.engine import OnnxEngine

AFFORDABLE = 4e7
"""Parameters up to which the graph is run in float64; above, torch in double is the reference and the
engine's float32 is measured."""

SIZES = {"inception_v3": 299, "alexnet": 224, "maxvit_t": 224}
SMALL = 96
"""Pixels: where the code takes any size, this keeps float64 affordable."""


def main(name: str, out: Path, turns: Annotated[int, typer.Option()] = 5) -> None:
    """Adds the row of one network."""
    torch.manual_seed(0)
    network = zoo.get_model(name, weights=None)
    rng = np.random.default_rng(0)
    dead: dict[str, list[int]] = {}
    began = time.perf_counter()
    subject = networks.subject(name, network, _size(name), lambda module: _mask(module, rng, dead))
    row: dict[str, Any] = {
        "model": name,
        "image": subject.size,
        "prepare_s": time.perf_counter() - began,
        "provenance": provenance(seed=0) | {"platform": platform.platform(terse=True)},
        "tools": rivals.versions(),
    }
    images = subject.images(3)
    row["ours"] = _tried(lambda: _ours(subject, images, turns))
    row["torch-simplify"] = _tried(
        lambda: _rival(subject, images, lambda: rivals.torch_simplify(subject.module, subject.size))
    )
    row["Torch-Pruning"] = _tried(
        lambda: _rival(subject, images, lambda: rivals.torch_pruning(subject.module, subject.size, dead))
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(as_table([row]), flush=True)


def _size(name: str) -> int:
    fixed = ("vit_", "swin", "maxvit")
    if name in SIZES or name.startswith(fixed):
        return SIZES.get(name, 518 if name == "vit_h_14" else 224)
    return SMALL


def _mask(module: nn.Module, rng: np.random.Generator, dead: dict[str, list[int]]) -> None:
    """In half of the layers a third of the filters, in some also input slices and single weights."""
    layers = [(n, p) for n, p in module.named_modules() if isinstance(p, nn.Conv2d | nn.Linear)]
    for name, part in layers[:-1]:
        weight = part.weight
        if rng.random() < 0.5:
            weight *= torch.from_numpy(rng.random(tuple(weight.shape)) >= 0.4)
        if rng.random() < 0.3 and weight.shape[1] > 3:
            weight[:, torch.from_numpy(rng.random(weight.shape[1]) < 0.25)] = 0
        if rng.random() < 0.5:
            filters = np.flatnonzero(rng.random(weight.shape[0]) < 1 / 3).tolist()
            if filters:
                weight[filters] = 0
                dead[name] = filters


def _ours(subject: Subject, images: Any, turns: int) -> dict[str, Any]:
    tensors = subject.tensors
    reducer = Reducer(subject.architecture, tensors, round_to=8)
    taken = [reducer.once() for _ in range(turns)]
    graph, made = reducer.made()
    engines = {
        "before": OnnxEngine(*Reducer(subject.architecture, _dense(tensors), 8).made()),
        "after": OnnxEngine(graph, made),
    }
    latencies: dict[str, list[float]] = {key: [] for key in engines}
    for _ in range(turns):
        for key, engine in engines.items():
            latencies[key].append(timed_calls(engine, images[:1]))
    result = {
        "parameters": reducer.counts(),
        "plan_ms": 1000 * float(np.median([t["analyse"] + t["plan"] for t in taken])),
        "rebuild_ms": 1000 * float(np.median([t["rebuild"] for t in taken])),
        "latency_ms": {key: float(np.median(values)) for key, values in latencies.items()},
        "speed_up": float(np.median(np.divide(latencies["before"], latencies["after"]))),
        "untouched": len(reducer.plan().untouched),
    }
    reference = subject.answers(images)
    result["error, float32"] = relative_error(engines["after"].run(images), reference)
    sparse = OnnxEngine(subject.architecture, tensors)
    result["error of the sparse one, float32"] = relative_error(sparse.run(images), reference)
    if result["parameters"]["dense"] <= AFFORDABLE:
        result["error, float64"] = reducer.error(images)
    return result


def _dense(tensors: dict[str, Any]) -> dict[str, Any]:
    """No weight is zero, so that only batch norm is fused: what latency is compared with."""
    return {
        name: np.where(value == 0, np.float32(1e-3), value) if value.ndim > 1 else value
        for name, value in tensors.items()
    }


def _rival(subject: Subject, images: Any, attempt: Callable[[], rivals.Attempt]) -> dict[str, Any]:
    done = attempt()
    return {
        # torch-simplify keeps constants as maps of the size of the image; they are stored as well.
        "parameters": sum(parameter.numel() for parameter in done.module.parameters()),
        "ms": 1000 * done.total,
        "error": subject.error_of(done.module, images),
    }


def _tried(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What it gives, or why it fails: other people's code raises whatever it likes."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return work()
    except Exception as error:  # noqa: BLE001
        return {"failed": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"}


def as_table(rows: list[dict[str, Any]]) -> str:
    """Markdown: one line a model."""
    lines = [
        "| model | parameters, M | error | ms before → after | plan + rebuild, ms "
        "| torch-simplify: error, ms | Torch-Pruning: error, ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ours = row["ours"]
        if "failed" in ours:
            mine = f"{ours['failed']} | | |"
        else:
            counts, latency = ours["parameters"], ours["latency_ms"]
            error = ours.get("error, float64")
            shown = f"{error:.0e}" if error is not None else f"{ours['error, float32']:.0e} (float32)"
            mine = (
                f"{counts['dense'] / 1e6:.1f} → {counts['reduced'] / 1e6:.1f} | {shown} "
                f"| {latency['before']:.1f} → {latency['after']:.1f} "
                f"| {ours['plan_ms']:.0f} + {ours['rebuild_ms']:.0f}"
            )
        others = [
            each["failed"] if "failed" in each else f"{each['error']:.0e}, {each['ms']:.0f}"
            for each in (row["torch-simplify"], row["Torch-Pruning"])
        ]
        lines.append(f"| {row['model']} | {mine} | {others[0]} | {others[1]} |")
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
