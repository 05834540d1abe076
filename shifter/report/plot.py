"""The Pareto plot: accuracy against latency and against structural size."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from shifter.report.rows import Row, milliseconds, quantity, share

KEPT, DISCARDED = "#2f7dd1", "#9a9a9a"  # both legible on white and on near-black


def pareto_plot(rows: Sequence[Row]) -> str:
    """A plotly figure as JSON that may stand inside a ``<script>`` element.

    Left: validation accuracy (percent) against the median latency of one image, with its 95 %
    interval. Right: against structural parameters, on a logarithmic axis. Colours of text and
    grid are absent: the page sets them for its light and its dark theme.
    """
    figure = make_subplots(cols=2, shared_yaxes=True, horizontal_spacing=0.04)
    groups = (("discarded", DISCARDED, "x-thin-open", False), ("kept", KEPT, "circle", True))
    for label, colour, symbol, is_kept in groups:
        chosen = [row for row in rows if row.is_kept is is_kept]
        if not chosen:
            continue
        shared = {
            "y": [100 * row.profile.validation_accuracy for row in chosen],
            "text": [html.escape(row.name) for row in chosen],
            "hovertext": [_hover(row) for row in chosen],
            "hoverinfo": "text",
            "mode": "markers+text",
            "textposition": "top center",
            "name": label,
            "legendgroup": label,
            "marker": {"color": colour, "symbol": symbol, "size": 10, "line": {"width": 2, "color": colour}},
        }
        latencies = [row.profile.latency for row in chosen]
        interval = {
            "type": "data",
            "symmetric": False,
            "array": [max(0.0, t.p50_high_ms - t.p50_ms) for t in latencies],
            "arrayminus": [max(0.0, t.p50_ms - t.p50_low_ms) for t in latencies],
            "thickness": 1,
        }
        figure.add_scatter(row=1, col=1, x=[t.p50_ms for t in latencies], error_x=interval, **shared)
        sizes = [row.profile.structural_parameters for row in chosen]
        figure.add_scatter(row=1, col=2, x=sizes, showlegend=False, **shared)
    figure.update_xaxes(title="latency of one image, p50 (ms)", rangemode="tozero", col=1)
    figure.update_xaxes(title="structural parameters", type="log", dtick="D2", col=2)
    figure.update_yaxes(title="validation accuracy (%)", col=1)
    figure.update_layout(
        template="none",
        height=440,
        margin={"l": 64, "r": 16, "t": 40, "b": 56},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
    )
    return script_json(json.loads(go.Figure(figure).to_json()))


def script_json(value: Any) -> str:
    """JSON in which nothing can close the ``<script>`` element around it."""
    text = json.dumps(value, sort_keys=True, allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _hover(row: Row) -> str:
    profile = row.profile
    lines = [
        f"{row.name}: {'kept' if row.discarded is None else f'discarded, {row.discarded.reason}'}",
        f"validation accuracy {share(profile.validation_accuracy)}",
        f"p50 {milliseconds(profile.latency.p50_ms)} ms, p99 {milliseconds(profile.latency.p99_ms)} ms",
        f"{quantity(profile.structural_parameters)} structural parameters, "
        f"{quantity(profile.nonzero_parameters)} non-zero",
    ]
    return "<br>".join(html.escape(line) for line in lines)  # plotly reads a little HTML in labels
