"""What a replay came to, in figures. Pure functions of records."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.load_client import CAUSES, Fate
from jobs.records import Record, Recording, accuracy, attainment, percentile

NOT_SENT = CAUSES[Fate.NOT_SENT]
_BUSY = 0.9
"""Share of a core from which on latencies are the client's own as well."""


@dataclass(frozen=True)
class Latencies:
    """Milliseconds from when requests were due; NaN of nothing."""

    p50: float
    p90: float
    p99: float
    p99_9: float
    max: float

    @classmethod
    def of(cls, records: Iterable[Record]) -> Latencies:
        values = [1e3 * r.latency for r in records]
        return cls(*(percentile(values, q) for q in (50, 90, 99, 99.9, 100)))


@dataclass(frozen=True)
class VariantFigures:
    """Args: share: of the answers. accuracy: of the images in them; NaN without labels."""

    name: str
    answers: int
    share: float
    accuracy: float
    latency_ms: Latencies


@dataclass(frozen=True)
class Second:
    """What became of the requests due in one stretch of the load; `variants` counts answers."""

    start: float
    seconds: float
    offered: int
    answered: int
    in_time: int
    refused: int
    failed: int
    p50_ms: float
    p99_ms: float
    variants: Mapping[str, int]


@dataclass(frozen=True)
class ClientFigures:
    """The client's own part in it.

    Args:
        late_bound_ms: a request that leaves later than this after it was due is late.
        late_share: of all requests.
        cpu_share: its processor's time over the load's.
        not_sent: requests that were due while as many were in flight as may be.
        doubts: why the run is not to be trusted; none if it is.
    """

    late_bound_ms: float
    late_share: float
    late_p99_ms: float
    late_max_ms: float
    cpu_share: float
    not_sent: int
    doubts: tuple[str, ...]


@dataclass(frozen=True)
class Figures:
    """A replay in figures; NaN where there is nothing to take them of, or no labels.

    Args:
        seconds: that requests were due in.
        refused, failed: requests by cause. Refused is what the service answered with 4xx or 503.
        effective_accuracy: images answered rightly and in time, over all images asked about.
        slo_attainment: requests answered in time, over all.
        accuracy: of the images answered.
        offered_rps, answered_rps: over `seconds`.
        latency_ms: of what was answered. all_latency_ms: of refused and failed requests as well, until
            the refusal or failure; those that were not sent are left out.
        switches: changes of the variant from one answer to the next, by when they were answered.
    """

    seconds: float
    offered: int
    answered: int
    refused: Mapping[str, int]
    failed: Mapping[str, int]
    images: int
    effective_accuracy: float
    slo_attainment: float
    accuracy: float
    offered_rps: float
    answered_rps: float
    latency_ms: Latencies
    all_latency_ms: Latencies
    variants: tuple[VariantFigures, ...]
    switches: tuple[tuple[float, str, str], ...]
    client: ClientFigures
    timeline: tuple[Second, ...]


def figures(recording: Recording, labels: NDArray[np.int64] | None, slo_s: float, seconds: float) -> Figures:
    """All of them.

    Args:
        labels: of the images that the records name.
        slo_s: an answer later than this after its request was due is late.
        seconds: that requests were due in.
    """
    records = recording.records
    answered = [r for r in records if r.answered]
    refused = Counter(r.cause for r in records if r.refused)
    failed = Counter(r.cause for r in records if not r.answered and not r.refused)
    return Figures(
        seconds=seconds,
        offered=len(records),
        answered=len(answered),
        refused=dict(refused.most_common()),
        failed=dict(failed.most_common()),
        images=sum(len(r.images) for r in records),
        effective_accuracy=math.nan if labels is None else accuracy(records, labels, slo_s),
        slo_attainment=attainment(records, slo_s),
        accuracy=math.nan if labels is None else accuracy(answered, labels),
        offered_rps=len(records) / seconds,
        answered_rps=len(answered) / seconds,
        latency_ms=Latencies.of(answered),
        all_latency_ms=Latencies.of(r for r in records if r.cause != NOT_SENT),
        variants=_variants(answered, labels),
        switches=changes(answered),
        client=client_figures(recording, slo_s),
        timeline=timeline(records, slo_s, seconds),
    )


def _variants(answered: Sequence[Record], labels: NDArray[np.int64] | None) -> tuple[VariantFigures, ...]:
    by_name: dict[str, list[Record]] = defaultdict(list)
    for record in answered:
        by_name[record.variant or ""].append(record)
    return tuple(
        VariantFigures(
            name=name,
            answers=len(theirs),
            share=len(theirs) / len(answered),
            accuracy=math.nan if labels is None else accuracy(theirs, labels),
            latency_ms=Latencies.of(theirs),
        )
        for name, theirs in sorted(by_name.items(), key=lambda item: -len(item[1]))
    )


def changes(answered: Iterable[Record]) -> tuple[tuple[float, str, str], ...]:
    """(second, variant before, variant after), wherever an answer names another than the one before."""
    order = sorted((r.scheduled + r.latency, r.variant or "") for r in answered)
    return tuple(
        (when, before, after) for (_, before), (when, after) in itertools.pairwise(order) if before != after
    )


def late_bound_s(slo_s: float) -> float:
    """How late a request may leave: a tenth of the objective, at least 2 ms, which a clock of 1 ms costs."""
    return max(0.002, slo_s / 10)


def client_figures(recording: Recording, slo_s: float) -> ClientFigures:
    """How far the client itself is in the figures: they are not to be trusted if it was the bottleneck."""
    bound = 1e3 * late_bound_s(slo_s)
    late = [1e3 * r.sent for r in recording.records]
    p99 = percentile(late, 99)
    not_sent = sum(r.cause == NOT_SENT for r in recording.records)
    doubts = []
    if p99 > bound:
        doubts.append(
            f"the client sent more than one request in a hundred later than {bound:.3g} ms after it was due "
            f"(p99 {p99:.3g} ms): it was short of processor; run it on another machine, or lower the rate"
        )
    if not_sent:
        doubts.append(
            f"the client did not send {not_sent} requests, as many being in flight as may: they count as "
            "failed; give a higher --max-in-flight or a lower --timeout-s"
        )
    if recording.cpu_share > _BUSY:
        doubts.append(
            f"the client took {recording.cpu_share:.0%} of a core, so answers waited for it: lower the rate, "
            "or share it among several clients"
        )
    return ClientFigures(
        late_bound_ms=bound,
        late_share=sum(value > bound for value in late) / len(late) if late else math.nan,
        late_p99_ms=p99,
        late_max_ms=max(late, default=math.nan),
        cpu_share=recording.cpu_share,
        not_sent=not_sent,
        doubts=tuple(doubts),
    )


def timeline(
    records: Sequence[Record], slo_s: float, seconds: float, width_s: float = 1.0
) -> tuple[Second, ...]:
    """The load in stretches of ``width_s``, those without requests as well; the last may be shorter."""
    stretches: list[list[Record]] = [[] for _ in range(max(1, math.ceil(round(seconds / width_s, 9))))]
    for record in records:
        stretches[min(int(record.scheduled // width_s), len(stretches) - 1)].append(record)
    told = []
    for index, inside in enumerate(stretches):
        answered = [r for r in inside if r.answered]
        latencies = [1e3 * r.latency for r in answered]
        refused = sum(r.refused for r in inside)
        told.append(
            Second(
                start=index * width_s,
                seconds=min(width_s, seconds - index * width_s),
                offered=len(inside),
                answered=len(answered),
                in_time=sum(r.latency <= slo_s for r in answered),
                refused=refused,
                failed=len(inside) - len(answered) - refused,
                p50_ms=percentile(latencies, 50),
                p99_ms=percentile(latencies, 99),
                variants=dict(Counter(r.variant or "" for r in answered)),
            )
        )
    return tuple(told)


def service_switches(
    before: Mapping[str, Any] | None, after: Mapping[str, Any] | None, began: float
) -> list[dict[str, Any]]:
    """The switches that ``/status`` tells of after the load and not before it, with their ``second`` of it.

    Args:
        before, after: what ``/status`` said; None if it said nothing.
        began: when the load did, by this machine's clock; the service's may differ.
    """
    known = [_identity(one) for one in _switches(before)]
    return [
        {"second": datetime.fromisoformat(one["at"]).timestamp() - began, **one}
        for one in _switches(after)
        if _identity(one) not in known
    ]


def _switches(status: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    told = (status or {}).get("switches")
    return [one for one in told if _is_switch(one)] if isinstance(told, list) else []


def _is_switch(told: Any) -> bool:
    try:
        datetime.fromisoformat(told["at"])
    except (TypeError, KeyError, ValueError):
        return False
    return True


def _identity(switch: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(switch.get(key) for key in ("at", "from", "to"))


def to_json(figures: Figures) -> dict[str, Any]:
    """Plain data for ``json.dumps``: JSON has no NaN, so what is not known is null."""
    return {key: _plain(value) for key, value in asdict(figures).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
