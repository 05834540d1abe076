"""Policies judged on a real trace of requests, in the simulator. ``benchmarks/README.md`` has the figures.

::

    python -m benchmarks.switching_trace policies --trace TRACE.csv --portfolio portfolio.zip
    python -m benchmarks.switching_trace validate --trace TRACE.csv --portfolio portfolio.zip
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from benchmarks.comparison import Figure, Row, save
from benchmarks.service_samples import Measured, measure, stated, taking
from shifter.portfolio import Portfolio
from shifter.switching.ensemble import NAME, voting
from shifter.switching.figures import Figures
from shifter.switching.oracle import oracle
from shifter.switching.policies import Fixed, Policy, Slo, Trend
from shifter.switching.samples import ServiceSamples
from shifter.switching.simulator import SwitchCosts, simulate
from shifter.switching.trace import read_trace, scale_to_peak
from shifter.values import Profile

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)
Trace = Annotated[Path, typer.Option(help="A CSV file of second,requests.")]
Package = Annotated[
    Path | None,
    typer.Option("--portfolio", help="A package; its variants are timed here. By default stated numbers."),
]
Objective = Annotated[
    float | None, typer.Option(help="By default ten times the largest variant's mean service time.")
]
Peak = Annotated[
    float, typer.Option(help="The peak that is scaled is this quantile of the trace's seconds; 1: the most.")
]
Out = Annotated[Path, typer.Option(help="Rows are added to this file, as JSON lines.")]
RESULTS = Path("benchmarks/results/switching.jsonl")
OVERLOAD = 1.5
"""The peak, in what the largest variant carries."""


def finish(row: Row, out: Path) -> None:
    """Prints and saves it; where files lie is no part of what was measured."""
    print(row, flush=True)
    words = [
        Path(word).name if before in ("--trace", "--portfolio", "--out") else word
        for before, word in pairwise(["", *sys.argv[1:]])
    ]
    save(row, out, " ".join(["python", "-m", "benchmarks.switching_trace", *words]))


def the_policy(name: str, objective: float) -> Policy:
    """``slo`` or ``trend``, with its defaults."""
    known: dict[str, Callable[[], Policy]] = {"slo": lambda: Slo(objective), "trend": Trend}
    if name not in known:
        raise typer.BadParameter(f"there is no policy {name!r}: choose of {', '.join(known)}")
    return known[name]()


def subject(package: Path | None) -> tuple[str, dict[str, Profile], Measured]:
    """Name, profiles and service times: of a package, measured here; or stated."""
    if package is None:
        return "stated portfolio", *stated()
    portfolio = Portfolio.open(package.read_bytes())
    return portfolio.model, dict(portfolio.profiles), measure(portfolio)


@dataclass(frozen=True)
class Strategy:
    """One way to serve a trace: right answers per block (mean over seeds), and the figures of each seed."""

    right: NDArray[np.float64]
    figures: tuple[Figures, ...] = ()


@app.command()
def policies(
    trace: Trace,
    package: Package = None,
    names: Annotated[
        str, typer.Option("--policies", help="Comma-separated; the first one is judged.")
    ] = "slo,trend",
    objective_ms: Objective = None,
    stretch: Annotated[
        float, typer.Option(help="Service times are so many times those measured: a node so much slower.")
    ] = 1.0,
    medians: Annotated[
        bool, typer.Option("--medians", help="Each call takes the median: for a machine with other work.")
    ] = False,
    peak_quantile: Peak = 1.0,
    seeds: Annotated[int, typer.Option(help="Of arrivals within their seconds and of service times.")] = 3,
    block_s: Annotated[int, typer.Option(help="Seconds that the interval resamples as one.")] = 60,
    out: Out = RESULTS,
) -> None:
    """Effective accuracy (E) of policies, of every fixed variant, of ensembles and of oracles."""
    called, profiles, measured = subject(package)
    measured = (measured.medians() if medians else measured).stretched(stretch)
    profiles = {name: taking(profile, measured.hot[name].mean) for name, profile in profiles.items()}
    largest = list(profiles)[-1]
    objective = objective_ms / 1e3 if objective_ms else 10 * measured.hot[largest].mean
    wanted = {name: the_policy(name, objective) for name in names.split(",")}
    requests = scale_to_peak(read_trace(trace), OVERLOAD / measured.hot[largest].mean, quantile=peak_quantile)
    setting = _Setting(profiles, measured, requests, objective, seeds, block_s)

    found = {name: setting.serve(policy) for name, policy in wanted.items()}
    judged = names.split(",")[0]
    fixed = {f"fixed {name}": setting.serve(Fixed(name)) for name in profiles}
    free = SwitchCosts(0.0, 0.0)
    found["all resident"] = setting.serve(wanted[judged], measured.alternating, costs=free)
    one, times = voting(profiles, measured.alternating)
    found["ensemble"] = setting.serve(Fixed(NAME), times, profiles=one, costs=free)
    found["oracle"] = setting.foresee(hold=1.0)
    found["bound"] = setting.foresee(hold=None)
    found["oracle every 10 s"] = setting.foresee(hold=10.0)  # switches six times a minute at most

    strategies = {**found, **fixed}
    blocks = setting.requests_in_blocks
    notes = setting.notes() | {
        "trace": trace.name,
        "portfolio": package.stem if package else called,
        "peak quantile": peak_quantile,
        "stretch": stretch,
        "medians": medians,
        "strategies": {name: _told(one) for name, one in strategies.items() if one.figures},
    }
    shown = {
        f"E of {name}": _figure(_accuracy(one.right, blocks), blocks.size) for name, one in strategies.items()
    }
    for name, figure in shown.items():
        print(f"{name}: {figure}", flush=True)
    rights = {name: one.right for name, one in strategies.items()}
    what = f"{trace.stem}, {called}"
    # That of the whole trace, also where blocks are resampled.
    steady = max((rights[name] for name in fixed), key=lambda right: float(right.sum()))
    gain = _accuracy(rights[judged], blocks) - _accuracy(steady, blocks)
    finish(Row(f"E({judged}) − E(best fixed), {what}", _figure(gain, blocks.size), ">= 0", shown, {}), out)
    for best, target in (("oracle", ">= 0.8"), ("bound", ""), ("oracle every 10 s", "")):
        share = _recovered(rights[judged], steady, rights[best], blocks)
        name = f"share of E({best}) − E(best fixed) that {judged} recovers, {what}"
        finish(Row(name, _figure(share, blocks.size), target, shown, notes), out)
    # "all resident" is the same policy with every switch free, which cannot be expected to be worse.
    others = {name: ">= 0" for name in [*wanted, "ensemble"] if name != judged} | {"all resident": ""}
    for other, target in others.items():
        gain = _accuracy(rights[judged], blocks) - _accuracy(rights[other], blocks)
        figures = {name: shown[f"E of {name}"] for name in (judged, other)}
        finish(Row(f"E({judged}) − E({other}), {what}", _figure(gain, blocks.size), target, figures, {}), out)
    often = Figure.of([one.switches_per_minute for one in found[judged].figures])
    finish(Row(f"switches a minute, {judged}, {what}", often, "<= 6", {}, {}), out)


class _Setting:
    """A trace and a portfolio, and what is the same for every strategy."""

    def __init__(
        self,
        profiles: dict[str, Profile],
        measured: Measured,
        trace: NDArray[np.int64],
        objective: float,
        seeds: int,
        block: int,
    ) -> None:
        self.profiles, self.measured, self.trace = profiles, measured, trace
        self.objective, self.seeds, self.block = objective, seeds, block
        self.requests_in_blocks = self._in_blocks(trace)

    def serve(
        self,
        policy: Policy,
        times: Mapping[str, ServiceSamples] | None = None,
        *,
        profiles: dict[str, Profile] | None = None,
        costs: SwitchCosts | None = None,
    ) -> Strategy:
        figures = tuple(
            simulate(
                profiles or self.profiles,
                self.trace,
                policy,
                objective=self.objective,
                services=times or self.measured.hot,
                costs=costs or SwitchCosts(self.measured.cold),
                seed=seed,
            )
            for seed in range(self.seeds)
        )
        return Strategy(np.mean([self._in_blocks(one.timeline.right) for one in figures], axis=0), figures)

    def foresee(self, hold: float | None) -> Strategy:
        rights = [
            oracle(
                self.profiles,
                self.trace,
                objective=self.objective,
                hold=hold,
                services=self.measured.hot,
                seed=seed,
                block=self.block,
            )
            for seed in range(self.seeds)
        ]
        return Strategy(np.mean(rights, axis=0))

    def notes(self) -> dict[str, Any]:
        return {
            "objective, ms": 1e3 * self.objective,
            "requests": int(self.trace.sum()),
            "seeds": self.seeds,
            "block, s": self.block,
            "variants": {
                name: {
                    "mean, ms": 1e3 * self.measured.hot[name].mean,
                    "alternating, ms": 1e3 * self.measured.alternating[name].mean,
                    "cold switch, ms": 1e3 * self.measured.cold[name],
                    "test accuracy": one.test_accuracy,
                }
                for name, one in self.profiles.items()
            },
        }

    def _in_blocks(self, seconds: NDArray[Any]) -> NDArray[np.float64]:
        starts = np.arange(0, seconds.size, self.block)
        return np.add.reduceat(np.asarray(seconds, np.float64), starts)


def _resampled(blocks: NDArray[np.float64]) -> NDArray[np.int64]:
    """Which blocks are drawn: all once in the first row, then 10,000 times as many at random."""
    drawn = np.random.default_rng(0).integers(0, blocks.size, (10_000, blocks.size))
    return np.vstack([np.arange(blocks.size), drawn])


def _accuracy(right: NDArray[np.float64], requests: NDArray[np.float64]) -> NDArray[np.float64]:
    """E of the trace itself, then of each resampling of its blocks."""
    drawn = _resampled(requests)
    accuracy: NDArray[np.float64] = right[drawn].sum(axis=1) / np.maximum(1, requests[drawn].sum(axis=1))
    return accuracy


def _recovered(
    judged: NDArray[np.float64],
    fixed: NDArray[np.float64],
    best: NDArray[np.float64],
    requests: NDArray[np.float64],
) -> NDArray[np.float64]:
    floor = _accuracy(fixed, requests)
    to_recover = _accuracy(best, requests) - floor
    # Minutes drawn may hold no overload at all: then there is nothing to recover, and no share of it.
    to_recover[to_recover <= 0] = np.nan
    share: NDArray[np.float64] = (_accuracy(judged, requests) - floor) / to_recover
    return share


def _figure(values: NDArray[np.float64], blocks: int) -> Figure:
    low, high = np.nanquantile(values[1:], [0.025, 0.975])
    return Figure(float(values[0]), float(low), float(high), blocks)


def _told(strategy: Strategy) -> dict[str, float]:
    """Means over the seeds."""

    def mean(name: str) -> float:
        return float(np.mean([getattr(one, name) for one in strategy.figures]))

    return {
        name: mean(name)
        for name in ("slo_attainment", "switches_per_minute", "latency_p50", "latency_p99", "shed")
    } | {
        f"time with {name}": float(np.mean([one.time_share[name] for one in strategy.figures]))
        for name in strategy.figures[0].time_share
    }


if __name__ == "__main__":
    from benchmarks import switching_real

    app.command()(switching_real.validate)
    app()
