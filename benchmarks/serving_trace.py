"""A real trace of requests over HTTP: policies, fixed variants, an ensemble, and Ray Serve's multiplexing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from benchmarks.comparison import Figure, Row
from benchmarks.serving import (
    BOTH,
    RESULTS,
    TEN_MS,
    Images,
    Modes,
    Out,
    Package,
    capacity,
    chosen,
    edge,
    finish,
    serving,
)
from benchmarks.serving_client import Answers, Client
from benchmarks.serving_node import Application, Mode, Node
from benchmarks.serving_subject import Subject
from shifter.switching.trace import read_trace, scale_to_peak

OVERLOAD = 1.5
"""The peak, in what the largest variant carries."""


def trace(
    package: Package,
    trace: Annotated[Path, typer.Option(help="A CSV file of second,requests.")],
    modes: Modes = BOTH,
    seconds: Annotated[int, typer.Option(help="Of the trace, those with most requests in one go.")] = 300,
    block_s: Annotated[int, typer.Option(help="Seconds that the interval resamples as one.")] = 20,
    images: Images = 0,
    seed: Annotated[int, typer.Option(help="Of arrivals within their seconds.")] = 0,
    out: Out = RESULTS,
) -> None:
    """Effective accuracy (right and in time, over all) and attainment: `slo` − each other way to serve."""
    subject = Subject(package, images=images, at_least_s=TEN_MS)
    counts = busiest(read_trace(trace), seconds)
    for mode in chosen(modes):
        _Trace(subject, counts, mode, block_s, seed, out).judge(trace.stem)


def busiest(counts: NDArray[np.int64], seconds: int) -> NDArray[np.int64]:
    """So many seconds in one go, with the most requests."""
    if seconds >= counts.size:
        return counts
    sums = np.convolve(counts, np.ones(seconds, np.int64), "valid")
    start = int(sums.argmax())
    return counts[start : start + seconds]


def arrivals_of(counts: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
    """When requests are due: each second's, at random within it."""
    seconds = np.repeat(np.arange(counts.size, dtype=np.float64), counts)
    due: NDArray[np.float64] = np.sort(seconds + np.random.default_rng(seed).uniform(size=seconds.size))
    return due


class _Trace:
    def __init__(
        self, subject: Subject, counts: NDArray[np.int64], mode: Mode, block_s: int, seed: int, out: Path
    ) -> None:
        self._subject, self._counts, self._mode, self._out = subject, counts, mode, out
        self._block_s, self._seed = block_s, seed
        profiles = subject.portfolio.profiles
        self._accuracy = {name: profiles[name].test_accuracy for name in subject.portfolio.names}
        self._accuracy["ensemble"] = max(self._accuracy.values())

    def judge(self, called: str) -> None:

        subject, names = self._subject, self._subject.portfolio.names
        rival = {"portfolio": str(subject.path)}
        found: dict[str, Answers] = {}
        fixed = [edge(subject, f"fixed-{name}", policy="fixed", variant=name) for name in names]
        with serving(self._mode, *fixed) as (node, client):
            carries = {name: capacity(client, subject.ask(node, f"fixed-{name}")) for name in names}
            # Ten times the largest's time for a request, as in the simulator's benchmark.
            self._objective = 10 / carries[names[-1]]
            scaled = scale_to_peak(self._counts, OVERLOAD * carries[names[-1]])
            self._due = arrivals_of(scaled, self._seed)
            ways = [
                edge(subject, "slo", objective_ms=1e3 * self._objective),
                edge(subject, "trend", policy="trend"),
                *fixed,
                Application("ensemble", "benchmarks.serving_apps:ensemble", rival),
            ]
            # HAProxy does not choose replicas by model; with one replica there is nothing to choose.
            ways.append(Application("multiplexed", "benchmarks.serving_apps:multiplexed", rival))
            for way in ways:
                node.deploy([way])
                found[way.name] = self._drive(node, client, way.name, carries)
                accuracy, attainment = self._summary(found[way.name])
                print(f"{way.name}: E {accuracy:.4f}, in time {attainment:.4f}", flush=True)
        notes = {
            "mode": self._mode,
            "model": subject.model,
            "images in a request": subject.images,
            "objective, ms": 1e3 * self._objective,
            "requests/s that each carries": carries,
            "requests": int(self._due.size),
            "seconds": int(self._counts.size),
            "failed or refused": {name: int((~one.ok).sum()) for name, one in found.items()},
            "answered by": {name: _shares(one) for name, one in found.items()},
            "block, s": self._block_s,
        }
        for other in (name for name in found if name != "slo"):
            for what, measure in (("E", self._right), ("in time", self._in_time)):
                ours, theirs = (self._blocks(measure(found[name])) for name in ("slo", other))
                figures = {
                    "slo": self._figure(ours),
                    other: self._figure(theirs),
                }
                title = f"{what}(slo) − {what}({other}), {called}, {subject.model}, {self._mode}"
                finish(Row(title, self._figure(ours - theirs), ">= 0", figures, notes), self._out)

    def _drive(self, node: Node, client: Client, way: str, carries: Mapping[str, float]) -> Answers:
        if way == "multiplexed":
            # The largest that carries a fifth more than the last second's load, as `slo` has it.
            most = {name: carries[name] / 1.2 for name in reversed(self._subject.portfolio.names)}
            return client.choosing(self._subject.ask_rival(node, way), self._due, most)
        asked = (self._subject.ask_rival if way == "ensemble" else self._subject.ask)(node, way)
        return client.open(asked, self._due)

    def _in_time(self, answers: Answers) -> NDArray[np.float64]:
        return (answers.ok & (answers.seconds <= self._objective)).astype(np.float64)

    def _right(self, answers: Answers) -> NDArray[np.float64]:
        """Of a variant's answers as many count as right as its test accuracy says."""
        accuracy = np.array([self._accuracy.get(name, 0.0) for name in answers.variant.tolist()])
        right: NDArray[np.float64] = self._in_time(answers) * accuracy
        return right

    def _summary(self, answers: Answers) -> tuple[float, float]:
        return float(self._right(answers).mean()), float(self._in_time(answers).mean())

    def _blocks(self, of_requests: NDArray[np.float64]) -> NDArray[np.float64]:
        block = (self._due // self._block_s).astype(np.int64)
        return np.bincount(block, of_requests, minlength=self._number).astype(np.float64)

    @property
    def _number(self) -> int:
        return int(-(-self._counts.size // self._block_s))

    def _figure(self, blocks: NDArray[np.float64]) -> Figure:
        """Per request, of the whole; the interval by 10,000 resamplings of blocks."""
        requests = self._blocks(np.ones(self._due.size))
        drawn = np.random.default_rng(0).integers(0, blocks.size, (10_000, blocks.size))
        resampled = blocks[drawn].sum(axis=1) / np.maximum(1, requests[drawn].sum(axis=1))
        low, high = np.quantile(resampled, [0.025, 0.975])
        return Figure(float(blocks.sum() / requests.sum()), float(low), float(high), blocks.size)


def _shares(answers: Answers) -> dict[str, float]:
    names, counts = np.unique(answers.variant[answers.ok], return_counts=True)
    return {str(name): float(count / answers.ok.size) for name, count in zip(names, counts, strict=True)}
