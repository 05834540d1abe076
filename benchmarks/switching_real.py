"""The simulator beside a real run: a `Host` in this process, no HTTP, a short trace in real time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benchmarks.comparison import Figure, Row
from benchmarks.service_samples import measure, taking
from shifter.portfolio import Portfolio
from shifter.switching.engine import OnnxEngine
from shifter.switching.figures import Figures
from shifter.switching.host import Answer, Host
from shifter.switching.samples import ServiceSamples
from shifter.switching.simulator import SwitchCosts, simulate
from shifter.switching.switcher import Switcher
from shifter.switching.trace import SECOND, draw_requests, read_trace, scale_to_peak
from shifter.values import Variant

MAX_QUEUE, DECIDE_EVERY = 64, 0.1  # the service's defaults
_WARM_UP = 300


@dataclass
class Served:
    """What came of each request of a real run, in the order of arrival.

    Args:
        latency: seconds from when it was due; NaN if it was refused. engine: of the engine's call.
        late: seconds by which it was sent late, which is the client's fault.
    """

    latency: list[float] = field(default_factory=list)
    engine: list[float] = field(default_factory=list)
    variant: list[str] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    switches: int = 0

    def effective_accuracy(self, objective: float, accuracy: dict[str, float]) -> float:
        """As `Figures` has it."""
        right = sum(
            accuracy[name]
            for name, one in zip(self.variant, self.latency, strict=True)
            if one <= objective  # of NaN, no
        )
        return right / len(self.latency)


def serve(host: Host, due: list[float], image: np.ndarray) -> Served:
    """Sends each request when it is due, and lets the host decide as a service does."""
    count = len(due)
    served = Served([np.nan] * count, [np.nan] * count, [""] * count, [0.0] * count)
    stop = threading.Event()

    def decide() -> None:
        while not stop.wait(DECIDE_EVERY):
            host.tick()

    deciding = threading.Thread(target=decide)
    began = time.perf_counter()

    def note(index: int) -> Callable[[Future[Answer]], None]:
        def answered(future: Future[Answer]) -> None:
            answer = future.result()
            served.latency[index] = time.perf_counter() - began - due[index]
            served.engine[index], served.variant[index] = answer.seconds, answer.variant

        return answered

    deciding.start()
    last: Future[Answer] | None = None
    try:
        for index, moment in enumerate(due):
            left = moment - (time.perf_counter() - began)
            if left > 0:
                time.sleep(left)
            served.late[index] = time.perf_counter() - began - moment
            if host.queue < MAX_QUEUE:
                with host.request() as request:
                    last = request.submit(image)
                    last.add_done_callback(note(index))
        if last is not None:
            last.result()
    finally:
        stop.set()
        deciding.join()
    served.switches = sum(switch.error is None for switch in host.status().switches)
    return served


class Stretched:
    """An engine that sleeps until it has taken so many seconds: what a larger network would look like."""

    def __init__(self, engine: OnnxEngine, seconds: float) -> None:
        self._engine, self._seconds = engine, seconds

    def run(self, images: np.ndarray) -> np.ndarray:
        until = time.perf_counter() + self._seconds
        logits = self._engine.run(images)
        time.sleep(max(0.0, until - time.perf_counter()))
        return logits


def overhead(make_host: Callable[[], Host], image: np.ndarray) -> float:
    """Seconds of a server's time that a request costs besides the engine's: queued one behind another."""

    def answer(count: int) -> tuple[list[Answer], float]:
        began = time.perf_counter()
        futures = []
        for _ in range(count):
            with host.request() as request:
                futures.append(request.submit(image))
        return [future.result() for future in futures], time.perf_counter() - began

    with make_host() as host:
        answer(_WARM_UP)
        answers, taken = answer(_WARM_UP)
    return max(0.0, (taken - sum(answer.seconds for answer in answers)) / len(answers))


def validate(
    trace: Annotated[Path, typer.Option(help="A CSV file of second,requests.")],
    package: Annotated[Path, typer.Option("--portfolio", help="A package.")],
    name: Annotated[str, typer.Option("--policy", help="As shifter.switching.policies has it.")] = "slo",
    objective_ms: Annotated[
        float | None, typer.Option(help="By default ten times the largest variant's mean service time.")
    ] = None,
    start: Annotated[int, typer.Option(help="The first second of the trace that is served.")] = 0,
    seconds: Annotated[int, typer.Option(help="How many are.")] = 60,
    stretch: Annotated[
        float, typer.Option(help="Above 1, each call sleeps until it has taken so many times its time.")
    ] = 1.0,
    runs: Annotated[int, typer.Option(help="With other arrivals each.")] = 3,
    out: Annotated[Path, typer.Option(help="Rows are added to this file, as JSON lines.")] = Path(
        "benchmarks/results/switching.jsonl"
    ),
) -> None:
    """Latencies of a real run, and of its simulation with the service times measured before, and in it."""
    from benchmarks.switching_trace import OVERLOAD, finish, the_policy

    portfolio = Portfolio.open(package.read_bytes())
    plain = {name: samples.mean for name, samples in measure(portfolio).hot.items()}

    def build(variant: Variant) -> OnnxEngine | Stretched:
        engine = OnnxEngine(variant.graph, variant.tensors)
        return engine if stretch <= 1 else Stretched(engine, stretch * plain[variant.name])

    measured = measure(portfolio, build)
    profiles = {
        name: taking(profile, measured.hot[name].mean) for name, profile in portfolio.profiles.items()
    }

    def make_host() -> Host:
        return Host(portfolio, Switcher(profiles, the_policy(name, objective)), build)

    mean = measured.hot[list(profiles)[-1]].mean
    objective = objective_ms / 1e3 if objective_ms else 10 * mean
    part = read_trace(trace)[start : start + seconds]
    requests = scale_to_peak(part, OVERLOAD / mean)
    image = np.zeros((1, *portfolio.input_spec.shape), np.float32)
    beside = overhead(make_host, image)

    figures: dict[str, list[float]] = {}
    ratios: dict[str, list[float]] = {}
    for seed in range(runs):
        due, _ = draw_requests(requests, seed)
        with make_host() as host:
            served = serve(host, (due / SECOND).tolist(), image)
        answered = np.array(served.latency)[~np.isnan(served.latency)]
        real = {
            f"{what} ms": 1e3 * float(np.percentile(answered, level))
            for what, level in (("p50", 50), ("p90", 90), ("p99", 99))
        } | {
            "E": served.effective_accuracy(
                objective, {name: one.test_accuracy for name, one in profiles.items()}
            ),
            "shed": float(np.isnan(served.latency).sum()),
            "switches": float(served.switches),
            "sent late, p99 ms": 1e3 * float(np.percentile(served.late, 99)),
        }
        seen = {
            name: _seen(served, name) or measured.hot[name]  # those that did not serve are not known
            for name in profiles
        }
        for how, times in (("measured before", measured.hot), ("seen in the run", seen)):
            simulated = simulate(
                profiles,
                requests,
                the_policy(name, objective),
                objective=objective,
                services=times,
                overhead=beside,
                costs=SwitchCosts(measured.cold),
                max_queue=MAX_QUEUE,
                decide_every=DECIDE_EVERY,
                seed=seed,
            )
            for what, value in _quantiles(simulated).items():
                figures.setdefault(f"{what}, {how}", []).append(value)
                if what.endswith("ms"):
                    ratios.setdefault(f"{what[:3]}, times {how}", []).append(value / real[what])
        for what, value in real.items():
            figures.setdefault(f"{what}, real", []).append(value)
    shown = {what: Figure.of(values) for what, values in figures.items()}
    for what, figure in shown.items():
        print(f"{what}: {figure}", flush=True)
    notes = {
        "trace": trace.name,
        "portfolio": portfolio.digest,
        "seconds": f"{start} to {start + part.size}",
        "requests": int(requests.sum()),
        "policy": name,
        "objective, ms": 1e3 * objective,
        "overhead, ms": 1e3 * beside,
        "stretch": stretch,
    }
    for what, values in ratios.items():
        row = Row(f"simulated / real latency, {what}, {portfolio.model}", Figure.of(values), "", shown, notes)
        finish(row, out)


def _seen(served: Served, name: str) -> ServiceSamples | None:
    seconds = [one for one, who in zip(served.engine, served.variant, strict=True) if who == name]
    return ServiceSamples(seconds) if seconds else None


def _quantiles(figures: Figures) -> dict[str, float]:
    return {
        "p50 ms": 1e3 * figures.latency_p50,
        "p99 ms": 1e3 * figures.latency_p99,
        "E": figures.effective_accuracy,
        "shed": float(figures.shed),
        "switches": float(figures.switches),
    }
