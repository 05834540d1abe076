"""What ``generate --dry-run`` tells: a run before it is carried out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from shifter.recipe import Recipe
from shifter.run import Run


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
    """A :func:`plan` for people."""
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
