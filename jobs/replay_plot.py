"""A replay as one HTML page that works offline: load, latency and variants over time (extra ``report``)."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from jobs.replay_figures import Figures
from jobs.replay_text import milliseconds, percent
from shifter.report.plot import script_json

# All legible on white and on near-black.
_OFFERED, _ANSWERED, _REFUSED, _FAILED = "#9a9a9a", "#2f7dd1", "#d98a1f", "#d1453b"
_P50, _P99, _SLO = "#2f7dd1", "#8a5fc7", "#d1453b"
_VARIANTS = ("#2f7dd1", "#35a06b", "#d98a1f", "#8a5fc7", "#d1453b", "#3aa6b9", "#b36a9e", "#8c8c4a")


def render(title: str, figures: Figures, slo_s: float, switches: Sequence[Mapping[str, Any]]) -> str:
    """The page as text, about 5 MB, most of which is plotly.js. Whatever comes from a service is escaped."""
    environment = Environment(
        loader=PackageLoader("jobs", package_path=""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("replay.html.j2").render(
        title=title,
        doubts=figures.client.doubts,
        rows=_rows(figures, slo_s, switches),
        plot=script_json(json.loads(_plot(figures, slo_s, switches).to_json())),
        plotly_js=get_plotlyjs(),
    )


def _rows(figures: Figures, slo_s: float, switches: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    latency, worst = figures.latency_ms, figures.all_latency_ms
    return [
        ("offered", f"{figures.offered:,}, {figures.offered_rps:,.1f}/s for {figures.seconds:,.4g} s"),
        ("answered", f"{figures.answered:,}, {figures.answered_rps:,.1f}/s"),
        *((f"refused: {cause}", f"{count:,}") for cause, count in figures.refused.items()),
        *((f"failed: {cause}", f"{count:,}") for cause, count in figures.failed.items()),
        ("effective accuracy: right and in time, of all images asked", percent(figures.effective_accuracy)),
        (f"SLO attainment: answered within {1e3 * slo_s:g} ms", percent(figures.slo_attainment)),
        ("accuracy of the images answered", percent(figures.accuracy)),
        ("latency of the answered, p50 / p99 / p99.9", _latencies(latency.p50, latency.p99, latency.p99_9)),
        ("latency of all", _latencies(worst.p50, worst.p99, worst.p99_9)),
        ("switches", f"{len(switches)} as the service tells"),
    ]  # fmt: skip


def _latencies(*values: float) -> str:
    return f"{' / '.join(milliseconds(value) for value in values)} ms"


def _plot(figures: Figures, slo_s: float, switches: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Three panels on one axis of seconds; colours of text and grid are the page's."""
    timeline = figures.timeline
    seconds = [one.start for one in timeline]
    figure = make_subplots(rows=3, shared_xaxes=True, vertical_spacing=0.05, row_heights=[0.36, 0.36, 0.28])
    for name, colour, counts in (
        ("offered", _OFFERED, [one.offered for one in timeline]),
        ("answered", _ANSWERED, [one.answered for one in timeline]),
        ("refused", _REFUSED, [one.refused for one in timeline]),
        ("failed", _FAILED, [one.failed for one in timeline]),
    ):
        rates = [count / one.seconds for count, one in zip(counts, timeline, strict=True)]
        figure.add_scatter(row=1, col=1, x=seconds, y=rates, name=name, line={"color": colour, "shape": "hv"})
    for name, colour, values in (
        ("p50", _P50, [one.p50_ms for one in timeline]),
        ("p99", _P99, [one.p99_ms for one in timeline]),
    ):
        known = [None if math.isnan(value) else value for value in values]
        figure.add_scatter(row=2, col=1, x=seconds, y=known, name=name, line={"color": colour, "shape": "hv"})
    objective = {"color": _SLO, "dash": "dash", "width": 1}
    ends = [0.0, figures.seconds]
    figure.add_scatter(
        row=2, col=1, x=ends, y=[1e3 * slo_s] * 2, name="objective", mode="lines", line=objective
    )
    for number, variant in enumerate(figures.variants):
        shares = [
            100 * one.variants.get(variant.name, 0) / one.answered if one.answered else 0 for one in timeline
        ]
        figure.add_bar(
            row=3,
            col=1,
            x=[one.start + one.seconds / 2 for one in timeline],
            y=shares,
            width=[one.seconds for one in timeline],
            name=html.escape(variant.name) or "not named",
            marker={"color": _VARIANTS[number % len(_VARIANTS)], "line": {"width": 0}},
        )
    inside = [one for one in switches if 0 <= one["second"] <= figures.seconds]
    figure.add_scatter(
        row=3,
        col=1,
        x=[one["second"] for one in inside],
        y=[103.0] * len(inside),
        mode="markers",
        name="switch",
        hovertext=[
            html.escape(f"{one.get('from')} → {one.get('to')}: {one.get('reason')}") for one in inside
        ],
        hoverinfo="text",
        marker={"symbol": "triangle-down", "size": 8, "color": _OFFERED},
    )
    figure.update_yaxes(title="requests/s", rangemode="tozero", row=1)
    figure.update_yaxes(title="latency (ms)", type="log", row=2)
    figure.update_yaxes(title="answers (%)", range=[0, 108], row=3)
    figure.update_xaxes(title="second", row=3)
    figure.update_layout(
        template="none",
        height=820,
        barmode="stack",
        hovermode="x",
        margin={"l": 64, "r": 16, "t": 16, "b": 56},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
    )
    return go.Figure(figure)
