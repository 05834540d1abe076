"""What a load on a service was answered, and the figures drawn from it. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False, slots=True)
class Record:
    """One request and what became of it.

    Args:
        scheduled: when it was due, seconds from the start.
        sent: seconds after that until the client handed it over; the client's own lateness.
        latency: seconds from ``scheduled`` to the answer's last byte, or to the failure.
        status: of HTTP; 0 where no answer came.
        variant: as the answer names it; None where it is not a 200.
        images: indices of the images in it, into the array that the load was made from.
        logits: float32 (images, classes); None where the answer is not a 200, or they were not kept.
        predicted: the class of each image; None where the answer is not a 200, or cannot be read.
        cause: why it was not answered; empty if it was.
    """

    scheduled: float
    sent: float
    latency: float
    status: int
    variant: str | None
    images: tuple[int, ...]
    logits: NDArray[np.float32] | None
    predicted: tuple[int, ...] | None = None
    cause: str = ""

    @property
    def answered(self) -> bool:
        """With an answer that can be read."""
        return self.status == 200 and not self.cause

    @property
    def refused(self) -> bool:
        """The service said no: it is overloaded, or the request is not to its liking."""
        return 400 <= self.status < 500 or self.status == 503


@dataclass(frozen=True, eq=False)
class Recording:
    """A load and what it was answered.

    Args:
        began: when, in seconds since the epoch, which is the clock of a service's switches too.
        records: one per request, in the order in which they were due.
        cpu_share: of the client: its processor's time over the load's; 1 is one core, all the time.
    """

    began: float
    records: list[Record]
    cpu_share: float = 0.0


def percentile(values: Sequence[float], q: float) -> float:
    """The q-th percentile (0…100); NaN of nothing."""
    return float(np.percentile(values, q)) if len(values) else math.nan


def attainment(records: Sequence[Record], objective_s: float) -> float:
    """Share of all requests, refused ones included, that were answered within the objective."""
    in_time = sum(r.answered and r.latency <= objective_s for r in records)
    return in_time / len(records) if records else math.nan


def accuracy(records: Sequence[Record], labels: NDArray[Any], objective_s: float = math.inf) -> float:
    """Share of all images asked about that were answered rightly, and within the objective."""
    asked = sum(len(r.images) for r in records)
    right = sum(
        sum(c == labels[i] for c, i in zip(r.predicted, r.images, strict=True))
        for r in records
        if r.predicted is not None and r.latency <= objective_s
    )
    return int(right) / asked if asked else math.nan


@dataclass(frozen=True)
class Summary:
    """A load in figures. Latencies in milliseconds, of the requests that were answered."""

    requests: int
    answered: int
    refused: int
    failed: int
    seconds: float
    p50_ms: float
    p99_ms: float
    attainment: float
    client_p99_late_ms: float
    variants: dict[str, int]


def summarise(records: Sequence[Record], objective_s: float) -> Summary:
    """A load in figures; percentiles and ``attainment`` are NaN where there is nothing to take them of.

    Args:
        objective_s: seconds from when a request was due to its answer.
    """
    latencies = [1e3 * r.latency for r in records if r.answered]
    variants: dict[str, int] = {}
    for record in records:
        if record.variant is not None:
            variants[record.variant] = variants.get(record.variant, 0) + 1
    refused = sum(r.refused for r in records)
    return Summary(
        requests=len(records),
        answered=len(latencies),
        refused=refused,
        failed=len(records) - len(latencies) - refused,
        seconds=max((r.scheduled + r.latency for r in records), default=0.0),
        p50_ms=percentile(latencies, 50),
        p99_ms=percentile(latencies, 99),
        attainment=attainment(records, objective_s),
        client_p99_late_ms=percentile([1e3 * r.sent for r in records], 99),
        variants=variants,
    )


@dataclass(frozen=True)
class Interval:
    """What happened to the requests due within one stretch of the load."""

    start: float
    requests: int
    p99_ms: float
    attainment: float
    variants: tuple[str, ...]


def timeline(records: Sequence[Record], objective_s: float, width_s: float = 1.0) -> list[Interval]:
    """The load in stretches of ``width_s``; ``variants`` in the order in which they first answered."""
    stretches: dict[int, list[Record]] = {}
    for record in sorted(records, key=lambda r: r.scheduled):
        stretches.setdefault(int(record.scheduled // width_s), []).append(record)
    return [
        Interval(
            start=index * width_s,
            requests=len(inside),
            p99_ms=percentile([1e3 * r.latency for r in inside if r.answered], 99),
            attainment=attainment(inside, objective_s),
            variants=tuple(dict.fromkeys(r.variant for r in inside if r.variant is not None)),
        )
        for index, inside in sorted(stretches.items())
    ]


def save(recording: Recording, path: Path) -> None:
    """An ``.npz`` file; every record must hold as many images."""
    records = recording.records
    answers = [r.logits for r in records if r.logits is not None]
    nothing = [-1] * (len(records[0].images) if records else 0)
    np.savez(
        path,
        allow_pickle=False,
        began=np.float64(recording.began),
        cpu_share=np.float64(recording.cpu_share),
        times=np.array([(r.scheduled, r.sent, r.latency) for r in records], np.float64).reshape(-1, 3),
        status=np.array([r.status for r in records], np.int64),
        variant=np.array([r.variant or "" for r in records], np.str_),
        cause=np.array([r.cause for r in records], np.str_),
        images=np.array([r.images for r in records], np.int64),
        predicted=np.array([r.predicted or nothing for r in records], np.int64),
        has_logits=np.array([r.logits is not None for r in records], np.bool_),
        logits=np.stack(answers) if answers else np.zeros((0, 0, 0), np.float32),
    )


def load(path: Path) -> Recording:
    """What ``save`` wrote."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    answers = iter(arrays["logits"])
    rows = zip(
        *(arrays[name].tolist() for name in ("times", "status", "variant", "images", "predicted", "cause")),
        arrays["has_logits"].tolist(),
        strict=True,
    )
    records = [
        Record(
            scheduled,
            sent,
            latency,
            status,
            variant or None,
            tuple(images),
            next(answers) if has_logits else None,
            None if predicted[0] < 0 else tuple(predicted),
            cause,
        )
        for (scheduled, sent, latency), status, variant, images, predicted, cause, has_logits in rows
    ]
    return Recording(float(arrays["began"]), records, float(arrays["cpu_share"]))
