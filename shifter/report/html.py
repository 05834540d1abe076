"""``report.html``: what a run made, on one page that works offline and without JavaScript."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from shifter.report.plot import pareto_plot
from shifter.report.rows import bound, flatten, known, milliseconds, quantity, rows, share
from shifter.values import Discarded, Profile, Search


def render(
    name: str,
    recipe: Mapping[str, Any],
    provenance: Mapping[str, Any],
    variants: Sequence[tuple[str, Profile]],
    kept: Collection[str],
    discarded: Sequence[Discarded],
    search: Search | None = None,
) -> str:
    """The report as HTML text, about 5 MB, most of which is plotly.js.

    The same arguments give the same text. Whatever comes from the arguments is escaped.

    Args:
        name: of the run.
        recipe: resolved, as plain data.
        provenance: what the figures depend on beside the recipe (commit, versions, device, ...).
        variants: every variant that was profiled, in the order in which the table shows them.
        kept: names of those that the selection kept; ``discarded`` speaks of all others.
        search: what was searched for them; without it the page does not tell.

    Raises:
        AssertionError: unless every variant is either kept or discarded, once.
    """
    table = rows(variants, kept, discarded)
    environment = Environment(
        loader=PackageLoader("shifter.report", package_path=""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(quantity=quantity, known=known, share=share, ms=milliseconds, bound=bound)
    return environment.get_template("report.html.j2").render(
        name=name,
        recipe=flatten(recipe),
        provenance=flatten(provenance),
        rows=table,
        search=search,
        plot=pareto_plot(table) if table else None,
        plotly_js=get_plotlyjs() if table else None,
    )
