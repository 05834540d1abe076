"""What ``jobs.calibrate`` measures: every variant of a portfolio, on the node at hand.

No more variants are loaded at a time than fit in :data:`ROOM` or in half of the memory that is
free: a node may hold its portfolio deflated without ever having room for all of it inflated.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shifter.errors import EngineError
from shifter.portfolio import Portfolio
from shifter.pruning.memory import measure_memory
from shifter.pruning.profile import measure_alternating, summarise, time_in_turns
from shifter.switching.calibration import BatchTime, ThreadTimes, VariantTimes, mean_of
from shifter.switching.engine import OnnxEngine
from shifter.switching.engines import Engine, QuickEngine, make_engine, ready
from shifter.values import Latency, Profile, Variant

ROOM = 2**30
"""Bytes of loaded engines at a time."""
FEWEST = 20
"""Samples of what takes long, if as many are wanted of anything."""
_SWITCHES = 7

Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Args:
        threads: of one call, ascending. batches: images in one call, ascending from 1.
        samples: calls of one image that are timed; of n images an n-th of it, but `FEWEST` at least.
    """

    threads: tuple[int, ...]
    batches: tuple[int, ...]
    samples: int

    def samples_of(self, images: int) -> int:
        return max(min(self.samples, FEWEST), self.samples // images)

    @property
    def samples_alternating(self) -> int:
        """Fewer, since each is a call of every other variant as well."""
        return self.samples_of(4)

    def seconds(self, profiles: Mapping[str, Profile]) -> float:
        """About how long it takes where the profiles are true, with one thread as with several."""
        total = 0.0
        for profile in profiles.values():
            one = profile.latency.p50_ms / 1e3
            each = min(one, profile.batch_latency.p50_ms / 1e3 / profile.batch_images)
            hot = sum(1.5 * self.samples_of(n) * (one + each * (n - 1)) for n in self.batches)
            total += len(self.threads) * (hot + self.samples_alternating * one) + 1.0
        return total


def batch_sizes(limit: int) -> tuple[int, ...]:
    """1, 2, 4, … up to ``limit``, which is one of them."""
    sizes = []
    size = 1
    while size < limit:
        sizes.append(size)
        size *= 2
    return (*sizes, limit)


def measure_variants(
    portfolio: Portfolio, plan: Plan, say: Say
) -> tuple[tuple[VariantTimes, ...], dict[str, str]]:
    """Measures the variants of a verified portfolio.

    Returns:
        Those that run here, smallest first, and why each of the others does not.

    Raises:
        EngineError: if none runs here.
    """
    images = np.random.default_rng(0).standard_normal(
        (plan.batches[-1], *portfolio.input_spec.shape), dtype=np.float32
    )
    switches: dict[str, dict[str, Latency]] = {}
    memory: dict[str, int] = {}
    refused: dict[str, str] = {}
    for name in portfolio.names:
        try:
            switches[name] = _measure_switch(portfolio, name)
            variant = portfolio.inflate(name)
            memory[name] = measure_memory(OnnxEngine, variant.graph, variant.tensors, images)
        except (EngineError, MemoryError) as problem:
            refused[name] = str(problem) or type(problem).__name__
            say(f"{name} does not run here: {refused[name]}")
        else:
            say(
                f"{name}: {memory[name] / 1e6:.1f} MB loaded; "
                f"a cold switch to it takes {switches[name]['switch'].p50_ms:.1f} ms"
            )
    names = [name for name in portfolio.names if name not in refused]
    if not names:
        raise EngineError(f"no variant runs on this node: {next(iter(refused.values()))}")
    times: dict[str, list[ThreadTimes]] = {name: [] for name in names}
    for threads in plan.threads:
        for name, found in _measure_threads(portfolio, names, memory, threads, images, plan, say).items():
            times[name].append(found)
    variants = tuple(
        VariantTimes(name=name, memory_bytes=memory[name], times=tuple(times[name]), **switches[name])
        for name in names
    )
    return variants, refused


def groups(memory: Mapping[str, int], room: int) -> Iterator[list[str]]:
    """Names to load at the same time, in order; one that does not fit has its place all the same."""
    group: list[str] = []
    for name, size in memory.items():
        if group and sum(memory[one] for one in group) + size > room:
            yield group
            group = []
        group.append(name)
    yield group


def _measure_switch(portfolio: Portfolio, name: str) -> dict[str, Latency]:
    """Milliseconds to inflate, to build and warm up, and of both, until it may answer."""
    inflating, building, both = [], [], []
    for _ in range(_SWITCHES):
        begin = time.perf_counter()
        variant = portfolio.inflate(name)
        inflated = time.perf_counter()
        engine = ready(variant, portfolio.input_spec, make_engine())
        done = time.perf_counter()
        inflating.append(1e3 * (inflated - begin))
        building.append(1e3 * (done - inflated))
        both.append(1e3 * (done - begin))
        del engine, variant
    return {"inflate": summarise(inflating), "build": summarise(building), "switch": summarise(both)}


def _measure_threads(
    portfolio: Portfolio,
    names: Sequence[str],
    memory: Mapping[str, int],
    threads: int,
    images: NDArray[np.float32],
    plan: Plan,
    say: Say,
) -> dict[str, ThreadTimes]:
    found: dict[str, ThreadTimes] = {}
    for group in groups({name: memory[name] for name in names}, _room()):
        loaded = group
        if len(group) == 1 < len(names):  # one that is alone alternates with its neighbour
            at = names.index(group[0])
            loaded = [names[at - 1] if at else names[1], *group]
        engines = {name: _load(portfolio.inflate(name), threads) for name in loaded}
        hot: dict[str, list[BatchTime]] = {name: [] for name in group}
        for size in plan.batches:
            of_group = {name: engines[name] for name in group}
            for name, times in time_in_turns(of_group, images[:size], plan.samples_of(size)).items():
                latency = summarise(times)
                hot[name].append(BatchTime(images=size, latency=latency, mean_ms=mean_of(times)))
            said = _told({name: hot[name][-1].latency for name in group})
            say(f"{_count(threads, 'thread')}, {_count(size, 'image')}: {said}")
        alternating: dict[str, Latency] = {}
        if len(loaded) > 1:
            alternating = measure_alternating(engines, images[:1], plan.samples_alternating)
            say(f"{_count(threads, 'thread')}, alternating: {_told({n: alternating[n] for n in group})}")
        for name in group:
            found[name] = ThreadTimes(
                threads=threads, hot=tuple(hot[name]), alternating=alternating.get(name)
            )
    return found


def _load(variant: Variant, threads: int) -> Engine:
    engine = make_engine(threads=threads)(variant)
    if isinstance(engine, QuickEngine):
        engine.optimise()
    return engine


def _room() -> int:
    """Of Linux's procfs, where there is one."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return ROOM
    free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return min([ROOM, *(size // 2 for size in free)])


def _told(latencies: Mapping[str, Latency]) -> str:
    return ", ".join(f"{name} {latency.p50_ms:.3g} ms" for name, latency in latencies.items())


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
