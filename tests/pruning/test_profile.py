"""Profiles count what is there and time every variant alike."""

from __future__ import annotations

import itertools
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shifter.errors import EngineError
from shifter.pruning.memory import measure_memory
from shifter.pruning.profile import (
    TURN,
    WARM_UP,
    accuracy,
    count_parameters,
    measure_alternating,
    measure_latencies,
    order_interval,
    parameter_names,
    summarise,
)
from shifter.switching.engine import OnnxEngine

from .networks import random_network


class Scripted:
    """An engine that answers from a list, and remembers in which order engines were called."""

    def __init__(self, name="", answers=None, log=None):
        self.name, self.answers, self.log = name, answers, log

    def run(self, images):
        if self.log is not None:
            self.log.append(self.name)
            return images
        return self.answers[images[:, 0, 0, 0].astype(int)]


def test_accuracy_counts_every_image_once_whatever_the_batch():
    rng = np.random.default_rng(0)
    answers = rng.normal(size=(23, 4)).astype(np.float32)
    labels = rng.integers(0, 4, 23)
    images = np.arange(23, dtype=np.float32).reshape(-1, 1, 1, 1)
    expected = float((answers.argmax(axis=1) == labels).mean())
    for batch in (1, 5, 23, 100):
        assert accuracy(Scripted(answers=answers), images, labels, batch) == expected


def test_every_engine_gets_its_samples_in_turns_after_a_warm_up():
    log: list[str] = []
    ticks = itertools.count()
    engines = {name: Scripted(name, log=log) for name in ("a", "b")}
    found = measure_latencies(
        engines, np.zeros((1, 1, 1, 1), np.float32), 25, clock=lambda: next(ticks) / 1000
    )
    assert {name: latency.samples for name, latency in found.items()} == {"a": 25, "b": 25}
    turns = [(name, len(list(calls))) for name, calls in itertools.groupby(log)]
    assert turns == [(n, WARM_UP + t) for t in (TURN, TURN, 5) for n in ("a", "b")]
    assert found["a"].p50_ms == pytest.approx(1.0)


def test_the_interval_holds_the_median_and_p99_is_a_time_that_was_taken():
    times = list(np.random.default_rng(0).lognormal(size=200))
    latency = summarise(times)
    assert latency.p50_low_ms < latency.p50_ms < latency.p50_high_ms < latency.p99_ms
    assert latency.p99_ms in times
    assert sum(t > latency.p99_ms for t in times) <= 2


def test_the_interval_covers_the_true_median_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(400):
        latency = summarise(list(rng.exponential(size=60)))
        hits += latency.p50_low_ms <= np.log(2) <= latency.p50_high_ms
    assert hits / 400 >= 0.93


def test_alternating_calls_are_never_twice_the_same_engine_in_a_row():
    log: list[str] = []
    ticks = itertools.count()
    engines = {name: Scripted(name, log=log) for name in "abc"}
    found = measure_alternating(
        engines, np.zeros((1, 1, 1, 1), np.float32), 12, clock=lambda: next(ticks) / 1000
    )
    assert "".join(log) == "abc" * 13, "the first round warms up"
    assert {latency.samples for latency in found.values()} == {12}
    assert found["c"].p50_ms == pytest.approx(1.0)


@pytest.mark.parametrize(("samples", "low", "high"), [(10, 8, None), (367, 358, None), (368, 359, 367)])
def test_p99_has_an_upper_bound_only_where_enough_samples_know_it(samples, low, high):
    assert order_interval(samples, 0.99) == (low, high)
    latency = summarise([float(i + 1) for i in range(samples)])
    assert latency.p99_low_ms == low + 1
    assert latency.p99_high_ms == (None if high is None else high + 1)


@given(st.integers(1, 400), st.sampled_from([0.1, 0.5, 0.9, 0.99]))
def test_an_interval_is_the_tightest_that_misses_as_rarely_as_it_says(n, q):
    at_most = np.cumsum([comb(n, k) * q**k * (1 - q) ** (n - k) for k in range(n + 1)])  # P(N <= k)
    low, high = order_interval(n, q)
    # The sample of rank r (from 0) is above the quantile if at most r samples lie below it.
    assert [r for r in range(n) if at_most[r] <= 0.025 + 1e-12][-1:] == ([] if low is None else [low])
    assert [r for r in range(n) if at_most[r] >= 0.975 - 1e-12][:1] == ([] if high is None else [high])


def test_the_interval_of_p99_covers_it_as_often_as_it_says():
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(400):
        latency = summarise(list(rng.exponential(size=600)))
        hits += latency.p99_low_ms <= np.log(100) <= latency.p99_high_ms
    assert hits / 400 >= 0.93


def test_parameters_are_counted_without_running_statistics():
    architecture, tensors, _ = random_network("resnet", 0)
    names = parameter_names(architecture)
    assert set(tensors) - set(names) == {n for n in tensors if n.endswith(("running_mean", "running_var"))}
    tensors[names[0]][:] = 0
    total, nonzero = count_parameters(tensors[name] for name in names)
    assert total == sum(tensors[name].size for name in names)
    assert nonzero == total - tensors[names[0]].size


def hoard(graph, tensors):
    """An engine that keeps as many bytes as its graph says."""
    return Hoarder(np.ones(int(graph), np.uint8))


class Hoarder:
    def __init__(self, kept):
        self.kept = kept

    def run(self, images):
        return images


@pytest.mark.parametrize("megabytes", [20, 60])
def test_memory_is_what_a_fresh_process_grows_by(megabytes):
    images = np.zeros((1, 1, 2, 2), np.float32)
    found = measure_memory(hoard, str(megabytes << 20).encode(), {}, images)
    assert found == pytest.approx(megabytes << 20, rel=0.2)


def test_memory_of_an_engine_is_measured_and_a_failure_is_told():
    architecture, tensors, images = random_network("vgg", 3)
    assert measure_memory(OnnxEngine, architecture, tensors, images) > sum(a.nbytes for a in tensors.values())
    with pytest.raises(EngineError, match=r"could not be measured: .*EngineError"):
        measure_memory(OnnxEngine, b"no graph", {}, images)
