"""What is in a portfolio: its variants, their profiles, how they are stored, and whether they are whole.

::

    python -m jobs.inspect runs/RUN
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs import cli
from shifter.errors import PackageError

if TYPE_CHECKING:
    from shifter.portfolio import Portfolio
    from shifter.portfolio.manifest import VariantRecord


def inspect(portfolio: Portfolio) -> dict[str, Any]:
    """A portfolio as plain data, once every variant has been inflated and checked.

    Raises:
        PackageError: if anything in it is not what its manifest declares.
    """
    portfolio.verify()
    portfolio.check_graphs()
    return {
        "model": portfolio.model,
        "digest": portfolio.digest,
        "format_version": portfolio.manifest.version,
        "deflated_bytes": portfolio.deflated_bytes,
        "input": portfolio.input_spec.to_json(),
        "provenance": portfolio.manifest.provenance,
        "variants": [
            {
                "name": variant.name,
                "deflated_bytes": variant.deflated_bytes,
                "inflated_bytes": variant.inflated_bytes,
                "codings": _codings(variant),
                "profile": variant.profile.to_json(),
            }
            for variant in portfolio.manifest.variants
        ],
        "integrity": "whole",
    }


def _codings(variant: VariantRecord) -> dict[str, dict[str, int]]:
    """What is stored in each coding: how many tensors, and their bytes before and after."""
    found: dict[str, dict[str, int]] = {}
    for tensor in variant.tensors:
        sums = found.setdefault(tensor.coding, {"tensors": 0, "deflated_bytes": 0, "inflated_bytes": 0})
        sums["tensors"] += 1
        sums["deflated_bytes"] += tensor.deflated
        sums["inflated_bytes"] += tensor.tensor_bytes
    return dict(sorted(found.items()))


def _text(told: dict[str, Any]) -> str:
    from jobs.table import printable, stored_text, variants_text
    from shifter.values import Profile

    spec = told["input"]
    size = f"{spec['channels']} x {spec['height']} x {spec['width']}"
    inflated = sum(v["inflated_bytes"] for v in told["variants"])
    facts = {
        "model": told["model"],
        "images": f"{size}, pixels 0 to {spec['pixel_max']:g}, "
        f"mean {_numbers(spec['mean'])}, deviation {_numbers(spec['std'])}",
        "classes": f"{len(spec['classes'])}: {_few(spec['classes'])}",
        "size": f"{told['deflated_bytes'] / 1000:,.1f} kB deflated, {inflated / 1000:,.1f} kB inflated",
        "format": f"version {told['format_version']}",
        "sha256": told["digest"],
        **told["provenance"],
        "integrity": "every entry matches its sha256, graphs are arithmetic on their tensors alone",
    }
    width = max(map(len, facts))
    profiles = {v["name"]: Profile.from_json(v["profile"]) for v in told["variants"]}
    lines = [printable(f"{key:<{width}}  {value}") for key, value in facts.items()]
    return "\n".join([*lines, variants_text(profiles), stored_text(told["variants"])])


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _few(names: Sequence[str], most: int = 10) -> str:
    return ", ".join([*names[:most], *(["…"] if len(names) > most else [])])


@cli.reports_errors
def main(
    portfolio: Annotated[
        str,
        typer.Argument(
            metavar="PORTFOLIO",
            help="A run's folder, whose current package is meant, or a package (.zip); s3:// as well.",
            show_default=False,
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON document.")] = False,
    version: cli.Version = False,
) -> None:
    """Show what is in a portfolio: its variants, their profiles, and whether it is undamaged."""
    cli.require("inspect", "edge", "deflate")
    from shifter.portfolio.source import Source

    source = Source(portfolio)
    opened = source.open()
    try:
        told = inspect(opened)
    except PackageError as error:
        raise PackageError(f"{source.package()} is damaged: {error}") from None
    print(json.dumps(told, indent=2) if as_json else _text(told))


if __name__ == "__main__":
    cli.run(main)
