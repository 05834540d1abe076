"""Module 5, the model profiler: accuracy, latency and size of every variant.

Latencies are taken in one run, in turns: a few calls of every variant and of the fused dense
network, again and again, so that whatever else the machine does falls on all of them alike. The
engine is handed in; this module measures and counts. Memory: ``memory.py``; what each layer costs:
``cost.py``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

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
    return {name: summarise(found) for name, found in time_in_turns(engines, images, samples, clock).items()}


def time_in_turns(
    engines: Mapping[str, Engine], images: Images, samples: int, clock: Clock = time.perf_counter
) -> dict[str, list[float]]:
    """What `measure_latencies` summarises: milliseconds of each call."""
    times: dict[str, list[float]] = {name: [] for name in engines}
    while any(len(found) < samples for found in times.values()):
        for name, engine in engines.items():
            for _ in range(WARM_UP):
                engine.run(images)
            for _ in range(min(TURN, samples - len(times[name]))):
                start = clock()
                engine.run(images)
                times[name].append((clock() - start) * 1000)
    return times


def measure_alternating(
    engines: Mapping[str, Engine], images: Images, samples: int, clock: Clock = time.perf_counter
) -> dict[str, Latency]:
    """Times ``samples`` calls of each engine, never two of one in a row, after one round that warms up.

    What an edge node sees that serves several models: each call finds the caches full of the others.
    """
    times: dict[str, list[float]] = {name: [] for name in engines}
    for engine in engines.values():
        engine.run(images)
    for _ in range(samples):
        for name, engine in engines.items():
            start = clock()
            engine.run(images)
            times[name].append((clock() - start) * 1000)
    return {name: summarise(found) for name, found in times.items()}


def summarise(milliseconds: list[float]) -> Latency:
    """Median and p99 with their 95 % intervals, by order statistics: no distribution is assumed."""
    ordered = sorted(milliseconds)
    low, high = order_interval(len(ordered), 0.5)
    low99, high99 = order_interval(len(ordered), 0.99)
    return Latency(
        p50_ms=float(np.median(ordered)),
        # So few samples that none is surely below the median: the extremes are all there is to say.
        p50_low_ms=ordered[0 if low is None else low],
        p50_high_ms=ordered[-1 if high is None else high],
        p99_ms=float(np.quantile(ordered, 0.99, method="higher")),
        samples=len(ordered),
        p99_low_ms=None if low99 is None else ordered[low99],
        p99_high_ms=None if high99 is None else ordered[high99],
    )


def order_interval(samples: int, quantile: float, miss: float = 0.025) -> tuple[int | None, int | None]:
    """Between which of the sorted samples a quantile lies; None on a side where none can be named.

    Each side misses it with a probability of at most ``miss``: how many of n samples lie below the
    quantile q is binomial (n, q), whatever they are distributed by.
    """
    low = high = None
    below = 0.0  # probability that at most ``count`` samples lie below the quantile
    for count in range(samples + 1):
        if below <= miss and count > 0:
            low = count - 1  # the sample of this rank is above it as rarely
        below += _binomial(samples, count, quantile)
        if below >= 1 - miss and count < samples:
            high = count
            break
    return low, high


def _binomial(n: int, k: int, p: float) -> float:
    ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(ways + k * math.log(p) + (n - k) * math.log1p(-p))


def parameter_names(architecture: bytes) -> tuple[str, ...]:
    """The checkpoint's trained tensors: weights, biases, scales and shifts, no running statistics."""
    # Here, since an edge node measures latencies with this module and has no ONNX library.
    from shifter.pruning.graph import is_weight, parse_model

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
