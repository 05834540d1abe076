"""Variants as a table for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console as Terminal
from rich.table import Table

from shifter.values import Discarded, Profile

# Rich needs a width; no table is so wide.
_WIDE = 10_000

_LEGEND = """\
non-zero    parameters that are not zero, which is what a compression ratio counts
structural  parameters left to store and multiply, batch norm folded in. Only whole filters can go, and
            pruning weight by weight empties few of them until the ratio is high: so far, sizes are equal
p50, p99    latency of one image on one core; alternating: p50 when each call is another variant's turn
error       of the answers in float32, relative to the sparse model's; in float64 at most {float64:.0e}"""


def variants_text(profiles: Mapping[str, Profile], discarded: Sequence[Discarded] = ()) -> str:
    """The table of variants, and what its columns mean."""
    float64 = max(profile.exactness.float64 for profile in profiles.values())
    return f"{render(variants_table(profiles, discarded))}\n{_LEGEND.format(float64=float64)}"


def summary_text(told: Mapping[str, Any]) -> str:
    """The same of a run's summary (`jobs.publish.summary`)."""
    profiles = {v["name"]: Profile.from_json(v["profile"]) for v in told["variants"]}
    discarded = [Discarded(v["name"], **v["discarded"]) for v in told["variants"] if v["discarded"]]
    return variants_text(profiles, discarded)


def variants_table(profiles: Mapping[str, Profile], discarded: Sequence[Discarded] = ()) -> Table:
    """A row per variant, in the order given; what was discarded says what beats it."""
    reasons = {d.name: d.reason for d in discarded}
    table = Table(header_style="bold")
    table.add_column("variant")
    for heading in (
        "non-zero",
        "structural",
        "size (kB)",
        "validation",
        "test",
        "p50 (ms)",
        "p99 (ms)",
        "alternating (ms)",
        "error (float32)",
    ):
        table.add_column(heading, justify="right")
    if reasons:
        table.add_column("selection")
    for name, profile in profiles.items():
        alternating = profile.alternating_latency
        cells = [
            name,
            f"{profile.nonzero_parameters:,}",
            f"{profile.structural_parameters:,}",
            f"{profile.tensor_bytes / 1000:,.1f}",
            f"{profile.validation_accuracy:.2%}",
            f"{profile.test_accuracy:.2%}",
            f"{profile.latency.p50_ms:.3f}",
            f"{profile.latency.p99_ms:.3f}",
            f"{alternating.p50_ms:.3f}" if alternating else "–",
            f"{profile.exactness.float32:.1e}",
        ]
        if reasons:
            cells.append(f"discarded: {reasons[name]}" if name in reasons else "kept")
        table.add_row(*cells, style="dim" if name in reasons else None)
    return table


def stored_text(variants: Sequence[Mapping[str, Any]]) -> str:
    """How each variant of a package is stored, as :func:`jobs.inspect.inspect` tells it."""
    codings = sorted({coding for variant in variants for coding in variant["codings"]})
    table = Table(header_style="bold")
    table.add_column("variant")
    for heading in ("deflated (kB)", "inflated (kB)", "share", *codings):
        table.add_column(heading, justify="right")
    for variant in variants:
        deflated, inflated = variant["deflated_bytes"], variant["inflated_bytes"]
        stored = {coding: sums["deflated_bytes"] for coding, sums in variant["codings"].items()}
        table.add_row(
            variant["name"],
            f"{deflated / 1000:,.1f}",
            f"{inflated / 1000:,.1f}",
            f"{deflated / inflated:.1%}",
            *(f"{stored.get(coding, 0) / deflated:.1%}" for coding in codings),
        )
    return f"{render(table)}\n{', '.join(codings)}: codings of tensors, by their share of what is deflated"


def printable(text: str) -> str:
    """A package may come from anywhere, and what moves a terminal's cursor may be in its texts."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


def render(table: Table) -> str:
    """The table as text for stdout: as wide as the terminal is, or as it needs where there is none."""
    terminal = Terminal()
    width = None if terminal.is_terminal else _WIDE
    with (console := Terminal(width=width)).capture() as capture:
        console.print(table)
    return capture.get().rstrip("\n")
