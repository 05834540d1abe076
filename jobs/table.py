"""Variants as a table for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console as Terminal
from rich.table import Table

from shifter.values import Discarded, Profile


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
        "error",
    ):
        table.add_column(heading, justify="right")
    if reasons:
        table.add_column("selection")
    for name, profile in profiles.items():
        cells = [
            name,
            f"{profile.nonzero_parameters:,}",
            f"{profile.structural_parameters:,}",
            f"{profile.tensor_bytes / 1000:,.1f}",
            f"{profile.validation_accuracy:.2%}",
            f"{profile.test_accuracy:.2%}",
            f"{profile.latency.p50_ms:.3f}",
            f"{profile.latency.p99_ms:.3f}",
            f"{profile.exactness.float32:.1e}",
        ]
        if reasons:
            cells.append(f"discarded: {reasons[name]}" if name in reasons else "kept")
        table.add_row(*cells, style="dim" if name in reasons else None)
    return table


def render(table: Table) -> str:
    """The table as text: as wide as the terminal is, or as it needs where there is none."""
    terminal = Terminal()
    width = None if terminal.is_terminal else 200
    with (console := Terminal(width=width)).capture() as capture:
        console.print(table)
    return capture.get().rstrip("\n")
