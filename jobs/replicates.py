"""One recipe with several seeds: runs of their own, trained side by side, told as mean ± deviation."""

from __future__ import annotations

import statistics
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from jobs.console import Console
from jobs.generate import complete, failure_recorded, storage_troubles_shown, tell_of_skipped, train_run
from jobs.plan import plan, plan_text
from jobs.publish import summary
from jobs.table import render
from shifter.lease import Lease
from shifter.recipe import Recipe
from shifter.run import Run
from shifter.store import Store

_MEASURED = ("validation_accuracy", "test_accuracy", "structural_parameters", "tensor_bytes")


@dataclass(frozen=True)
class Replicates:
    """The runs of one recipe, by name; their seeds count up from the recipe's own. Made by :meth:`of`."""

    store: Store
    recipes: Mapping[str, Recipe]

    @classmethod
    def of(cls, recipe: Recipe, store: Store, name: str | None, count: int) -> Replicates:
        """Writes nothing.

        Args:
            name: of the runs, each of which has ``-seed-N`` behind it; by default each is named as
                it would be on its own.

        Raises:
            RunError: if a name cannot be that of its run.
        """
        seeds = range(recipe.seed, recipe.seed + count)
        recipes = [Recipe.model_validate(recipe.resolved() | {"seed": seed}) for seed in seeds]
        names = [r.run_name() if name is None else f"{name}-seed-{r.seed}" for r in recipes]
        named = dict(zip(names, recipes, strict=True))
        for one, its in named.items():
            Run.find(store, its, one)
        return cls(store, named)

    def carry_out(self, console: Console) -> dict[str, Any]:
        """All of them; what is finished already is left as it is.

        Raises:
            ShifterError: of the first run that fails, once those under way have ended.
        """
        from jobs.cluster import cluster

        first = next(iter(self.recipes.values()))
        with cluster(first.min_workers, console.say):
            tell_of_skipped(first, console)
            self._train_and_complete(console)
        summaries = [summary(Run(self.store, name)) for name in self.recipes]
        return {"replicates": summaries, "variants": summarise(summaries)}

    def _train_and_complete(self, console: Console) -> None:
        """Trained side by side, as many as the cluster has room for, and then completed."""
        waiting = [
            name for name, its in self.recipes.items() if not Run.find(self.store, its, name).is_finished
        ]
        room = _room(next(iter(self.recipes.values())))
        console.say(f"{len(self.recipes)} replicates, {len(waiting)} to train, {room} at a time")
        under_way: set[Future[Run]] = set()
        trained: list[Run] = []
        with ExitStack() as held:
            held.enter_context(storage_troubles_shown(console))
            while waiting or under_way:
                while waiting and len(under_way) < room:
                    name = waiting.pop(0)
                    folder = Run.find(self.store, self.recipes[name], name).lease_folder
                    lease = held.enter_context(Lease.hold(self.store, folder, console.say))
                    under_way.add(
                        _in_thread(self.store.guarded(lease.guard), self.recipes[name], name, console)
                    )
                ended, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                if any(future.exception() for future in ended):
                    wait(under_way)
                trained += [future.result() for future in ended]
            # One after another: latencies are measured, and would measure the neighbours' work.
            for run in sorted(trained, key=lambda run: list(self.recipes).index(run.name)):
                if not run.is_finished:
                    complete(run, self.recipes[run.name], console)

    def plan(self) -> dict[str, Any]:
        """What ``--dry-run`` tells of each."""
        plans = [plan(Run.find(self.store, its, name), its) for name, its in self.recipes.items()]
        return {"replicates": plans}

    @staticmethod
    def plan_text(told: Mapping[str, Any]) -> str:
        """The first one's plan, and the names of all."""
        first, *_ = plans = told["replicates"]
        names = ", ".join(one["run"] for one in plans)
        return f"{plan_text(first)}\n{len(plans)} replicates of this, with seeds of their own: {names}"

    @staticmethod
    def text(told: Mapping[str, Any]) -> str:
        """The variants as mean ± standard deviation, and the runs behind them."""
        table = Table(header_style="bold")
        table.add_column("variant")
        for heading in ("n", "non-zero", "structural", "size (kB)", "validation", "test"):
            table.add_column(heading, justify="right")
        for one in told["variants"]:
            table.add_row(
                one["name"],
                str(one["n"]),
                f"{one['nonzero_parameters']:,}",
                _plus_minus(one["structural_parameters"], "{:,.0f}"),
                _plus_minus(one["tensor_bytes"], "{:,.1f}", scale=1e-3),
                _plus_minus(one["validation_accuracy"], "{:.2f}", scale=100) + " %",
                _plus_minus(one["test_accuracy"], "{:.2f}", scale=100) + " %",
            )
        lines = [render(table), "mean ± standard deviation over the replicates:"]
        lines += [f"  {one['run']:<30} {one['store']}/{one['portfolio']}" for one in told["replicates"]]
        return "\n".join(lines)


def summarise(summaries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Per variant the mean and the sample standard deviation of what was measured.

    Args:
        summaries: as :func:`jobs.publish.summary` has them. A variant that some lack (an accuracy
            floor ended them early) counts where it is; ``n`` says how often. The deviation of a
            single one is None.
    """
    found: dict[str, list[Mapping[str, Any]]] = {}
    for told in summaries:
        for variant in told["variants"]:
            found.setdefault(variant["name"], []).append(variant["profile"])
    return [
        {
            "name": name,
            "n": len(profiles),
            "nonzero_parameters": profiles[0]["nonzero_parameters"],
            **{
                what: {
                    "mean": statistics.fmean(profile[what] for profile in profiles),
                    "std": statistics.stdev(p[what] for p in profiles) if len(profiles) > 1 else None,
                }
                for what in _MEASURED
            },
        }
        for name, profiles in found.items()
    ]


def _plus_minus(figure: Mapping[str, float | None], form: str, scale: float = 1.0) -> str:
    mean, std = figure["mean"], figure["std"]
    assert mean is not None
    return form.format(mean * scale) + ("" if std is None else f" ± {form.format(std * scale)}")


def _room(recipe: Recipe) -> int:
    """How many such runs the connected cluster can train at once; one at least."""
    import ray

    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    room = resources.get("CPU", 0) // recipe.min_workers
    gpus = resources.get("GPU", 0)
    if gpus >= recipe.min_workers:
        room = min(room, gpus // recipe.min_workers)
    return max(1, int(room))


def _in_thread(store: Store, recipe: Recipe, name: str, console: Console) -> Future[Run]:
    """Trains in a daemon thread, which an interrupted job does not wait for."""
    future: Future[Run] = Future()

    def train() -> None:
        try:
            run = Run.begin(store, recipe, name)
            if not run.is_finished:  # by the driver whose end was waited for
                with failure_recorded(run):
                    train_run(run, recipe, console, name_it=True)
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is waited for
            future.set_exception(error)
        else:
            future.set_result(run)

    threading.Thread(target=train, name=f"train-{name}", daemon=True).start()
    return future
