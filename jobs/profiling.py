"""Module 5 of a run: its proved variants, measured where the run is driven, one after another.

Variants are loaded from the store, no more at a time than fit in :data:`ROOM`; the dense one is
among them each time, since it is what the others are compared with.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.rounds import Facts, candidate
from jobs.stored import GRAPH, TENSORS, StoredTensors
from shifter.pruning.memory import measure_memory
from shifter.pruning.profile import Clock, Engine, measure_alternating, measure_latencies
from shifter.pruning.rounding import CANDIDATES, WHOLE, choose_multiple
from shifter.recipe import ProfileSpec
from shifter.run import Run
from shifter.switching.engine import OnnxEngine
from shifter.values import Latency, Profile, Tensors

Images = NDArray[np.float32]

ROOM = 2**30
"""Bytes of tensors that are loaded for measuring at a time."""


def profile_variants(
    run: Run, facts: Mapping[str, Facts], images: Images, spec: ProfileSpec
) -> dict[str, Profile]:
    """Measures every variant, while no task of this run is at work.

    Args:
        facts: of each variant by its name, the dense one first.
        images: normalised; the first is the one that single calls answer.
    """
    cores = len(os.sched_getaffinity(0))
    batch = np.resize(images, (spec.batch_images, *images.shape[1:]))
    dense, profiles = next(iter(facts)), dict[str, Profile]()
    for group in groups({name: found.tensor_bytes for name, found in facts.items()}, ROOM):
        measured = _measure(run, group, images[:1], batch, spec.samples, cores)
        with ThreadPoolExecutor(2) as pool:  # each waits for a process of its own
            memories = dict(zip(group, pool.map(lambda name: _memory(run, name, batch), group), strict=True))
        for name in group:
            if name not in profiles:
                profiles[name] = Profile(
                    **facts[name].for_profile(),
                    **{kind: latencies[name] for kind, latencies in measured.items()},
                    memory_bytes=memories[name],
                    batch_images=spec.batch_images,
                    dense_latency=measured["latency"][dense],
                    cores=cores,
                )
    return {name: profiles[name] for name in facts}


def groups(sizes: Mapping[str, int], room: int) -> Iterator[list[str]]:
    """Names to load at the same time: the first one in every group, and with it what fits, in order."""
    first, *others = sizes
    group = [first]
    for name in others:
        if len(group) > 1 and sum(sizes[one] for one in group) + sizes[name] > room:
            yield group
            group = [first]
        group.append(name)
    yield group


def choose_round_to(
    run: Run, index: int, images: Images, samples: int,
    load: Callable[[bytes, Tensors], Engine] = OnnxEngine, clock: Clock = time.perf_counter,
) -> int:  # fmt: skip
    """The multiple for a round's widths that is measured to be fastest here, while no task is at work.

    Returns:
        One of :data:`CANDIDATES`, or :data:`WHOLE` if nothing that is reduced is as fast as the whole.
    """
    engines: dict[int, Engine] = {}
    same: dict[int, int] = {}
    seen: dict[bytes, int] = {}
    for multiple in (*CANDIDATES, WHOLE):
        graph, tensors = candidate(run, index, multiple)
        same[multiple] = seen.setdefault(graph, multiple)
        if same[multiple] == multiple:
            engines[multiple] = load(graph, tensors)
    if len(engines) == 1:
        return CANDIDATES[0]
    named = {str(multiple): engine for multiple, engine in engines.items()}
    latencies = measure_latencies(named, images, samples, clock)
    return choose_multiple({multiple: latencies[str(measured)] for multiple, measured in same.items()})


def _measure(
    run: Run, group: Sequence[str], image: Images, batch: Images, samples: int, cores: int
) -> dict[str, Mapping[str, Any]]:
    """By the profile's field, then by variant: latencies, or None where there is none to tell."""
    fewer = max(10, samples // 4)
    engines = {name: _load(run, name, 1) for name in group}
    alternating: Mapping[str, Latency | None] = dict.fromkeys(group)
    if len(group) > 1:
        alternating = measure_alternating(engines, image, fewer)
    measured: dict[str, Mapping[str, Any]] = {
        "latency": measure_latencies(engines, image, samples),
        "batch_latency": measure_latencies(engines, batch, fewer),
        "alternating_latency": alternating,
    }
    del engines
    with_all = {name: _load(run, name, cores) for name in group}
    return measured | {"all_cores_latency": measure_latencies(with_all, image, fewer)}


def _load(run: Run, name: str, threads: int) -> OnnxEngine:
    graph = run.store.read(run.variant_key(name, GRAPH))
    return OnnxEngine(graph, StoredTensors(run.store, run.variant_key(name, TENSORS)), threads=threads)


def _memory(run: Run, name: str, batch: Images) -> int:
    graph = run.store.read(run.variant_key(name, GRAPH))
    return measure_memory(OnnxEngine, graph, StoredTensors(run.store, run.variant_key(name, TENSORS)), batch)
