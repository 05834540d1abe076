"""Measures a portfolio's variants on this node, so that a service here need not trust their profiles.

::

    python -m jobs.calibrate runs/RUN

A profile is of the machine that trained. What is measured here is written beside the package, or
into the user's cache, where a service of this package on this node finds it when it starts.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs import cli
from jobs.console import Console, Style
from jobs.progress import clock
from shifter.errors import PackageError

if TYPE_CHECKING:
    from jobs.node_times import Say
    from shifter.portfolio import Portfolio
    from shifter.switching.calibration import Calibration

_BUSY = 0.5
"""Load average from which on other programs are worth a warning."""


def calibrate(
    portfolio: Portfolio, threads: tuple[int, ...], batch_limit: int, samples: int, say: Say
) -> tuple[Calibration, dict[str, str]]:
    """Measures every variant in this process.

    Args:
        threads: of one call, ascending.

    Returns:
        The calibration, and why each variant that is not in it does not run here.

    Raises:
        PackageError: if anything in the portfolio is not what its manifest declares.
        EngineError: if no variant runs here.
    """
    from jobs.node_times import Plan, batch_sizes, measure_variants
    from jobs.table import printable
    from shifter.node import this_node
    from shifter.switching.calibration import Calibration

    portfolio.verify()
    plan = Plan(threads, batch_sizes(batch_limit), samples)
    node = this_node()
    say(
        f"{len(portfolio.names)} variants of {printable(portfolio.model)} on {node}; images in a call: "
        f"{_list(plan.batches)}; threads: {_list(threads)}. If the profiles are right here, this "
        f"takes about {clock(plan.seconds(portfolio.profiles))}"
    )
    load = os.getloadavg()[0]
    if load >= _BUSY:
        say(
            f"other programs keep {load:.1f} cores busy (load average), which makes every time longer: "
            "calibrate when only those run that will run beside the service"
        )
    variants, refused = measure_variants(portfolio, plan, say)
    measured = datetime.now(UTC).replace(microsecond=0)
    return Calibration(portfolio=portfolio.digest, node=node, measured=measured, variants=variants), refused


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
    threads: Annotated[
        list[int] | None,
        typer.Option(
            help="Cores that one call may use, as a service's 'threads' says. May be repeated.",
            min=1,
            max=1024,
            show_default="1, and all",
        ),
    ] = None,
    batch_limit: Annotated[
        int, typer.Option(help="Measure 1, 2, 4, 8, … images in a call, up to so many.", min=1, max=4096)
    ] = 16,
    samples: Annotated[
        int, typer.Option(help="Calls of one image that are timed; fewer of several images.", min=10)
    ] = 200,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write this file and no other. Services only look where it is written without.",
            dir_okay=False,
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON document.")] = False,
    progress: cli.Progress = Style.AUTO,
    version: cli.Version = False,
) -> None:
    """Measure a portfolio's variants on this node; a service here trusts that more than their profiles."""
    cli.require("calibrate", "edge", "deflate", "onnxruntime")
    from shifter.portfolio.source import Source
    from shifter.switching.calibration import calibration_paths

    source = Source(portfolio)
    opened, package = source.open(), source.package()
    chosen = tuple(sorted(set(threads or (1, len(os.sched_getaffinity(0))))))
    with Console.open(progress) as console:
        try:
            calibration, refused = calibrate(opened, chosen, batch_limit, samples, console.say)
        except PackageError as error:
            raise PackageError(f"{package} is damaged: {error}") from None
    paths = [out] if out is not None else calibration_paths(opened.digest, package, calibration.node)
    written = calibration.write(paths)
    if as_json:
        told: dict[str, Any] = {"written": str(written), "refused": refused}
        print(json.dumps({**told, "calibration": json.loads(calibration.to_json())}, indent=2))
    else:
        from jobs.calibration_text import calibration_text

        print(calibration_text(opened, calibration, refused, written, found_by_services=out is None))


def _list(numbers: tuple[int, ...]) -> str:
    *first, last = map(str, numbers)
    return f"{', '.join(first)} and {last}" if first else last


if __name__ == "__main__":
    cli.run(main)
