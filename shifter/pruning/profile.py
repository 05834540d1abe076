"""Module 5, the model profiler: accuracy, latency and size of every variant (memory: ``memory.py``).

Latencies are taken in one run, in turns: a few calls of every variant and of the fused dense
network, again and again, so that whatever else the machine does falls on all of them alike. The
engine is handed in; this module measures and counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from shifter.pruning.graph import is_weight, parse_model
from shifter.values import Latency

Images = NDArray[np.float32]
Clock = Callable[[], float]


class Engine(Protocol):
    """A loaded network."""

    def run(self, images: Images) -> NDArray[np.float32]:
        """Logits (n, classes) of normalised images (n, channels, height, width)."""
        ...


WARM_UP = 5
TURN = 10


def accuracy(engine: Engine, images: NDArray[Any], labels: NDArray[np.int64], batch: int = 256) -> float:
    """Share of images, as ``engine`` reads them, whose largest logit is their label; each counts once."""
    right = 0
    for start in range(0, len(images), batch):
        answers = engine.run(images[start : start + batch]).argmax(axis=1)
        right += int((answers == labels[start : start + batch]).sum())
    return right / len(images)


def measure_latencies(
    engines: Mapping[str, Engine], images: Images, samples: int, clock: Clock = time.perf_counter
) -> dict[str, Latency]:
    """Times ``samples`` calls on ``images`` of each engine, in turns, after a warm-up in each turn."""
    times: dict[str, list[float]] = {name: [] for name in engines}
    while any(len(found) < samples for found in times.values()):
        for name, engine in engines.items():
            for _ in range(WARM_UP):
                engine.run(images)
            for _ in range(min(TURN, samples - len(times[name]))):
                start = clock()
                engine.run(images)
                times[name].append((clock() - start) * 1000)
    return {name: summarise(found) for name, found in times.items()}


def summarise(milliseconds: list[float]) -> Latency:
    """Median with its 95 % interval (by order statistics, no distribution assumed), and p99."""
    ordered = np.sort(np.asarray(milliseconds))
    n = ordered.size
    reach = 1.96 * np.sqrt(n) / 2
    low, high = int(np.floor(n / 2 - reach)), int(np.ceil(n / 2 + reach))
    return Latency(
        p50_ms=float(np.median(ordered)),
        p50_low_ms=float(ordered[max(low, 0)]),
        p50_high_ms=float(ordered[min(high, n - 1)]),
        p99_ms=float(np.quantile(ordered, 0.99, method="higher")),
        samples=int(n),
    )


def parameter_names(architecture: bytes) -> tuple[str, ...]:
    """The checkpoint's trained tensors: weights, biases, scales and shifts, no running statistics."""
    graph = parse_model(architecture).graph
    statistics = {
        value.name
        for node in graph
        if node.op_type == "BatchNormalization"
        for value in node.inputs[3:5]
        if value is not None
    }
    return tuple(
        name for name, value in graph.initializers.items() if is_weight(value) and name not in statistics
    )


def count_parameters(arrays: Iterator[NDArray[Any]]) -> tuple[int, int]:
    """(all, non-zero) numbers in the arrays."""
    total = nonzero = 0
    for array in arrays:
        total += array.size
        nonzero += int(np.count_nonzero(array))
    return total, nonzero
