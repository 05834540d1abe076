"""What the demonstration ends with: two services under the same load, told as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rich.table import Table

from jobs.records import Recording, Summary, timeline
from jobs.table import render, summary_text

ENOUGH = 0.95
"""Share of all requests that the switching service has to answer within the objective."""
MISSED = 0.90
"""The largest variant, held fixed, has to stay below: or the load proves nothing."""


@dataclass(frozen=True)
class Trial:
    """One service under the load."""

    name: str
    recording: Recording
    summary: Summary
    status: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What there is to show.

    Args:
        told: the run, as `jobs.publish.summary` has it.
        trials: of the largest variant, held fixed, and of the switching service.
        checked: answers that were recomputed.
    """

    told: dict[str, Any]
    trials: list[Trial]
    objective_s: float
    checked: int

    def text(self) -> str:
        """All of it, as tables and verdicts."""
        told, (fixed, switching) = self.told, self.trials
        return "\n".join(
            [
                "",
                "The variants",
                summary_text(told),
                "",
                f"The same load on both services, objective {1e3 * self.objective_s:.0f} ms",
                render(_comparison(self.trials)),
                "",
                "The switching service, second by second of the load",
                render(_timeline(switching, self.objective_s)),
                "",
                "Its switches, on the same clock: before 0 it was idle. Neighbours in size are inflated",
                "ahead, so that switching to one takes no time.",
                render(_switches(switching)),
                "",
                f"{self.checked:,} answers were recomputed with the variants that they name, and are theirs.",
                f"Under the load, {fixed.name} is in time for {fixed.summary.attainment:.1%} of the "
                f"requests (below {MISSED:.0%} was wanted), the switching service for "
                f"{switching.summary.attainment:.1%} (at least {ENOUGH:.0%} was wanted).",
                f"portfolio {told['store']}/{told['portfolio']}",
                f"report    {told['store']}/{told['report']}",
            ]
        )


def _comparison(trials: Sequence[Trial]) -> Table:
    table = Table(header_style="bold")
    table.add_column("service")
    for heading in ("requests", "answered", "refused", "p50 (ms)", "p99 (ms)", "in time"):
        table.add_column(heading, justify="right")
    for one in trials:
        s = one.summary
        table.add_row(
            one.name,
            f"{s.requests:,}",
            f"{s.answered:,}",
            f"{s.refused:,}",
            f"{s.p50_ms:.0f}",
            f"{s.p99_ms:.0f}",
            f"{s.attainment:.1%}",
        )
    return table


def _timeline(one: Trial, objective_s: float) -> Table:
    table = Table(header_style="bold")
    for heading in ("second", "requests", "p99 (ms)", "in time"):
        table.add_column(heading, justify="right")
    table.add_column("variants")
    for interval in timeline(one.recording.records, objective_s):
        table.add_row(
            f"{interval.start:.0f}",
            str(interval.requests),
            f"{interval.p99_ms:.0f}",
            f"{interval.attainment:.0%}",
            " → ".join(interval.variants),
        )
    return table


def _switches(one: Trial) -> Table:
    table = Table(header_style="bold")
    table.add_column("second", justify="right")
    table.add_column("switch")
    table.add_column("took (ms)", justify="right")
    table.add_column("why")
    switches = one.status["switches"]
    started = switches[0]["from"] if switches else one.status["active"]
    table.add_row("", started, "", "the start: the variant of median size, nothing being known of the load")
    for switch in switches:
        table.add_row(
            f"{datetime.fromisoformat(switch['at']).timestamp() - one.recording.began:.1f}",
            f"{switch['from']} → {switch['to']}",
            f"{switch['ms']:.1f}",
            switch["reason"],
        )
    return table
