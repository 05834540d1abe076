"""The whole chain on the embedded digits: train, reduce, pack, serve, switch under load, check.

::

    python -m jobs.demo
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from jobs import cli
from jobs.console import Console, Style, results_only_on_stdout
from jobs.generate import NEEDED, generate
from jobs.outcome import ENOUGH, MISSED, Outcome, Trial
from shifter.errors import DemoError, ShifterError
from shifter.recipe import Recipe
from shifter.run import Run
from shifter.store import Store

if TYPE_CHECKING:
    from jobs.trial import Plan
    from shifter.portfolio import Portfolio

RECIPE = Path(__file__).parent / "recipes" / "digits.yaml"

ATTEMPTS = 3
"""How often the load is put on, if only its timing falls short: other work on the machine can do that."""
_PER_REQUEST_MS = 25.0
_SEED = 0


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


def demonstrate(recipe: Recipe, store_uri: str, name: str, console: Console) -> Outcome:
    """Does all of it.

    Raises:
        RunError: if ``name`` cannot name its run, or belongs to another recipe; before anything is started.
        DemoError: naming the step that failed, and why.
    """
    if "RAY_ADDRESS" in os.environ:
        raise DemoError("RAY_ADDRESS is set, but the demonstration starts a cluster of its own: unset it")
    Run.find(Store.at(store_uri), recipe, name)
    store = Store.open(store_uri)

    from jobs.cluster import cluster
    from jobs.leftovers import Descendants

    with Descendants() as descendants, cluster(recipe.min_workers, console.say):
        temporary = Path(os.environ["RAY_TMPDIR"])
        with _step("train, reduce and pack", console):
            told = generate(recipe, store, name, console)
            kept = [v for v in told["variants"] if v["kept"]]
            if len(kept) < 3:
                raise DemoError(f"only {len(kept)} variants survive the selection, 3 were expected")
        trials, plan, checked = serve_and_judge(f"{told['store']}/{told['run']}", recipe, console)
    with _step("leave nothing behind", console):
        if temporary.exists():
            raise DemoError(f"the cluster left its folder {temporary} behind")
        ended = descendants.check_gone()
        console.say(f"{ended} processes were started and have ended")
    return Outcome(told, trials, plan.objective_s, checked)


def serve_and_judge(run: str, recipe: Recipe, console: Console) -> tuple[list[Trial], Plan, int]:
    """Serves a run's portfolio on the connected cluster, puts it under load, and judges.

    Returns: the trial of the largest variant, held fixed, and that of the switching service; the
    load; and how many answers were recomputed.

    Raises:
        DemoError: naming the step that failed, and why.
    """
    from jobs import trial
    from jobs.serving import serving
    from serve_app.settings import Settings
    from shifter.data import load
    from shifter.portfolio import Portfolio

    with _step("read the portfolio and the test images", console):
        portfolio = Portfolio.open(run)
        test = load(recipe.data, recipe.seed).test
        smallest, largest = portfolio.names[0], portfolio.names[-1]
        # Two decimals: resized pixels have many more, which JSON would spend its time on.
        pixels = np.round(test.images.astype(np.float64), 2)
        driver = trial.Driver(pixels, _images_per_request(portfolio))
        console.say(
            f"a request carries {driver.per_request} images, so many that {largest} computes about "
            f"{_PER_REQUEST_MS:.0f} ms for it: the load is the network's, not HTTP's"
        )
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
        checked = attempt = 0
        while True:
            attempt += 1
            with _step("measure what they carry", console):
                carries = {v: trial.capacity(driver, urls[f"fixed-{v}"], seconds=2.5) for v in fixed}
                for variant, rate in carries.items():
                    console.say(f"{variant}: {rate:.0f} requests/s of {driver.per_request} images")
                plan = trial.plan(carries[largest], carries[smallest])
                _explain(plan, largest, carries[largest], console)
            switching = "switching" if attempt == 1 else f"switching-{attempt}"
            with _step("serve with switching", console):
                urls |= served.deploy({switching: Settings(objective_ms=1e3 * plan.objective_s, **common)})
            trials = []
            for name in (f"fixed-{largest}", switching):
                with _step(f"load on {name}", console):
                    trials.append(_trial(name, urls[name], driver, plan))
            with _step("check every answer", console):
                checked += sum(trial.check_answers(t.recording.records, portfolio, pixels) for t in trials)
            with _step("judge", console):
                shortfall = _judge(trials, portfolio)
                if shortfall is None:
                    break
                if attempt == ATTEMPTS:
                    raise DemoError(f"{shortfall}; so it was {ATTEMPTS} times")
                console.say(f"{shortfall}: once more, since other work on the machine can do that")
        console.say("— shut the service down")
    return trials, plan, checked


def _explain(plan: Plan, largest: str, carries: float, console: Console) -> None:
    """What the load is, and where the objective comes from."""
    rates = [segment.rate for segment in plan.schedule]
    console.say(
        f"the load will rise from {rates[0]:.0f} requests/s, {rates[0] / carries:.0%} of what {largest} "
        f"carries, to {max(rates):.0f}, {max(rates) / carries:.0%}, and fall back to {rates[-1]:.0f}"
    )
    console.say(
        f"objective: an answer within {1e3 * plan.objective_s:.0f} ms, the time in which {largest} "
        f"answers {carries * plan.objective_s:.0f} requests"
    )


def _images_per_request(portfolio: Portfolio) -> int:
    """So many that the largest variant, and not HTTP, is what a request costs."""
    profile = portfolio.profiles[portfolio.names[-1]]
    per_image = profile.batch_latency.p50_ms / profile.batch_images
    return max(1, min(1024, round(_PER_REQUEST_MS / per_image)))


def _trial(name: str, url: str, driver: Any, plan: Plan) -> Trial:
    from urllib.request import urlopen

    from jobs.records import summarise

    recording = driver.drive(url, plan.schedule, _SEED)
    with urlopen(f"{url}/status", timeout=30) as answer:
        status = json.load(answer)
    return Trial(name, recording, summarise(recording.records, plan.objective_s), status)


def _judge(trials: Sequence[Trial], portfolio: Portfolio) -> str | None:
    """What of the timing fell short of the promise, which a busy machine can do; None if nothing did.

    Raises:
        DemoError: for what no machine excuses: a request without an answer, a switch that failed.
    """
    from jobs.trial import descends_and_returns

    fixed, switching = trials
    for one in trials:
        if one.summary.failed:
            raise DemoError(f"{one.summary.failed} requests to {one.name} were neither answered nor refused")
    failed = [s for s in switching.status["switches"] if s["error"]]
    if failed:
        raise DemoError(f"a switch failed: {failed[0]}")
    if fixed.summary.attainment >= MISSED:
        return (
            f"{fixed.name} answered {fixed.summary.attainment:.1%} of the requests in time, where below "
            f"{MISSED:.0%} was expected under this load"
        )
    if switching.summary.attainment < ENOUGH:
        return (
            f"the switching service answered {switching.summary.attainment:.1%} of the requests in time, "
            f"where at least {ENOUGH:.0%} was expected (the client itself was up to "
            f"{switching.summary.client_p99_late_ms:.0f} ms late)"
        )
    if not descends_and_returns(switching.recording.records, portfolio.names):
        return "the switching service did not go to a smaller variant and back to a larger one"
    return None


@cli.reports_errors
def main(
    store: Annotated[
        str, typer.Option(help="Where artifacts go: a folder or s3://bucket/prefix.", metavar="URI")
    ] = "runs",
    name: Annotated[str, typer.Option(help="The run's name.")] = "digits",
    overrides: cli.Overrides = None,
    progress: cli.Progress = Style.AUTO,
    version: cli.Version = False,
) -> None:
    """Show the whole chain on handwritten digits: train, reduce, pack, serve, switch, check.

    Takes about five minutes on two cores the first time; a finished run in the store is reused.
    Any step that fails, or does not hold what it promises, ends it with a status other than 0.
    """
    cli.require("demo", "train,edge,report", *NEEDED, "aiohttp", "fastapi", "orjson", "PIL")
    with results_only_on_stdout() as show, Console.open(progress) as console:
        outcome = demonstrate(Recipe.load(RECIPE, overrides or []), store, name, console)
    show(outcome.text())


if __name__ == "__main__":
    cli.run(main)
