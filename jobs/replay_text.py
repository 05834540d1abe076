"""A replay told to people: tables, and a timeline as text."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from jobs.replay_figures import Figures, Latencies, Second
from jobs.table import printable, render

_ROWS = 30
_BAR = 20
_SHOWN_SWITCHES = 20


def text(figures: Figures, slo_s: float, switches: Sequence[Mapping[str, Any]]) -> str:
    """All of it. Args: switches: as the service tells them (`service_switches`)."""
    parts = [
        render(_summary(figures, slo_s)),
        render(_latencies(figures)),
    ]
    if figures.variants:
        parts.append(render(_variants(figures)))
    parts.append(render(_timeline(figures.timeline)))
    if len(figures.timeline) > _ROWS:
        parts.append("a row's percentiles are those of its worst second")
    parts.append(_switches_text(figures, switches))
    parts += [f"NOT TO BE TRUSTED: {doubt}" for doubt in figures.client.doubts]
    return "\n".join(parts)


def _summary(figures: Figures, slo_s: float) -> Table:
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    client = figures.client
    rows = [
        ("offered", f"{figures.offered:,}", f"{figures.offered_rps:,.1f}/s for {figures.seconds:,.4g} s"),
        ("answered", f"{figures.answered:,}", f"{figures.answered_rps:,.1f}/s"),
        *(("refused", f"{count:,}", printable(cause)) for cause, count in figures.refused.items()),
        *(("failed", f"{count:,}", printable(cause)) for cause, count in figures.failed.items()),
        ("effective accuracy", percent(figures.effective_accuracy), "right and in time, of all images asked"),
        ("SLO attainment", percent(figures.slo_attainment), f"answered within {1e3 * slo_s:g} ms"),
        ("accuracy", percent(figures.accuracy), "of the images answered"),
        (
            "client late",
            percent(client.late_share),
            f"by more than {client.late_bound_ms:.3g} ms; p99 {milliseconds(client.late_p99_ms)} ms, "
            f"{client.cpu_share:.0%} of a core",
        ),
    ]  # fmt: skip
    for row in rows:
        table.add_row(*row)
    return table


def _latencies(figures: Figures) -> Table:
    table = Table(header_style="bold")
    table.add_column("latency (ms)")
    for heading in ("p50", "p90", "p99", "p99.9", "max"):
        table.add_column(heading, justify="right")
    table.add_row("of the answered", *_cells(figures.latency_ms))
    table.add_row("of all, until answered, refused or failed", *_cells(figures.all_latency_ms))
    return table


def _cells(latencies: Latencies) -> list[str]:
    values = (latencies.p50, latencies.p90, latencies.p99, latencies.p99_9, latencies.max)
    return [milliseconds(value) for value in values]


def _variants(figures: Figures) -> Table:
    table = Table(header_style="bold")
    table.add_column("variant")
    for heading in ("answers", "share", "accuracy", "p50 (ms)", "p99 (ms)"):
        table.add_column(heading, justify="right")
    for one in figures.variants:
        table.add_row(
            printable(one.name) or "not named",
            f"{one.answers:,}",
            percent(one.share),
            percent(one.accuracy),
            milliseconds(one.latency_ms.p50),
            milliseconds(one.latency_ms.p99),
        )
    return table


def _timeline(timeline: Sequence[Second]) -> Table:
    table = Table(header_style="bold")
    for heading in ("second", "offered/s", "answered/s", "refused", "failed", "p50 (ms)", "p99 (ms)"):
        table.add_column(heading, justify="right")
    for heading in ("in time", "answered (█) of offered (░)"):
        table.add_column(heading)
    table.add_column("variants")
    rows = merged(timeline, _ROWS)
    highest = max((row.offered / row.seconds for row in rows), default=0.0)
    for row in rows:
        table.add_row(
            f"{row.start:.0f}",
            f"{row.offered / row.seconds:,.1f}",
            f"{row.answered / row.seconds:,.1f}",
            f"{row.refused:,}",
            f"{row.failed:,}",
            milliseconds(row.p50_ms),
            milliseconds(row.p99_ms),
            percent(row.in_time / row.offered if row.offered else math.nan),
            bar(row, highest),
            " ".join(_share(name, count, row.answered) for name, count in _by_share(row)),
        )
    return table


def _by_share(row: Second) -> list[tuple[str, int]]:
    return sorted(row.variants.items(), key=lambda item: -item[1])


def _share(name: str, count: int, answered: int) -> str:
    shown = printable(name) or "?"
    return shown if count == answered else f"{shown} {count / answered:.0%}"


def bar(row: Second, highest: float) -> str:
    """Requests a second, of the highest rate: what was answered, and what else was offered."""
    if not highest:
        return ""
    offered = math.ceil(_BAR * row.offered / row.seconds / highest - 1e-9)
    answered = round(offered * row.answered / row.offered) if row.offered else 0
    return "█" * answered + "░" * (offered - answered)


def merged(timeline: Sequence[Second], rows: int) -> list[Second]:
    """The timeline in at most so many rows: neighbours added up; percentiles are those of the worst."""
    step = max(1, math.ceil(len(timeline) / rows))
    return [_sum(timeline[first : first + step]) for first in range(0, len(timeline), step)]


def _sum(part: Sequence[Second]) -> Second:
    variants: Counter[str] = Counter()
    for one in part:
        variants.update(one.variants)
    return Second(
        start=part[0].start,
        seconds=sum(one.seconds for one in part),
        offered=sum(one.offered for one in part),
        answered=sum(one.answered for one in part),
        in_time=sum(one.in_time for one in part),
        refused=sum(one.refused for one in part),
        failed=sum(one.failed for one in part),
        p50_ms=_worst([one.p50_ms for one in part]),
        p99_ms=_worst([one.p99_ms for one in part]),
        variants=dict(variants),
    )


def _worst(values: Sequence[float]) -> float:
    return max((value for value in values if not math.isnan(value)), default=math.nan)


def _switches_text(figures: Figures, switches: Sequence[Mapping[str, Any]]) -> str:
    seen = len(figures.switches)
    if not switches:
        return f"the variant changed {seen} times from one answer to the next; the service tells of no switch"
    table = Table(header_style="bold")
    table.add_column("second", justify="right")
    for heading in ("switch", "why"):
        table.add_column(heading)
    for one in switches[:_SHOWN_SWITCHES]:
        failed = f" — failed: {one['error']}" if one.get("error") else ""
        table.add_row(
            f"{one['second']:.1f}",
            printable(f"{one.get('from')} → {one.get('to')}"),
            printable(f"{one.get('reason')}{failed}"),
        )
    more = f", the first {_SHOWN_SWITCHES} here" if len(switches) > _SHOWN_SWITCHES else ""
    return (
        f"{render(table)}\n{len(switches)} switches as the service tells{more}; the variant changed {seen} "
        "times from one answer to the next"
    )


def milliseconds(value: float) -> str:
    """Three figures or so; a dash for nothing."""
    if math.isnan(value):
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def percent(share: float) -> str:
    """A percentage with one decimal; a dash for nothing."""
    return "–" if math.isnan(share) else f"{share:.1%}"
