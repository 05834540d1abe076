"""A calibration as text for people: what it changes, beside the profiles."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from rich.table import Table

from jobs.table import printable, render
from shifter.portfolio import Portfolio
from shifter.switching.calibration import Calibration
from shifter.values import Latency, Profile

_LEGEND = """\
profile, here  median of one image, as the profile says and as measured here, with {threads}
alternating    the same, when the call before was another variant's, as after a switch
cold switch    to inflate it, build its engine and warm that up, where it was not inflated ahead
memory         what its engine adds to a process"""

_VAGUE = 0.25
"""Half the width of an interval, relative to its median, from which on it is worth a warning."""


def calibration_text(
    portfolio: Portfolio,
    calibration: Calibration,
    refused: Mapping[str, str],
    written: Path,
    *,
    found_by_services: bool,
) -> str:
    """Facts, a row per variant, what the columns mean, and what comes of it."""
    node = calibration.node
    facts = {
        "portfolio": f"{portfolio.model}, sha256 {portfolio.digest}",
        "profiled on": portfolio.manifest.provenance.get(
            "device", "a machine that the package does not name"
        ),
        "this node": f"{node}, {node.engine}",
        "written": str(written),
    }
    width = max(map(len, facts))
    legend = _LEGEND.format(threads=_threads(calibration.threads[0]))
    return "\n".join(
        [
            *(printable(f"{key:<{width}}  {value}") for key, value in facts.items()),
            render(_table(portfolio, calibration)),
            legend,
            "",
            *(printable(f"{name} does not run here: {why}") for name, why in refused.items()),
            _conclusion(portfolio, calibration, found_by_services),
        ]
    )


def _table(portfolio: Portfolio, calibration: Calibration) -> Table:
    table = Table(header_style="bold")
    table.add_column("variant")
    several = calibration.threads[1:]
    largest = calibration.variants[0].times[0].hot[-1].images
    headings = ["profile (ms)", "here (ms)", "95 % interval", "here / profile", "alternating (ms)"]
    if largest > 1:
        headings.append(f"{largest} images (ms)")
    headings += [f"{threads} threads (ms)" for threads in several]
    for heading in [*headings, "cold switch (ms)", "memory (MB)"]:
        table.add_column(heading, justify="right")
    for variant in calibration.variants:
        profile = portfolio.profiles[variant.name]
        times, *others = variant.times
        here, profiled = times.hot[0].latency, _profiled(profile, times.threads)
        cells = [
            f"{profiled.p50_ms:.3f}" if profiled else "–",
            f"{here.p50_ms:.3f}",
            f"{here.p50_low_ms:.3f}–{here.p50_high_ms:.3f}",
            f"{here.p50_ms / profiled.p50_ms:.2f}" if profiled else "–",
            f"{times.alternating.p50_ms:.3f}" if times.alternating else "–",
        ]
        if largest > 1:
            cells.append(f"{times.hot[-1].latency.p50_ms:.3f}")
        cells += [f"{other.hot[0].latency.p50_ms:.3f}" for other in others]
        table.add_row(
            variant.name, *cells, f"{variant.switch.p50_ms:.1f}", f"{variant.memory_bytes / 1e6:.1f}"
        )
    return table


def _conclusion(portfolio: Portfolio, calibration: Calibration, found_by_services: bool) -> str:
    told = []
    ratios = []
    for variant in calibration.variants:
        times = variant.times[0]
        if profiled := _profiled(portfolio.profiles[variant.name], times.threads):
            ratios.append(times.hot[0].latency.p50_ms / profiled.p50_ms)
    if ratios:
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        spread = f", from {min(ratios):.2f} to {max(ratios):.2f} by variant" if len(ratios) > 1 else ""
        told.append(
            f"With {_threads(calibration.threads[0])} this node takes {mean:.2f} times as long as the "
            f"profiles say{spread}."
        )
    if vague := _vaguest(calibration):
        told.append(vague)
    if found_by_services:
        threads = " or ".join(map(str, calibration.threads))
        told.append(f"Services of this package with threads: {threads} that start on this node now use it.")
    else:
        told.append("Services do not look there for it, but where it is written without --out.")
    return "\n".join(told)


def _vaguest(calibration: Calibration) -> str | None:
    """The median that is known worst, if that is too badly."""
    measured = [
        (variant, times, at)
        for variant in calibration.variants
        for times in variant.times
        for at in times.hot
    ]
    variant, times, at = max(measured, key=lambda one: _scatter(one[2].latency))
    if (scatter := _scatter(at.latency)) <= _VAGUE:
        return None
    images = "one image" if at.images == 1 else f"{at.images} images"
    return (
        f"{variant.name} with {_threads(times.threads)} and {images} is only known to "
        f"± {scatter:.0%}: calibrate again while less else runs, or with more --samples."
    )


def _scatter(latency: Latency) -> float:
    return (latency.p50_high_ms - latency.p50_low_ms) / (2 * latency.p50_ms)


def _profiled(profile: Profile, threads: int) -> Latency | None:
    """What the profile says of so many threads, if it does."""
    if threads == 1:
        return profile.latency
    return profile.all_cores_latency if threads == profile.cores else None


def _threads(number: int) -> str:
    return "one thread" if number == 1 else f"{number} threads"
