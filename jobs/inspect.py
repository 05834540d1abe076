"""What is in a portfolio: its variants, their profiles, and whether every byte is as it was packed.

::

    python -m jobs.inspect runs/RUN
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs import cli
from shifter.errors import PackageError

if TYPE_CHECKING:
    from shifter.portfolio import Portfolio


def inspect(portfolio: Portfolio) -> dict[str, Any]:
    """A portfolio as plain data, once every variant has been inflated and checked.

    Raises:
        PackageError: if anything in it is not what its manifest declares.
    """
    portfolio.verify()
    spec = portfolio.input_spec
    return {
        "model": portfolio.model,
        "digest": portfolio.digest,
        "deflated_bytes": portfolio.deflated_bytes,
        "input": spec.to_json(),
        "provenance": portfolio.manifest.provenance,
        "variants": [
            {
                "name": name,
                "inflated_bytes": portfolio.inflated_bytes(name),
                "profile": profile.to_json(),
            }
            for name, profile in portfolio.profiles.items()
        ],
        "integrity": "whole",
    }


def _text(told: dict[str, Any]) -> str:
    from jobs.table import variants_text
    from shifter.values import Profile

    spec = told["input"]
    inflated = sum(v["inflated_bytes"] for v in told["variants"])
    facts = {
        "model": told["model"],
        "images": f"{spec['channels']} x {spec['height']} x {spec['width']}, {len(spec['classes'])} classes",
        "size": f"{told['deflated_bytes'] / 1000:,.1f} kB deflated, {inflated / 1000:,.1f} kB inflated",
        "sha256": told["digest"],
        **told["provenance"],
        "integrity": "every entry matches its sha256",
    }
    width = max(map(len, facts))
    profiles = {v["name"]: Profile.from_json(v["profile"]) for v in told["variants"]}
    lines = [f"{key:<{width}}  {value}" for key, value in facts.items()]
    return "\n".join([*lines, variants_text(profiles)])


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
