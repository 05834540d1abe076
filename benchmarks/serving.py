"""What serving costs and keeps up with, over HTTP. ``benchmarks/README.md`` has the figures.

::

    python -m benchmarks.serving overhead --portfolio digits.zip

Node, client and this process share the cores of one machine.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from benchmarks.comparison import Figure, Row, compared, in_turns, save
from benchmarks.serving_client import Answers, Asked, Client
from benchmarks.serving_node import MODES, Application, Mode, Node, node, of_head
from benchmarks.serving_subject import Subject
from jobs.schedule import Schedule, Segment

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)
Package = Annotated[Path, typer.Option("--portfolio", help="A package (.zip).")]
Modes = Annotated[str, typer.Option(help="proxy, haproxy, or both, comma-separated.")]
Repetitions = Annotated[int, typer.Option(help="Measurements of each way, in turns.")]
Seconds = Annotated[float, typer.Option(help="Of load, in each measurement.")]
Images = Annotated[int, typer.Option(help="In one request; 0: as many as take the largest variant 10 ms.")]
Out = Annotated[Path, typer.Option(help="Rows are added to this file, as JSON lines.")]
RESULTS = Path("benchmarks/results/serving.jsonl")
BOTH = ",".join(MODES)
CLIENTS = 16
TEN_MS = 0.010


def finish(row: Row, out: Path) -> None:
    """Prints and saves it; where files lie is no part of what was measured."""
    print(row, flush=True)
    words = [
        Path(word).name if before in ("--portfolio", "--trace", "--out") else word
        for before, word in pairwise(["", *sys.argv[1:]])
    ]
    save(row, out, " ".join(["python", "-m", "benchmarks.serving", *words]))


def chosen(modes: str) -> list[Mode]:
    """Of a list with commas; raises BadParameter for what is none."""
    for mode in modes.split(","):
        if mode not in MODES:
            raise typer.BadParameter(f"there is no mode {mode!r}: choose of {BOTH}")
    return [mode for mode in MODES if mode in modes.split(",")]


def edge(subject: Subject, name: str = "edge", **settings: Any) -> Application:
    """The edge application; never refreshed, and no more of Ray's CPUs than several of them find."""
    args = {"portfolio": str(subject.path), "cpus": 0.1, "refresh_s": None} | settings
    return Application(name, "serve_app.edge:build", args)


NOOP = Application("noop", "benchmarks.serving_apps:noop", {})


@contextmanager
def serving(mode: Mode, *applications: Application) -> Iterator[tuple[Node, Client]]:
    """A node that runs these, and a client."""
    with node(mode) as started, Client() as client:
        started.deploy(applications)
        yield started, client


def all_answered(answers: Answers) -> Answers:
    """These, once it is known that none failed."""
    failed = answers.status[~answers.ok]
    if failed.size:
        raise RuntimeError(
            f"{failed.size} of {answers.status.size} requests failed: {sorted(set(failed.tolist()))}"
        )
    return answers


@app.command()
def overhead(
    package: Package,
    modes: Modes = BOTH,
    repetitions: Repetitions = 9,
    seconds: Seconds = 3.0,
    out: Out = RESULTS,
) -> None:
    """One client, the smallest variant: p50 of an answer − p50 of the engine alone, ms."""
    subject = Subject(package, images=1)
    smallest = subject.portfolio.names[0]
    engine = subject.engine(smallest)
    for mode in chosen(modes):
        with serving(mode, edge(subject, policy="fixed", variant=smallest)) as (started, client):
            asked = subject.ask(started, "edge")
            one = partial(client.closed, asked, clients=1, seconds=seconds)
            all_answered(one())  # warms up
            pair = in_turns(
                lambda one=one: all_answered(one()).percentile_ms(50),  # type: ignore[misc]
                lambda: 1e3 * float(np.percentile(subject.timed(engine, seconds), 50)),
                repetitions,
            )
        over = Figure.of([served - bare for served, bare in zip(*pair, strict=True)])
        figures = {"served": Figure.of(pair[0]), "engine": Figure.of(pair[1])}
        notes = {"mode": mode, "variant": smallest, "model": subject.model, "body": subject.kind(asked)}
        target = "<= 1.5" if mode == "haproxy" else "<= 5"
        finish(Row(f"ms over the engine, 1 client, p50, {mode}", over, target, figures, notes), out)


@app.command()
def throughput(
    package: Package,
    modes: Modes = BOTH,
    repetitions: Repetitions = 9,
    seconds: Seconds = 3.0,
    out: Out = RESULTS,
) -> None:
    """Requests/s of 16 clients: the smallest variant / a no-op Ray Serve deployment beside it."""
    subject = Subject(package, images=1)
    smallest = subject.portfolio.names[0]
    for mode in chosen(modes):
        with serving(mode, edge(subject, policy="fixed", variant=smallest), NOOP) as (started, client):
            asked = subject.ask(started, "edge")
            empty = Asked(started.url("noop"), {}, asked.body)

            def rate(what: Asked, client: Client = client) -> float:
                return all_answered(client.closed(what, clients=CLIENTS, seconds=seconds)).per_second

            rate(asked), rate(empty)  # warms up
            pair = in_turns(partial(rate, asked), partial(rate, empty), repetitions)
        title = f"requests/s, {CLIENTS} clients, the edge application / a no-op, {mode}"
        notes = {"mode": mode, "variant": smallest, "model": subject.model, "body": subject.kind(asked)}
        finish(compared(title, ">= 0.7", ("edge", "no-op"), pair, **notes), out)


@app.command()
def memory(
    package: Package,
    modes: Modes = BOTH,
    repetitions: Repetitions = 3,
    seconds: Seconds = 3.0,
    out: Out = RESULTS,
) -> None:
    """Memory of an edge node that has served, Ray included, MiB: all processes, and by process."""
    subject = Subject(package, images=1)
    for mode in chosen(modes):
        found: list[dict[str, tuple[float, float]]] = []
        for _ in range(repetitions):
            with serving(mode, edge(subject)) as (started, client):
                all_answered(client.closed(subject.ask(started, "edge"), clients=4, seconds=seconds))
                found.append(started.memory())
        names = sorted({name for one in found for name in one})
        parts = {name: [one[name][1] for one in found if name in one] for name in names}
        figures = {name: Figure.of(values) for name, values in parts.items()}
        figures["the head's part"] = Figure.of(
            [sum(pss for name, (_, pss) in one.items() if of_head(name)) for one in found]
        )
        figures["resident, shared pages as often as they are shared"] = Figure.of(
            [sum(rss for rss, _ in one.values()) for one in found]
        )
        total = Figure.of([sum(pss for _, pss in one.values()) for one in found])
        notes = {
            "mode": mode,
            "model": subject.model,
            "of the head": [name for name in names if of_head(name)],
        }
        title = f"MiB of an edge node with its head, shared pages counted once, {mode}"
        finish(Row(title, total, "", figures, notes), out)


@app.command()
def switch(
    package: Package,
    modes: Modes = BOTH,
    repetitions: Repetitions = 3,
    window_s: Annotated[
        float, typer.Option(help="Before and after a switch that counts as during it.")
    ] = 0.5,
    share: Annotated[float, typer.Option(help="Of what the largest variant carries: the load.")] = 0.3,
    images: Images = 0,
    seconds: Seconds = 30.0,
    out: Out = RESULTS,
) -> None:
    """Steady load, under which `trend` goes from the smallest variant to the largest: p99 about a switch."""
    subject = Subject(package, images=images, at_least_s=TEN_MS)
    largest = subject.portfolio.names[-1]
    for mode in chosen(modes):
        during: list[float] = []
        before: list[float] = []
        after: list[float] = []
        failed, switches, rate = 0, 0, 0.0
        for seed in range(repetitions):
            with serving(mode, edge(subject, policy="fixed", variant=largest)) as (started, client):
                asked = subject.ask(started, "edge")
                rate = share * capacity(client, asked)
                started.deploy([edge(subject, "trend", policy="trend")])
                due = Schedule.of([Segment(seconds, rate)]).due(seed, "even")
                answers = client.open(subject.ask(started, "trend"), due)
                told = started.status("trend")["switches"]
            failed += int((~answers.ok).sum())
            for one in told:
                moment = seconds_of(one["at"]) - answers.began
                about = _window(answers, moment - window_s - one["ms"] / 1e3, moment + window_s)
                earlier = _window(answers, moment - 4 * window_s, moment - window_s - one["ms"] / 1e3)
                later = _window(answers, moment + window_s, moment + 4 * window_s)
                if min(about.sum(), earlier.sum(), later.sum()) < 10:
                    continue  # too near an end, or another switch, to be compared
                switches += 1
                for values, where in ((during, about), (before, earlier), (after, later)):
                    values.append(answers.percentile_ms(99, where))
        if not switches:
            raise RuntimeError("nothing was switched: give it more --seconds, or less --share")
        title = f"p99 during a switch / before, {subject.model}, {mode}"
        notes = {
            "mode": mode,
            "requests/s": rate,
            "images in a request": subject.images,
            "window, s": window_s,
            "failed": failed,
            "p99 after, ms": float(np.median(after)),
        }
        finish(compared(title, "<= 1.5", ("during, ms", "before, ms"), (during, before), **notes), out)
        lost = Row(
            f"requests that failed, {mode}", Figure.of([float(failed)]), "<= 0", {}, {"switches": switches}
        )
        finish(lost, out)


def seconds_of(utc: str) -> float:
    """A time as ``/status`` tells it, on the system's clock."""
    from datetime import datetime

    return datetime.fromisoformat(utc).timestamp()


def _window(answers: Answers, start: float, end: float) -> NDArray[np.bool_]:
    """Requests that were inside at some time between."""
    return (answers.due + answers.seconds >= start) & (answers.due <= end)


def capacity(client: Client, asked: Asked, seconds: float = 3.0) -> float:
    """Requests/s that are answered when the service is never idle."""
    all_answered(client.closed(asked, clients=4, seconds=1.0))
    return all_answered(client.closed(asked, clients=4, seconds=seconds)).per_second


@app.command()
def overload(
    package: Package,
    modes: Modes = BOTH,
    repetitions: Repetitions = 3,
    times: Annotated[float, typer.Option(help="What the smallest variant carries: the overload.")] = 4.0,
    images: Images = 0,
    seconds: Seconds = 20.0,
    out: Out = RESULTS,
) -> None:
    """Four times what the smallest variant carries, then a third of it: accepted, refused, recovered."""
    subject = Subject(package, images=images, at_least_s=TEN_MS, of="smallest")
    smallest = subject.portfolio.names[0]
    for mode in chosen(modes):
        found: dict[str, list[float]] = {}
        with serving(mode, edge(subject, policy="fixed", variant=smallest)) as (started, client):
            carried = capacity(client, subject.ask(started, "edge"))
            objective_ms = math.ceil(10e3 / carried)
            started.deploy([edge(subject, "slo", objective_ms=objective_ms)])
            asked = subject.ask(started, "slo")
            load = [Segment(3, carried / 3), Segment(seconds, times * carried), Segment(10, carried / 3)]
            for seed in range(repetitions):
                for name, value in _overloaded(
                    client.open(asked, Schedule.of(load).due(seed)), load, objective_ms
                ).items():
                    found.setdefault(name, []).append(value)
        figures = {name: Figure.of(values) for name, values in found.items()}
        notes = {
            "mode": mode,
            "model": subject.model,
            "images in a request": subject.images,
            "objective, ms": objective_ms,
            "requests/s that the smallest carries": carried,
        }
        title = f"{times:g}x overload, {subject.model}, {mode}"
        accepted = Row(
            f"p99 of accepted / objective, {title}", figures.pop("accepted"), "<= 2", figures, notes
        )
        finish(accepted, out)
        finish(Row(f"s until all is in time again, {title}", figures["recovery, s"], "<= 2", {}, notes), out)


def _overloaded(answers: Answers, load: list[Segment], objective_ms: float) -> dict[str, float]:
    start = load[0].seconds
    end = start + load[1].seconds
    inside = (answers.due >= start) & (answers.due < end)
    afterwards = answers.due >= end
    late = ~answers.ok | (1e3 * answers.seconds > objective_ms)
    still = answers.due[afterwards & late]
    refused = answers.seconds[inside & (answers.status == 503)]
    others = ~np.isin(answers.status, (200, 503))
    return {
        "accepted": answers.percentile_ms(99, inside) / objective_ms,
        "share accepted": float(answers.ok[inside].mean()),
        "refused, p50, ms": float(1e3 * np.percentile(refused, 50)) if refused.size else 0.0,
        "refused, p99, ms": float(1e3 * np.percentile(refused, 99)) if refused.size else 0.0,
        "neither answered nor refused": float(others.sum()),
        "sent late, p99, ms": float(1e3 * np.percentile(answers.late, 99)),
        "recovery, s": float(still.max() - end) if still.size else 0.0,
    }


@app.command()
def soak(
    package: Package,
    modes: Modes = BOTH,
    minutes: Annotated[float, typer.Option(help="Of load.")] = 30.0,
    share: Annotated[float, typer.Option(help="Of what the largest variant carries: the load's mean.")] = 0.5,
    images: Images = 1,
    out: Out = RESULTS,
) -> None:
    """Load that rises and falls for half an hour: resident memory of the last tenth / of the second one."""
    subject = Subject(package, images=images, at_least_s=TEN_MS)
    for mode in chosen(modes):
        with serving(mode, edge(subject, policy="fixed", variant=subject.portfolio.names[-1])) as (
            started,
            client,
        ):
            carried = capacity(client, subject.ask(started, "edge"))
            started.deploy([edge(subject, "slo")])
            asked = subject.ask(started, "slo")
            tenth = 6 * minutes
            load = [Segment(tenth / 12, share * carried * (0.5 if n % 2 else 1.5)) for n in range(12)]
            resident: list[dict[str, tuple[float, float]]] = []
            failed = requests = 0
            for seed in range(10):
                answers = client.open(asked, Schedule.of(load).due(seed))
                resident.append(started.memory())
                failed += int((~answers.ok).sum())
                requests += answers.ok.size
            switches = len(started.status("slo")["switches"])
        grown = {
            name: resident[-1][name][0] / resident[1][name][0]
            for name in resident[1]
            if name in resident[-1] and not of_head(name)
        }
        replica = next(name for name in grown if "Replica" in name)
        figures = {
            f"{name}, MiB": Figure.of([one[name][0] for one in resident if name in one]) for name in grown
        }
        notes = {
            "mode": mode,
            "model": subject.model,
            "minutes": minutes,
            "requests": requests,
            "failed": failed,
            "switches": switches,
            "grown": grown,
            "MiB of the replica": [one[replica][0] for one in resident],
        }
        title = f"resident memory of the replica, last tenth / second tenth of {minutes:g} minutes, {mode}"
        finish(Row(title, Figure.of([grown[replica]]), "<= 1.05", figures, notes), out)


if __name__ == "__main__":
    from benchmarks import serving_trace

    app.command()(serving_trace.trace)
    app()
