"""The main job: from a recipe to a portfolio (phases 1 and 2, and the package).

::

    python -m jobs.generate jobs/recipes/digits.yaml
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs import cli
from jobs.console import Console, Style, results_only_on_stdout
from jobs.plan import plan, plan_text
from jobs.publish import pack_variants, run_table, select_variants, summary, write_report
from shifter.errors import ShifterError, StoreError
from shifter.lease import Lease
from shifter.recipe import Recipe
from shifter.run import Run
from shifter.store import Store

if TYPE_CHECKING:
    from shifter.values import Variant

# torch, Ray and the rest take seconds to import: the functions that need them do it.


def generate(
    recipe: Recipe, store: Store, name: str | None, console: Console, local: bool = False
) -> dict[str, Any]:
    """Carries out ``recipe``, or what is left of it; returns :func:`summary` of the run.

    Every step returns early if its output is in the store, so a run that was killed goes on from
    the state saved last, and one that is finished is only summed up. It is the only driver of the
    run meanwhile: see ``shifter.lease``.

    Raises:
        ShifterError: whatever a user can mend, store and recipe before anything is trained.
    """
    run = Run.find(store, recipe, name)
    if run.is_finished:
        console.say(f"{run.name} is finished already: nothing to do")
        return summary(run)
    try:
        with (
            storage_troubles_shown(console),
            Lease.hold(store, run.lease_folder, console.say) as lease,
        ):
            _carry_out(store.guarded(lease.guard), recipe, run.name, console, local)
    except KeyboardInterrupt:
        console.say(f"{run.name} is interrupted; the same command resumes it")
        raise
    return summary(run)


def _carry_out(store: Store, recipe: Recipe, name: str, console: Console, local: bool) -> None:
    run = Run.begin(store, recipe, name)
    if run.is_finished:
        return  # by the driver whose end was waited for
    console.say(_beginning(run, recipe))
    with failure_recorded(run):
        with cli.terminated_later():
            from jobs.cluster import cluster
            from shifter.training import course
        variants = None
        if local and course.is_trained(run):
            course.complete(run)
        else:
            with cluster(recipe.min_workers, console.say):
                tell_of_skipped(recipe, console)
                train_run(run, recipe, console)
                if not local:
                    variants = _reduce(run, recipe, console)
        if variants is None:
            variants = _reduce(run, recipe, console, local=True)
        _publish(run, recipe, variants, console)


def complete(run: Run, recipe: Recipe, console: Console) -> None:
    """What comes after training, on the connected cluster."""
    with failure_recorded(run):
        _publish(run, recipe, _reduce(run, recipe, console), console)


NEEDED = (
    "PIL",
    "jinja2",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "plotly",
    "pyarrow",
    "ray",
    "safetensors",
    "sklearn",
    "torch",
)


def _beginning(run: Run, recipe: Recipe) -> str:
    rounds = run.finished_rounds()
    if not run.record["resumed"]:
        return f"{run.name}: {recipe.rounds} rounds, in {run.store.uri}"
    if rounds == 0:
        return f"resuming {run.name}: no round is finished"
    which = "round 0 is" if rounds == 1 else f"rounds 0–{rounds - 1} are"
    return f"resuming {run.name}: {which} finished"


@contextmanager
def storage_troubles_shown(console: Console) -> Iterator[None]:
    """The lease's heartbeat needs the store every few seconds: what troubles workers is heard of here."""

    class Shown(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            console.say(record.getMessage())

    shown = Shown(logging.WARNING)
    log = logging.getLogger("shifter.store")
    log.addHandler(shown)
    try:
        yield
    finally:
        log.removeHandler(shown)


@contextmanager
def failure_recorded(run: Run) -> Iterator[None]:
    """An interrupted run is no failed one, nor is one whose store is gone: its state stays what it was."""
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        # Not in place of the failure itself, which may be that nothing may be written any more.
        with suppress(ShifterError):
            run.advance("failed", f"{type(error).__name__}: {error}")
        raise


def _reduce(run: Run, recipe: Recipe, console: Console, local: bool = False) -> list[Variant]:
    with cli.terminated_later():
        from jobs.reduction import reduce_run

    run.advance("reducing")
    return reduce_run(run, recipe, console.on_event, local)


def _publish(run: Run, recipe: Recipe, variants: Sequence[Variant], console: Console) -> None:
    kept, discarded = select_variants({v.name: v.profile for v in variants}, recipe)
    run.advance("packing")
    pack_variants(run, recipe, [v for v in variants if v.name in kept])
    write_report(run, recipe, variants, kept, discarded)
    run.sweep()  # what storage that failed for a while kept
    run.advance("finished")
    console.say(f"{run.name} is finished: {run.store.uri}/{run.report_key}")


def train_run(run: Run, recipe: Recipe, console: Console, name_it: bool = False) -> None:
    """Phase 1 of a run that has begun, on the connected cluster.

    Args:
        name_it: each event says whose it is, since other runs are trained at the same time.
    """
    with cli.terminated_later():
        from jobs.metrics import published
        from shifter.training.on_ray import train

    def on_event(event: Mapping[str, Any]) -> None:
        console.on_event({**event, "run": run.name} if name_it else event)

    run.advance("training")
    if run.finished_rounds() < recipe.rounds:
        console.say(f"starting the workers{f' of {run.name}' if name_it else ''} …")
    train(recipe, run, published(run.name, on_event))


def tell_of_skipped(recipe: Recipe, console: Console) -> None:
    """Which images the recipe lets be left out because they are bad."""
    from shifter.data import load

    skipped = load(recipe.data, recipe.seed).skipped
    for complaint in skipped.first:
        console.say(f"skipped: {complaint}")
    if skipped.count:
        console.say(f"{skipped.count:,} images are bad and are skipped")


@cli.reports_errors
def main(
    recipe: Annotated[
        Path,
        typer.Argument(
            metavar="RECIPE", help="A YAML file, for example jobs/recipes/digits.yaml.", show_default=False
        ),
    ],
    store: Annotated[
        str, typer.Option(help="Where artifacts go: a folder or s3://bucket/prefix.", metavar="URI")
    ] = "runs",
    name: Annotated[
        str | None,
        typer.Option(help="The run's name; by default the recipe's name and hash.", show_default=False),
    ] = None,
    overrides: cli.Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the resolved recipe and what it takes; start nothing.")
    ] = False,
    replicates: Annotated[
        int,
        typer.Option(
            help="Carry it out with so many seeds, side by side where the cluster has room, and show mean ± "
            "standard deviation.",
            min=1,
            max=100,
        ),
    ] = 1,
    local: Annotated[
        bool,
        typer.Option(
            "--local", help="Reduce in this process; Ray is only started if there is training left."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")] = False,
    progress: cli.Progress = Style.AUTO,
    version: cli.Version = False,
) -> None:
    """Train a network, prune and reduce it round by round, and pack the best variants.

    Started again after an interruption, the same command goes on from the state saved last.
    A finished run is left as it is.
    """
    cli.require("generate", "train,report", *NEEDED)
    with results_only_on_stdout() as show, Console.open(progress) as console:
        resolved = Recipe.load(recipe, overrides or [])
        if replicates > 1 and local:
            raise typer.BadParameter(
                "replicates share a cluster: leave one of the two out", param_hint="--local"
            )
        Store.at(store).greet()
        if replicates > 1:
            told, text = _replicated(resolved, store, name, replicates, dry_run, console)
        else:
            # Before the store is created: what is refused leaves nothing behind.
            run = Run.find(Store.at(store), resolved, name)
            if dry_run:
                told, text = plan(run, resolved), plan_text
            else:
                told, text = generate(resolved, Store.open(store), name, console, local), run_table
    show(json.dumps(told, indent=2) if as_json else text(told))


def _replicated(
    recipe: Recipe, store: str, name: str | None, count: int, dry_run: bool, console: Console
) -> tuple[dict[str, Any], Callable[[Mapping[str, Any]], str]]:
    from jobs.replicates import Replicates

    replicates = Replicates.of(recipe, Store.at(store), name, count)
    if dry_run:
        return replicates.plan(), replicates.plan_text
    Store.open(store)
    return replicates.carry_out(console), replicates.text


if __name__ == "__main__":
    cli.run(main)
