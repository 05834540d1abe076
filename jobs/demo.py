"""The whole chain on the embedded digits: train, reduce, pack, serve, switch under load, check.

::

    python -m jobs.demo
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.table import Table

from jobs import cli
from jobs.console import Console, results_only_on_stdout
from jobs.generate import NEEDED, generate
from shifter.errors import DemoError, ShifterError
from shifter.recipe import Recipe
from shifter.store import Store

if TYPE_CHECKING:
    from jobs.records import Record, Summary
    from jobs.trial import Plan
    from shifter.data import Split
    from shifter.portfolio import Portfolio

RECIPE = Path(__file__).parent / "recipes" / "digits.yaml"

ENOUGH = 0.95
"""Share of all requests that the switching service has to answer within the objective."""
MISSED = 0.90
"""The largest variant, held fixed, has to stay below: or the load proves nothing."""

_PER_REQUEST_MS = 25.0
_SEED = 0


@dataclass(frozen=True)
class Trial:
    """One service under the load."""

    name: str
    records: list[Record]
    summary: Summary
    status: dict[str, Any]


@contextmanager
def _step(name: str, console: Console) -> Iterator[None]:
    """Says what begins, and, if it fails, what it was that failed."""
    console.say(f"— {name}")
    try:
        yield
    except ShifterError as error:
        raise DemoError(f"the demonstration failed at the step '{name}': {error}") from error
    except Exception as error:
        error.add_note(f"The demonstration failed at the step '{name}'.")
        raise


def demonstrate(recipe: Recipe, store: Store, name: str | None, console: Console) -> str:
    """Does all of it; returns the tables to show.

    Raises:
        DemoError: naming the step that failed, and why.
    """
    from jobs.cluster import cluster
    from jobs.leftovers import Descendants
    from jobs.table import render, variants_table
    from shifter.values import Discarded, Profile

    if "RAY_ADDRESS" in os.environ:
        raise DemoError("RAY_ADDRESS is set, but the demonstration starts a cluster of its own: unset it")
    with Descendants() as descendants, cluster(cpus=recipe.min_workers) as where:
        console.say(where)
        temporary = Path(os.environ["RAY_TMPDIR"])
        with _step("train, reduce and pack", console):
            told = generate(recipe, store, name, console)
            kept = [v for v in told["variants"] if v["kept"]]
            if len(kept) < 3:
                raise DemoError(f"only {len(kept)} variants survive the selection, 3 were expected")
        trials, plan, checked = serve_and_judge(Path(told["store"]) / told["run"], recipe, console)
    with _step("leave nothing behind", console):
        if temporary.exists():
            raise DemoError(f"the cluster left its folder {temporary} behind")
        ended = descendants.check_gone()
        console.say(f"{ended} processes were started and have ended")

    profiles = {v["name"]: Profile.from_json(v["profile"]) for v in told["variants"]}
    discarded = [Discarded(v["name"], **v["discarded"]) for v in told["variants"] if v["discarded"]]
    objective_ms = 1e3 * plan.objective_s
    return "\n".join(
        [
            "",
            "The variants (relative error to the sparse model; latency of one image)",
            render(variants_table(profiles, discarded)),
            "",
            f"The same load on both services, objective {objective_ms:.0f} ms",
            render(_comparison(trials)),
            "",
            "The switching service over time",
            render(_timeline(trials[-1], plan)),
            "",
            "Its switches",
            render(_switches(trials[-1])),
            "",
            f"{checked:,} answers were recomputed with the variants that they name, and are theirs.",
            f"Under the load, {trials[0].name} is in time for {trials[0].summary.attainment:.1%} of the "
            f"requests (below {MISSED:.0%} was wanted), the switching service for "
            f"{trials[-1].summary.attainment:.1%} (at least {ENOUGH:.0%} was wanted).",
            f"portfolio {told['store']}/{told['portfolio']}",
            f"report    {told['store']}/{told['report']}",
        ]
    )


def serve_and_judge(run: Path, recipe: Recipe, console: Console) -> tuple[list[Trial], Plan, int]:
    """Serves a run's portfolio on the connected cluster, puts it under load, and judges.

    Returns: the trial of the largest variant, held fixed, and that of the switching service; the
    load; and how many answers were recomputed.

    Raises:
        DemoError: naming the step that failed, and why.
    """
    from jobs import trial
    from jobs.serving import serving
    from serve_app.settings import Settings
    from serve_app.source import read_portfolio
    from shifter.data import load

    with _step("read the portfolio and the test images", console):
        portfolio = read_portfolio(run)
        test = load(recipe.data, recipe.seed).test
        smallest, largest = portfolio.names[0], portfolio.names[-1]
        # Two decimals: resized pixels have many more, which JSON would spend its time on.
        pixels = np.round(test.images.astype(np.float64), 2)
        driver = trial.Driver(pixels, _images_per_request(portfolio))
        common: dict[str, Any] = {
            "portfolio": run,
            "max_images": driver.per_request,
            # All applications share the machine, and only one is under load at a time.
            "cpus": 0.1,
        }

    with ExitStack() as running:
        with _step(f"serve {largest} and {smallest}, each held fixed", console):
            served = running.enter_context(serving())
            fixed = {v: Settings(policy="fixed", variant=v, **common) for v in (largest, smallest)}
            urls = served.deploy({f"fixed-{variant}": settings for variant, settings in fixed.items()})
        with _step("measure what they carry", console):
            carries = {v: trial.capacity(driver, urls[f"fixed-{v}"], seconds=2.5) for v in fixed}
            for variant, rate in carries.items():
                console.say(f"{variant}: {rate:.0f} requests/s of {driver.per_request} images")
            plan = trial.plan(carries[largest], carries[smallest])
            rates = [segment.rate for segment in plan.schedule]
            console.say(
                f"the load will go from {rates[0]:.0f} requests/s to {max(rates):.0f} and back to "
                f"{rates[-1]:.0f}; objective {1e3 * plan.objective_s:.0f} ms"
            )
        with _step("serve with switching", console):
            urls |= served.deploy({"switching": Settings(objective_ms=1e3 * plan.objective_s, **common)})
        trials = []
        for name in (f"fixed-{largest}", "switching"):
            with _step(f"load on {name}", console):
                trials.append(_trial(name, urls[name], driver, plan))
        console.say("— shut the service down")
    with _step("check every answer", console):
        checked = sum(trial.check_answers(t.records, portfolio, pixels) for t in trials)
    with _step("judge", console):
        _judge(trials, portfolio, test)
    return trials, plan, checked


def _images_per_request(portfolio: Portfolio) -> int:
    """So many that the largest variant, and not HTTP, is what a request costs."""
    profile = portfolio.profiles[portfolio.names[-1]]
    per_image = profile.batch_latency.p50_ms / profile.batch_images
    return max(1, min(1024, round(_PER_REQUEST_MS / per_image)))


def _trial(name: str, url: str, driver: Any, plan: Plan) -> Trial:
    from urllib.request import urlopen

    from jobs.records import summarise

    records = driver.drive(url, plan.schedule, _SEED)
    with urlopen(f"{url}/status", timeout=30) as answer:
        status = json.load(answer)
    return Trial(name, records, summarise(records, plan.objective_s), status)


def _judge(trials: Sequence[Trial], portfolio: Portfolio, test: Split) -> None:
    from jobs.trial import descends_and_returns

    fixed, switching = trials
    for one in trials:
        if one.summary.failed:
            raise DemoError(f"{one.summary.failed} requests to {one.name} were neither answered nor refused")
    if fixed.summary.attainment >= MISSED:
        raise DemoError(
            f"{fixed.name} answered {fixed.summary.attainment:.1%} of the requests in time: "
            f"below {MISSED:.0%} was expected under this load"
        )
    if switching.summary.attainment < ENOUGH:
        raise DemoError(
            f"the switching service answered {switching.summary.attainment:.1%} of the requests in time: "
            f"at least {ENOUGH:.0%} was expected (the client itself was up to "
            f"{switching.summary.client_p99_late_ms:.0f} ms late; is the machine busy?)"
        )
    if not descends_and_returns(switching.records, portfolio.names):
        raise DemoError("the switching service did not go to a smaller variant and back to a larger one")
    failed = [s for s in switching.status["switches"] if s["error"]]
    if failed:
        raise DemoError(f"a switch failed: {failed[0]}")


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


def _timeline(one: Trial, plan: Plan) -> Table:
    from jobs.records import timeline

    table = Table(header_style="bold")
    for heading in ("second", "requests", "p99 (ms)", "in time"):
        table.add_column(heading, justify="right")
    table.add_column("variants")
    for interval in timeline(one.records, plan.objective_s):
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
    table.add_column("time (UTC)")
    table.add_column("switch")
    table.add_column("took (ms)", justify="right")
    table.add_column("why")
    for switch in one.status["switches"]:
        table.add_row(
            switch["at"].partition("T")[2].removesuffix("+00:00"),
            f"{switch['from']} → {switch['to']}",
            f"{switch['ms']:.1f}",
            switch["reason"],
        )
    return table


@cli.reports_errors
def main(
    store: Annotated[str, typer.Option(help="The folder for the run's artifacts.", metavar="URI")] = "runs",
    name: Annotated[str, typer.Option(help="The run's name.")] = "digits",
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Change the recipe, as in training.epochs=2; the value is YAML. May be repeated.",
            metavar="A.B=C",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Show the whole chain on handwritten digits: train, reduce, pack, serve, switch, check.

    Takes about five minutes on two cores the first time; a finished run in the store is reused.
    Any step that fails, or does not hold what it promises, ends it with a status other than 0.
    """
    cli.require("demo", "train,edge,report", *NEEDED, "aiohttp", "fastapi", "orjson", "PIL")
    with results_only_on_stdout() as show, Console.open() as console:
        show(demonstrate(Recipe.load(RECIPE, overrides or []), Store.open(store), name, console))


if __name__ == "__main__":
    cli.run(main)
