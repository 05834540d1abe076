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
import yaml

from jobs import cli
from jobs.console import Console, Style, results_only_on_stdout
from shifter.errors import ShifterError, StoreError
from shifter.lease import Lease
from shifter.recipe import Recipe
from shifter.run import Run, flat
from shifter.store import Store

if TYPE_CHECKING:
    from shifter.values import Discarded, Profile, Variant

# torch, Ray and the rest take seconds to import: the functions that need them do it.


def generate(recipe: Recipe, store: Store, name: str | None, console: Console) -> dict[str, Any]:
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
            _carry_out(store.guarded(lease.guard), recipe, run.name, console)
    except KeyboardInterrupt:
        console.say(f"{run.name} is interrupted; the same command resumes it")
        raise
    return summary(run)


def _carry_out(store: Store, recipe: Recipe, name: str, console: Console) -> None:
    run = Run.begin(store, recipe, name)
    if run.is_finished:
        return  # by the driver whose end was waited for
    console.say(_beginning(run, recipe))
    with failure_recorded(run):
        with cli.terminated_later():
            from jobs.cluster import cluster
        with cluster(recipe.min_workers, console.say):
            tell_of_skipped(recipe, console)
            train_run(run, recipe, console)
            variants = _reduce(run, recipe, console)
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


def _reduce(run: Run, recipe: Recipe, console: Console) -> list[Variant]:
    with cli.terminated_later():
        from jobs.reduction import reduce_run

    run.advance("reducing")
    return reduce_run(run, recipe, console.on_event)


def _publish(run: Run, recipe: Recipe, variants: Sequence[Variant], console: Console) -> None:
    kept, discarded = select_variants({v.name: v.profile for v in variants}, recipe)
    run.advance("packing")
    _pack(run, recipe, [v for v in variants if v.name in kept])
    _report(run, recipe, variants, kept, discarded)
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
        from shifter.training.worker import train

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


def select_variants(
    profiles: Mapping[str, Profile], recipe: Recipe
) -> tuple[tuple[str, ...], tuple[Discarded, ...]]:
    from shifter.pruning.select import select

    tolerances = recipe.selection
    return select(
        profiles,
        accuracy_tolerance=tolerances.accuracy_tolerance,
        size_tolerance=tolerances.size_tolerance,
    )


def _pack(run: Run, recipe: Recipe, variants: Sequence[Variant]) -> None:
    """Writes the package, reads it back, and only then names it as the current one."""
    import hashlib

    from shifter.data import load
    from shifter.portfolio.package import Portfolio, pack

    record = run.record
    package = pack(
        variants,
        load(recipe.data, recipe.seed).input_spec,
        model=recipe.name,
        provenance={"run": run.name, "recipe": record["digest"], **flat(record["provenance"])},
    )
    digest = hashlib.sha256(package).hexdigest()
    key = run.portfolio_key(digest)
    if not run.store.exists(key):
        run.store.write(key, package)
    Portfolio.open(run.store.read(key)).verify()
    named = _named_portfolios(run)
    if named["current"] != digest:
        names = {"current": digest, "previous": named["current"]}
        run.store.replace(run.portfolio_json, json.dumps(names, indent=2).encode())


def _named_portfolios(run: Run) -> dict[str, str | None]:
    """Digests of the current portfolio and the one before it, to roll back to."""
    if not run.store.exists(run.portfolio_json):
        return {"current": None, "previous": None}
    names: dict[str, str | None] = json.loads(run.store.read(run.portfolio_json))
    return names


def _report(
    run: Run,
    recipe: Recipe,
    variants: Sequence[Variant],
    kept: Sequence[str],
    discarded: Sequence[Discarded],
) -> None:
    from shifter.report.html import render

    html = render(
        run.name,
        recipe.resolved(),
        run.record["provenance"],
        [(v.name, v.profile) for v in variants],
        kept,
        discarded,
    )
    run.store.replace(run.report_key, html.encode())


def summary(run: Run) -> dict[str, Any]:
    """A finished run as plain data: its portfolio and every variant, kept or discarded."""
    recipe = run.recipe
    profiles = _profiles(run)
    kept, discarded = select_variants(profiles, recipe)
    reasons = {d.name: {"beaten_by": d.beaten_by, "reason": d.reason} for d in discarded}
    digest = _named_portfolios(run)["current"]
    assert digest is not None, "a finished run has a portfolio"
    return {
        "run": run.name,
        "store": run.store.uri,
        "state": run.state,
        "portfolio": run.portfolio_key(digest),
        "report": run.report_key,
        "variants": [
            {"name": name, "kept": name in kept, "discarded": reasons.get(name), "profile": profile.to_json()}
            for name, profile in profiles.items()
        ],
    }


def _profiles(run: Run) -> dict[str, Profile]:
    from shifter.values import CompressionRatio, Profile

    names = [str(CompressionRatio(ratio)) for ratio in run.recipe.ratio_of_round[: run.rounds()]]
    read = run.store.read
    return {n: Profile.from_json(json.loads(read(run.variant_key(n, "profile.json")))) for n in names}


def run_table(told: Mapping[str, Any]) -> str:
    from jobs.table import variants_text
    from shifter.values import Discarded, Profile

    profiles = {v["name"]: Profile.from_json(v["profile"]) for v in told["variants"]}
    discarded = [Discarded(v["name"], **v["discarded"]) for v in told["variants"] if v["discarded"]]
    lines = [variants_text(profiles, discarded)]
    lines += [f"{what:<10}{told['store']}/{told[what]}" for what in ("portfolio", "report")]
    return "\n".join(lines)


def plan(run: Run, recipe: Recipe) -> dict[str, Any]:
    """What ``--dry-run`` tells: the run and how far it is, the resolved recipe, and what it will take."""
    from jobs.estimate import estimate

    return {
        "run": run.name,
        "store": run.store.uri,
        "state": run.state if run.has_begun else None,
        "finished_rounds": run.finished_rounds(),
        "recipe": recipe.resolved(),
        "estimate": estimate(recipe),
    }


def _standing(told: Mapping[str, Any]) -> str:
    state, rounds, of = told["state"], told["finished_rounds"], len(told["estimate"]["rounds"])
    if state is None:
        return "it would begin"
    if state == "finished":
        return "it is finished: nothing would be done"
    return f"it would resume with {f'round {rounds}' if rounds < of else 'what comes after training'}"


def plan_text(told: Mapping[str, Any]) -> str:
    takes = told["estimate"]
    images, storage = takes["images"], takes["storage_bytes"]
    workers = takes["workers"]
    lines = [
        yaml.safe_dump(told["recipe"], sort_keys=False, allow_unicode=True, default_flow_style=None).rstrip(),
        "",
        f"run       {told['run']} in {told['store']}: {_standing(told)}",
        f"images    {images['train']:,} to train on, {images['validation']:,} to validate, "
        f"{images['test']:,} to test" + (f", {images['skipped']:,} skipped" if images["skipped"] else ""),
        f"network   {takes['parameters']:,} parameters, {takes['prunable_weights']:,} weights to prune",
        f"workers   {workers if isinstance(workers, int) else '{min} to {max}'.format_map(workers)}",
        f"rounds    {len(takes['rounds'])}, {takes['steps']:,} optimiser steps in all",
    ]
    lines += [
        f"  round {r['round']}: {r['ratio']:g}x, {r['nonzero_weights']:,} weights, {r['steps']:,} steps"
        for r in takes["rounds"]
    ]
    parts = ", ".join(f"{part} {size / 1e6:,.1f} MB" for part, size in storage.items() if part != "total")
    lines += [f"storage   at most {storage['total'] / 1e6:,.1f} MB ({parts})", "dry run: nothing was started"]
    return "\n".join(lines)


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
        if replicates > 1:
            told, text = _replicated(resolved, store, name, replicates, dry_run, console)
        else:
            # Before the store is created: what is refused leaves nothing behind.
            run = Run.find(Store.at(store), resolved, name)
            if dry_run:
                told, text = plan(run, resolved), plan_text
            else:
                told, text = generate(resolved, Store.open(store), name, console), run_table
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
