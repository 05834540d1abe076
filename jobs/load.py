"""Open-loop load on a running service, and what it answered.

Requests leave at the times of a schedule whether or not earlier ones have been answered
(`jobs.load_client`). Bodies are encoded before the clock starts and answers are parsed after it
stopped; the client is this process. `jobs.replay` plays traces, with labels and figures for people.

    python -m jobs.load --url http://127.0.0.1:8000 --images images.npy --schedule 5:20,5:60,5:20
"""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from jobs import cli
from jobs.load_client import Log, Target, drive, saturate, temporary_payloads
from jobs.protocols import groups, json_request, read_predict
from jobs.records import save, summarise
from jobs.replay_images import read_pixels
from jobs.schedule import Schedule, parse_schedule
from shifter.errors import DataError, RecipeError


@cli.reports_errors
def main(
    url: Annotated[str, typer.Option(help="Where the service listens, e.g. http://127.0.0.1:8000.")],
    images: Annotated[Path, typer.Option(help="A .npy file of pixels, shape (n, c, h, w).")],
    schedule: Annotated[
        str | None, typer.Option(help="Open loop: SECONDS:REQUESTS_PER_SECOND,…", show_default=False)
    ] = None,
    saturating: Annotated[
        float | None,
        typer.Option("--saturate", help="Closed loop: so many seconds without a pause.", show_default=False),
    ] = None,
    clients: Annotated[int, typer.Option(min=1, help="Of the closed loop.")] = 4,
    per_request: Annotated[int, typer.Option(min=1, help="Images in one request.")] = 1,
    objective_ms: Annotated[float, typer.Option(min=0, help="An answer later than this is late.")] = 100.0,
    seed: Annotated[int, typer.Option(help="Of the random arrivals.")] = 0,
    even: Annotated[bool, typer.Option("--even", help="Even spacing instead of random arrivals.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write the records to this .npz file.", show_default=False)
    ] = None,
    version: cli.Version = False,
) -> None:
    """Put a running service under load; print what it answered, as JSON."""
    cli.require("load", "load", "aiohttp")
    if (schedule is None) == (saturating is None):
        raise RecipeError("give either --schedule, for an open loop, or --saturate, for a closed one")
    pixels = read_pixels(images)
    if out is not None and not out.absolute().parent.is_dir():
        raise DataError(f"the records cannot be written to {out}: there is no folder {out.parent}")
    target = Target(url.rstrip("/"))
    due: list[float] = []
    most = len(pixels)
    if schedule is not None:
        due = Schedule.of(parse_schedule(schedule)).due(seed, "even" if even else "poisson").tolist()
        most = len(due)
    asked = groups(most, per_request, len(pixels))
    requests = [json_request(pixels[list(indices)]) for indices in asked]
    with temporary_payloads() as payloads:
        log = Log(payloads)
        if saturating is None:
            asyncio.run(drive(target, due, requests, log))
        else:
            asyncio.run(saturate(target, saturating, clients, requests, log))
        recording = log.recording(asked, read_predict, keep_logits=True)
    if out is not None:
        save(recording, out)
    summary = asdict(summarise(recording.records, objective_ms / 1e3))
    # Of nothing there is no percentile; JSON has no NaN.
    told = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in summary.items()}
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    cli.run(main)
