"""Drives a running service with a trace, and tells how right and how timely its answers were.

An open loop: requests leave when they are due, whether or not the service keeps up, and latencies
count from then. Real images with their labels; the client runs in a process of its own.

::

    python -m jobs.replay trace.csv --url http://127.0.0.1:8000 --images test.npz --peak-rps 200 --slo-ms 100
    python -m jobs.replay bursts:20:200:10:2:60 --url http://127.0.0.1:8000 --images test.npz
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from jobs import cli, replay_images, replay_plan, replay_probe, replay_process, replay_trace
from jobs._load_client import most_files
from jobs.console import Console, Style, results_only_on_stdout
from jobs.load_client import CAUSES, Fate, Target
from jobs.protocols import Protocol, reader
from jobs.records import Recording, save
from jobs.replay_figures import Figures, figures, late_bound_s, service_switches, to_json
from jobs.replay_progress import watching
from jobs.replay_text import text
from shifter.errors import DataError, RecipeError, ServiceError

MISSED = 3
"""Exit status of a run whose attainment is below ``--require-attainment``."""

_ASK_S = 10.0


def _address(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise RecipeError(f"--url {url!r} is no address of a service: one like http://127.0.0.1:8000 is")
    return url.rstrip("/")


def _check_outputs(*paths: Path | None) -> None:
    for path in paths:
        if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
            why = "it is a folder" if path.is_dir() else f"there is no folder {path.parent}"
            raise DataError(f"{path} cannot be written: {why}")


def _objective_s(given_ms: float | None, service: replay_probe.Service) -> float:
    objective_ms = given_ms if given_ms is not None else service.objective_ms
    if objective_ms is None:
        raise RecipeError("the service does not tell its latency objective: give one with --slo-ms")
    if not 0 < objective_ms < 1e9:
        raise RecipeError(f"--slo-ms {objective_ms:g}: it must be above 0")
    return objective_ms / 1e3


def _status(url: str) -> Mapping[str, Any] | None:
    try:
        return replay_probe.get_status(url, _ASK_S)
    except ServiceError:
        return None  # the load has told what there is to tell


def _document(
    settings: Mapping[str, Any],
    recording: Recording,
    told: Figures,
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any] | None,
) -> dict[str, Any]:
    def brief(status: Mapping[str, Any] | None) -> dict[str, Any]:
        return {key: (status or {}).get(key) for key in ("model", "portfolio", "active", "policy")}

    return {
        "settings": settings,
        "began": recording.began,
        "trustworthy": not told.client.doubts,
        **to_json(told),
        "service": {
            "before": brief(before),
            "after": brief(after),
            "switches": service_switches(before, after, recording.began),
        },
    }


@cli.reports_errors
def main(
    trace: Annotated[
        str,
        typer.Argument(
            help="A CSV file of second,requests or minute,requests rows; or a shape: poisson:RATE:SECONDS, "
            "ramp:FROM:TO:SECONDS, bursts:LOW:HIGH:EVERY_S:LASTING_S:SECONDS, steps:SECONDS:RATE,…",
            metavar="TRACE",
            show_default=False,
        ),
    ],
    url: Annotated[str, typer.Option(help="Where the service listens, e.g. http://127.0.0.1:8000.")],
    images: Annotated[
        Path,
        typer.Option(
            help="A .npz (images, labels) or .npy of pixels (n, c, h, w), a .parquet file, or a folder "
            "with a folder of images for each class."
        ),
    ],
    labels: Annotated[
        Path | None,
        typer.Option(
            help="Of arrays: a .npy, or a text of one number a line. Of files: the names of all classes, "
            "one a line, in the model's order; by default those that there are, in alphabetical order.",
            show_default=False,
        ),
    ] = None,
    columns: Annotated[str, typer.Option(help="Of Parquet.", metavar="IMAGE,LABEL")] = "image,label",
    distinct: Annotated[
        int, typer.Option(min=1, help="Different images at most, drawn at random; sent again and again.")
    ] = 2000,
    per_request: Annotated[
        int, typer.Option("--images-per-request", min=1, help="Images in one request.")
    ] = 1,
    protocol: Annotated[
        Protocol,
        typer.Option(
            help="POST /predict with image files as they are, and arrays as JSON; all as JSON; or v2's "
            "binary tensors."
        ),
    ] = Protocol.PREDICT,
    model: Annotated[
        str | None,
        typer.Option(help="Its name in v2, by default the one in /status.", show_default=False),
    ] = None,
    min_accuracy: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Ask for answers of such a variant only.", show_default=False),
    ] = None,
    rate_scale: Annotated[
        float | None, typer.Option(help="So many times the trace's requests a second.", show_default=False)
    ] = None,
    peak_rps: Annotated[
        float | None,
        typer.Option(help="Instead: scale them so that the highest is this.", show_default=False),
    ] = None,
    start: Annotated[float, typer.Option(help="Begin so many seconds into the trace.")] = 0.0,
    seconds: Annotated[
        float | None,
        typer.Option(help="Play so many seconds of the trace.  [default: all]", show_default=False),
    ] = None,
    speed: Annotated[
        float,
        typer.Option(
            help="The trace's time passes so many times faster; requests a second stay as they are, so "
            "there are fewer in all."
        ),
    ] = 1.0,
    even: Annotated[
        bool, typer.Option("--even", help="Even spacing within each second instead of random.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of arrivals and of the images' order.")] = 0,
    slo_ms: Annotated[
        float | None,
        typer.Option(
            help="An answer later than this after its request was due is late.  [default: the service's]",
            show_default=False,
        ),
    ] = None,
    timeout_s: Annotated[
        float, typer.Option(min=0.001, help="A request without an answer for so long has failed.")
    ] = 30.0,
    max_in_flight: Annotated[
        int,
        typer.Option(min=1, help="Requests at a time; what is due beyond is not sent, and told as such."),
    ] = 1000,
    require_attainment: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="End with status 3 if less of the requests are in time.", show_default=False
        ),
    ] = None,
    as_json: Annotated[
        Path | None,
        typer.Option(
            "--json",
            help="Write all figures and the timeline; - is stdout.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Write an HTML page with plots.", metavar="FILE", show_default=False)
    ] = None,
    records: Annotated[
        Path | None,
        typer.Option(help="Write a record of each request, .npz.", metavar="FILE", show_default=False),
    ] = None,
    progress: cli.Progress = Style.AUTO,
    version: cli.Version = False,
) -> None:
    """Drive a running service with a trace of requests; tell accuracy, timeliness, latency, variants.

    Effective accuracy counts an answer that is right and in time, over all that was asked. The status is
    0 if the run was carried out, 1 if the service could not be reached or something given is wrong.
    """
    cli.require("replay", "load", "aiohttp", "PIL")
    if plot is not None:
        cli.require("replay --plot", "report", "plotly", "jinja2")
    url = _address(url)
    to_stdout = as_json is not None and str(as_json) == "-"
    _check_outputs(None if to_stdout else as_json, plot, records)
    if max_in_flight > most_files():
        raise RecipeError(
            f"--max-in-flight {max_in_flight}: this process may have {most_files()} connections at most, by "
            "ulimit -Hn"
        )
    image_column, _, label_column = columns.partition(",")
    if not image_column or not label_column:
        raise RecipeError(f"--columns {columns!r}: two names are wanted, as in image,label")
    schedule = replay_trace.cut(replay_trace.read(trace), start, seconds)
    schedule = replay_trace.play(schedule, rate_scale=rate_scale, peak_rps=peak_rps, speed=speed)
    due = schedule.due(seed, "even" if even else "poisson")
    if not due.size:
        raise RecipeError(
            f"{schedule.requests:.2g} requests are expected in {schedule.total_s:g} s, and none is drawn: "
            "give more with --rate-scale"
        )

    with results_only_on_stdout() as show, Console.open(_plain(progress)) as console:
        service = replay_probe.ask(url, model, _ASK_S)
        slo_s = _objective_s(slo_ms, service)
        chosen = replay_images.read(
            images, labels, columns=(image_column, label_column), most=distinct, seed=seed
        )
        asked, requests = replay_plan.requests(
            chosen, service, protocol, per_request=per_request, count=len(due)
        )
        headers = {} if min_accuracy is None else {"X-Shifter-Min-Accuracy": f"{min_accuracy:g}"}
        read = reader(protocol)
        logits = replay_probe.try_one(url, requests[0], headers, per_request, read, timeout_s)
        if logits is not None:
            replay_probe.check_labels(chosen, logits.shape[1])
        total_s = max(schedule.total_s, float(due[-1]))
        console.say(f"{trace}: {replay_trace.shape_of(due.tolist(), total_s)}")
        console.say(
            f"{len(requests):,} different requests of {per_request} of {len(chosen):,} images"
            f"{'' if chosen.labels is not None else ' without labels, so that no accuracy is known'}; "
            f"objective {1e3 * slo_s:g} ms; the client may be {1e3 * late_bound_s(slo_s):.3g} ms late"
        )
        before = _status(url)
        target = Target(url, headers, timeout_s, max_in_flight)
        with watching(progress, console, total_s) as watch:
            recording = replay_process.drive(target, due.tolist(), requests, asked, read, watch)
        after = _status(url)
        told = figures(recording, chosen.labels, slo_s, total_s)
        switches = service_switches(before, after, recording.began)

        settings = {
            "trace": trace,
            "url": url,
            "images": str(images),
            "protocol": protocol.value,
            "images_per_request": per_request,
            "min_accuracy": min_accuracy,
            "rate_scale": rate_scale,
            "peak_rps": peak_rps,
            "start": start,
            "seconds": seconds,
            "speed": speed,
            "even": even,
            "seed": seed,
            "slo_ms": 1e3 * slo_s,
            "timeout_s": timeout_s,
            "max_in_flight": max_in_flight,
        }
        document = json.dumps(_document(settings, recording, told, before, after), indent=1, allow_nan=False)
        if records is not None:
            save(recording, records)
        if plot is not None:
            from jobs.replay_plot import render

            plot.write_text(render(f"{trace} on {url}", told, slo_s, switches), "utf-8")
        if as_json is not None and not to_stdout:
            as_json.write_text(document + "\n", "utf-8")
        show(document if to_stdout else text(told, slo_s, switches))
    if told.failed.get(CAUSES[Fate.NO_CONNECTION]) == told.offered:
        raise ServiceError(f"no request reached the service at {url}: it has gone since it was asked")
    if require_attainment is not None and not told.slo_attainment >= require_attainment:
        print(
            f"the attainment is {told.slo_attainment:.2%}, and --require-attainment asks for "
            f"{require_attainment:.2%}",
            file=sys.stderr,
        )
        raise typer.Exit(MISSED)


def _plain(style: Style) -> Style:
    """On a terminal the load has a display of its own."""
    return Style.PLAIN if style is Style.AUTO else style


if __name__ == "__main__":
    cli.run(main)
