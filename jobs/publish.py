"""What a run ends with: its variants selected and packed, its report, and the sum of it all."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shifter.recipe import Recipe
from shifter.run import Run, flat

if TYPE_CHECKING:
    from shifter.values import Discarded, Profile, Variant


def select_variants(
    profiles: Mapping[str, Profile], recipe: Recipe
) -> tuple[tuple[str, ...], tuple[Discarded, ...]]:
    """As :func:`shifter.pruning.select.select`, with the recipe's tolerances."""
    from shifter.pruning.select import select

    tolerances = recipe.selection
    return select(
        profiles,
        accuracy_tolerance=tolerances.accuracy_tolerance,
        size_tolerance=tolerances.size_tolerance,
    )


def pack_variants(run: Run, recipe: Recipe, variants: Sequence[Variant]) -> None:
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
    written = Portfolio.open(run.store.read(key))
    written.verify()
    written.check_graphs()
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


def write_report(
    run: Run,
    recipe: Recipe,
    variants: Sequence[Variant],
    kept: Sequence[str],
    discarded: Sequence[Discarded],
) -> None:
    """Writes one HTML page over every variant, ``kept`` and ``discarded``, in place of an earlier one."""
    from shifter.pruning.select import search_efficiency
    from shifter.report.html import render

    profiles = {v.name: v.profile for v in variants}
    html = render(
        run.name,
        recipe.resolved(),
        run.record["provenance"],
        list(profiles.items()),
        kept,
        discarded,
        search_efficiency(profiles, run.finished_rounds()),
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
    from shifter.values import Profile

    read = run.store.read
    names = run.variant_names()
    return {n: Profile.from_json(json.loads(read(run.variant_key(n, "profile.json")))) for n in names}


def run_table(told: Mapping[str, Any]) -> str:
    """A :func:`summary` for people."""
    from jobs.table import summary_text

    lines = [summary_text(told)]
    lines += [f"{what:<10}{told['store']}/{told[what]}" for what in ("portfolio", "report")]
    return "\n".join(lines)
