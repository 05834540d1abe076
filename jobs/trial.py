"""A trial of a service: how much it carries, a load to put it under, and a verdict on what it answered."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.records import Record, Recording, load
from jobs.schedule import Segment
from shifter.errors import DemoError
from shifter.portfolio import Portfolio
from shifter.switching.engine import OnnxEngine

# ONNX Runtime chooses its kernels by the shape of the batch, so the same images, asked about in
# another company, sum in another order: some 1e-6 of the logits' size. Variants of one portfolio
# lie 1e-2 and more apart.
_TOLERANCE = 1e-4
_RAMP_S = 8


@dataclass(frozen=True)
class Driver:
    """Load on services from a process of its own, with the same images for all.

    Args:
        images: pixels (n, c, h, w). per_request: images in each request.
    """

    images: NDArray[Any]
    per_request: int

    def saturate(self, url: str, *, seconds: float, clients: int) -> Recording:
        """Closed loop."""
        return self._run(url, "--saturate", f"{seconds:g}", "--clients", str(clients))

    def drive(self, url: str, schedule: Sequence[Segment], seed: int) -> Recording:
        """Open loop with random arrivals."""
        text = ",".join(f"{s.seconds!r}:{s.rate!r}" for s in schedule)
        return self._run(url, "--schedule", text, "--seed", str(seed))

    def _run(self, url: str, *options: str) -> Recording:
        with tempfile.TemporaryDirectory(prefix="shifter-load-") as folder:
            images, out = Path(folder) / "images.npy", Path(folder) / "records.npz"
            np.save(images, self.images)
            command = [sys.executable, "-m", "jobs.load", "--url", url, "--images", str(images)]
            command += ["--per-request", str(self.per_request), "--out", str(out), *options]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise DemoError(f"the load generator failed with status {done.returncode}: {done.stderr}")
            return load(out)


def capacity(driver: Driver, url: str, *, seconds: float) -> float:
    """Requests/s that a service answers when it is never idle.

    Raises:
        DemoError: if a request is not answered.
    """
    records = driver.saturate(url, seconds=seconds, clients=4).records
    for record in records:
        if not record.answered:
            raise DemoError(f"{url} answered {record.status} to a request of the calibration, not 200")
    return len(records) / max(r.scheduled + r.latency for r in records)


@dataclass(frozen=True)
class Plan:
    """A load that rises and falls, and the objective that a service should meet under it."""

    schedule: tuple[Segment, ...]
    objective_s: float


def plan(largest: float, smallest: float) -> Plan:
    """A load that rises above what the largest variant carries and stays well within the smallest's.

    All rates are relative to what has just been measured on this machine, busy as it is. The
    objective is ten times what the largest variant takes for a request: some may wait for one
    another, but there is no time for a queue that grows for seconds.

    Args:
        largest, smallest: requests/s that the two variants carry.

    Raises:
        DemoError: if the smallest variant carries too little more than the largest.
    """
    ratio = smallest / largest
    if ratio < 1.6:
        raise DemoError(
            f"the smallest variant answers {smallest:.0f} requests/s and the largest {largest:.0f}: "
            "a load between the two needs a factor of 1.6 at least"
        )
    # As far above the one as below the other, but not further than it takes.
    low, peak = 0.25, min(math.sqrt(ratio), 1.5)
    rising = [low + (peak - low) * (second + 0.5) / _RAMP_S for second in range(_RAMP_S)]
    # The switcher knows a rate from its last fifty requests: the fewer a second, the longer that takes.
    tail = max(9.0, 200 / largest)
    steps = [(2, low), *((1, r) for r in rising), (5, peak), (1, rising[-2]), (1, rising[1]), (tail, low)]
    schedule = tuple(Segment(seconds, relative * largest) for seconds, relative in steps)
    return Plan(schedule, objective_s=max(0.1, 10 / largest))


def check_answers(records: Sequence[Record], portfolio: Portfolio, images: NDArray[Any]) -> int:
    """Recomputes every answer with the variant that it names; returns how many images were checked.

    Raises:
        DemoError: naming the first answer that is not that of its variant.
    """
    spec = portfolio.input_spec
    right: dict[str, NDArray[np.float32]] = {}
    checked = 0
    for index, record in enumerate(records):
        if record.variant is None or record.logits is None:
            continue
        if record.variant not in right:
            if record.variant not in portfolio.names:
                raise DemoError(f"answer {index} names {record.variant!r}, which is not in the portfolio")
            variant = portfolio.inflate(record.variant)
            engine = OnnxEngine(variant.graph, variant.tensors)
            right[record.variant] = engine.run(spec.normalise(images))
        want = right[record.variant][list(record.images)]
        tolerance = _TOLERANCE * max(1.0, float(np.abs(want).max()))
        same = record.logits.shape == want.shape and bool(np.all(np.abs(record.logits - want) <= tolerance))
        # A class may differ only where the two best logits are a tie within the tolerance.
        if same:
            rows = np.arange(len(want))
            given, best = want[rows, record.logits.argmax(axis=1)], want.max(axis=1)
            same = bool(np.all(best - given <= 2 * tolerance))
        if not same:
            raise DemoError(f"answer {index} is not what {record.variant}, which it names, computes")
        checked += len(record.images)
    return checked


def descends_and_returns(records: Sequence[Record], sizes: Sequence[str]) -> bool:
    """Whether some answer came from a smaller variant than an earlier and a later one did.

    Args:
        sizes: the variants, smallest first.
    """
    answered = sorted((r.scheduled + r.latency, sizes.index(r.variant)) for r in records if r.variant)
    order = [size for _, size in answered]
    before = list(itertools.accumulate(order, max))
    after = list(itertools.accumulate(reversed(order), max))[::-1]
    return any(size < min(left, right) for left, size, right in zip(before, order, after, strict=True))
