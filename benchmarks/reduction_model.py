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
import onnx
import torch
import typer
from numpy.typing import NDArray
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
SMALL, OTHER = 96, 128
"""Pixels: where the code takes any size, these keep float64 affordable."""

WRONG = 1e-3
"""An error that no float32 explains."""

BATCH, FEW = 7, 3
"""Images in a batch, and as many as float64 evaluates one by one."""


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
    images, few = subject.images(BATCH), subject.images(BATCH)[:FEW]
    row["ours"] = _tried(lambda: _ours(subject, images, turns))
    row["torch-simplify"] = _tried(
        lambda: _rival(subject, few, lambda: rivals.torch_simplify(subject.module, subject.size))
    )
    row["Torch-Pruning"] = _tried(
        lambda: _rival(subject, few, lambda: rivals.torch_pruning(subject.module, subject.size, dead))
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
    result: dict[str, Any] = {
        "parameters": reducer.counts(),
        "plan_ms": 1000 * float(np.median([t["analyse"] + t["plan"] for t in taken])),
        "rebuild_ms": 1000 * float(np.median([t["rebuild"] for t in taken])),
        "latency_ms": {key: float(np.median(values)) for key, values in latencies.items()},
        "speed_up": float(np.median(np.divide(latencies["before"], latencies["after"]))),
        "untouched": len(reducer.plan().untouched),
    }
    sparse = OnnxEngine(subject.architecture, tensors)
    result |= _errors(subject, images, "", engines["after"], sparse)
    affordable = result["parameters"]["dense"] <= AFFORDABLE
    if affordable:
        result["error, float64"] = reducer.error(images[:FEW])
    if subject.size == SMALL:
        larger = subject.images(BATCH, OTHER)
        free = OnnxEngine(_any_size(graph), made), OnnxEngine(_any_size(subject.architecture), tensors)
        result |= _errors(subject, larger, f", {OTHER} pixels", *free)
        if affordable:
            result[f"error, float64, {OTHER} pixels"] = reducer.error(larger[:2])
    return result


def _errors(
    subject: Subject, images: NDArray[np.float32], where: str, reduced: OnnxEngine, sparse: OnnxEngine
) -> dict[str, Any]:
    """Against torch in float64, in a batch of 7 and one by one, whichever is worse."""
    reference = subject.answers(images)

    def error(engine: OnnxEngine) -> float:
        single = np.concatenate([engine.run(image[None]) for image in images])
        return max(relative_error(answers, reference) for answers in (engine.run(images), single))

    return {
        f"error, float32{where}": error(reduced),
        f"error of the sparse one, float32{where}": error(sparse),
    }


def _any_size(graph: bytes) -> bytes:
    """The same graph, of images of any height and width."""
    model = onnx.load_model_from_string(graph)
    del model.graph.value_info[:]
    for axis, name in ((2, "height"), (3, "width")):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    return bytes(model.SerializeToString())


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
            double = _worst(ours, "error, float64")
            shown = f"{double:.0e}" if double else f"{_worst(ours, 'error, float32'):.0e} (float32)"
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


def _worst(ours: dict[str, Any], name: str) -> float:
    """Over the sizes that were tried; 0 if it was not measured."""
    return max((value for key, value in ours.items() if key.startswith(name)), default=0.0)


def summary(rows: list[dict[str, Any]]) -> str:
    """What the table says, in a few lines."""
    ours = [row["ours"] for row in rows if "failed" not in row["ours"]]
    doubles = [error for each in ours if (error := _worst(each, "error, float64"))]
    sparse = "error of the sparse one, float32"
    against = [_worst(each, "error, float32") / _worst(each, sparse) for each in ours]
    speed = [each["speed_up"] for each in ours]
    kept = [each["parameters"]["reduced"] / each["parameters"]["dense"] for each in ours]
    lines = [
        f"{len(ours)} of {len(rows)} networks reduced",
        f"float64 error at most {max(doubles):.0e} ({len(doubles)} networks)",
        f"float32 error {np.median(against):.2f} times the sparse network's own, at most {max(against):.2f}",
        f"parameters left {np.median(kept):.2f} [{min(kept):.2f}, {max(kept):.2f}]",
        f"latency before / after {np.median(speed):.2f} [{min(speed):.2f}, {max(speed):.2f}]",
    ]
    for tool in ("torch-simplify", "Torch-Pruning"):
        done = [row[tool]["error"] for row in rows if "failed" not in row[tool]]
        wrong = sum(error > WRONG for error in done)
        lines.append(f"{tool} fails on {len(rows) - len(done)}, errs by more than {WRONG} on {wrong}")
    return "; ".join(lines)


if __name__ == "__main__":
    typer.run(main)
