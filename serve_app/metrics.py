"""What a service does, as metrics of the Ray cluster, whose nodes show them to Prometheus.

Ray puts ``ray_`` before every name and ``_total`` behind a counter's, and Serve labels all with
``application``, ``deployment`` and ``replica``. `docs/observability.md` lists them.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import permutations
from typing import Any, Final, get_args

from ray.serve import metrics

from serve_app.observer import Answered, Cause
from serve_app.reasons import FAILURES, Reason, failure, reason
from serve_app.settings import Settings
from serve_app.tally import (
    ENGINE_BOUNDS,
    IMAGES_BOUNDS,
    LATENCY_BOUNDS,
    SWITCH_BOUNDS,
    Binned,
    Tally,
)
from shifter.switching.host import Status, Switch

_EXPORT_S: Final = 1.0
"""Ray reports every 10 s by default, and forgets a gauge that was not set for twice as long."""


class Metrics:
    """An observer that exports: rare things at once, requests and gauges once a second, at a tick.

    Ray's counters take a few microseconds of a request's path, and a value of its histograms 17 more in
    the node's agent, which besides sums the buckets' midpoints instead of the values. So requests are
    counted here, and a histogram is made of counters: exact, and at no cost per request.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._objective_s = math.inf if settings.objective_ms is None else settings.objective_ms / 1e3
        self._exported = -math.inf
        self._known: tuple[str, ...] = ()
        self._served: tuple[str, str] | None = None
        self._counting = threading.Lock()
        self._tally = Tally(self._objective_s)

        self._answered = _Counter("requests_answered", "Requests answered.", "variant")
        self._images = _Counter("images_answered", "Images in requests answered.", "variant")
        self._late = _Counter("requests_late", "Requests answered later than the objective.")
        self._refused = _Counter("requests_refused", "Requests that got no answer.", "cause")
        self._latency = _Histogram(
            "request_latency_seconds", "From a request's arrival to its answer.", LATENCY_BOUNDS
        )
        self._engine = _Histogram(
            "engine_call_seconds", "A call of the engine, of one batch.", ENGINE_BOUNDS, "variant"
        )
        self._batches = _Histogram("engine_call_images", "Images in a call of the engine.", IMAGES_BOUNDS)
        self._switches = _Counter("switches", "Changes of variant.", "from_variant", "to_variant", "reason")
        self._failures = _Counter(
            "switch_failures", "Variants that could not be made ready.", "to_variant", "cause"
        )
        self._switching = _Histogram(
            "switch_seconds",
            "From the decision to the first answer possible; with ahead=false that is inflating, "
            "building and warming up.",
            SWITCH_BOUNDS,
            "ahead",
        )

        self._queue = _Gauge("queue_requests", "Requests inside the replica.")
        self._queue_limit = _Gauge("queue_limit_requests", "Requests that may be inside.")
        self._arrivals = _Gauge("arrivals_per_second", "Requests arriving, as the policy estimates them.")
        self._active = _Gauge("variant_active", "1 for the variant that serves, else 0.", "variant")
        self._resident = _Gauge("variant_resident", "1 for a variant that is inflated, else 0.", "variant")
        self._bytes = _Gauge("resident_bytes", "What packages and engines take.")
        self._package_bytes = _Gauge("package_bytes", "What the deflated portfolio takes of it.")
        self._active_bytes = _Gauge("active_variant_bytes", "What the engine that serves takes of it.")
        self._budget = _Gauge("budget_bytes", "What all may take; absent without a budget.")
        self._objective = _Gauge("objective_seconds", "The latency objective; absent without one.")
        self._portfolio = _Gauge("portfolio_info", "1 for the portfolio that serves.", "model", "digest")
        self._ready = _Gauge("ready", "1 while a variant serves; absent once the service decides no more.")

        for cause in get_args(Cause):
            self._refused.add(0, cause)
        self._late.add(0)
        self._latency.add(Binned(LATENCY_BOUNDS))
        self._batches.add(Binned(IMAGES_BOUNDS))
        for ahead in ("true", "false"):
            self._switching.add(Binned(SWITCH_BOUNDS), ahead)

    def answered(self, answered: Answered) -> None:
        with self._counting:
            self._tally.add(answered)

    def refused(self, cause: Cause, request_id: str) -> None:
        with self._counting:
            self._tally.refused[cause] += 1

    def switched(self, switch: Switch) -> None:
        if switch.error is not None:
            self._failures.add(1, switch.after, failure(switch.error))
            return
        self._switches.add(1, switch.before, switch.after, reason(switch.reason))
        took = Binned(SWITCH_BOUNDS)
        took.add(switch.seconds)
        self._switching.add(took, "true" if switch.ahead else "false")

    def ticked(self, status: Status) -> None:
        now = self._clock()
        if now - self._exported >= _EXPORT_S:
            self._exported = now
            self._begin(tuple(status.portfolio.profiles))
            self._export_requests()
            self._export_state(status)

    def _begin(self, variants: tuple[str, ...]) -> None:
        """Series begin with 0: of one that begins with 1, Prometheus would not see the first."""
        new = [name for name in variants if name not in self._known]
        for name in new:
            self._answered.add(0, name)
            self._images.add(0, name)
            self._engine.add(Binned(ENGINE_BOUNDS), name)
            for cause in FAILURES:
                self._failures.add(0, name, cause)
        if new:
            for before, after, why in _likely(variants):
                self._switches.add(0, before, after, why)
        self._known = (*self._known, *new)

    def _export_requests(self) -> None:
        with self._counting:
            tally, self._tally = self._tally, Tally(self._objective_s)
        for variant, requests in tally.answered.items():
            self._answered.add(requests, variant)
            self._images.add(tally.images[variant], variant)
        for cause, requests in tally.refused.items():
            self._refused.add(requests, cause)
        self._late.add(tally.late)
        self._latency.add(tally.latency)
        self._batches.add(tally.batches)
        for variant, calls in tally.engine.items():
            self._engine.add(calls, variant)

    def _export_state(self, status: Status) -> None:
        portfolio, profiles = status.portfolio, status.portfolio.profiles
        self._queue.set(status.queue)
        self._queue_limit.set(self._settings.max_queue)
        self._arrivals.set(status.rate)
        for name in self._known:
            self._active.set(name == status.active, name)
            self._resident.set(name in status.ready, name)
        self._bytes.set(status.memory_bytes)
        self._package_bytes.set(portfolio.deflated_bytes)
        if status.active in profiles:
            self._active_bytes.set(profiles[status.active].memory_bytes)
        if self._settings.memory_bytes is not None:
            self._budget.set(self._settings.memory_bytes)
        if self._objective_s < math.inf:
            self._objective.set(self._objective_s)
        served = (portfolio.model, portfolio.digest)
        if self._served not in (None, served):
            self._portfolio.set(0, *self._served)
        self._portfolio.set(1, *served)
        self._served = served
        self._ready.set(status.active in status.ready)


def _likely(variants: Sequence[str]) -> Iterator[tuple[str, str, Reason]]:
    """The switches that are to be expected, between variants given smallest first."""
    for before, after in permutations(range(len(variants)), 2):
        for why in ("room", "pinned") if after > before else ("load", "memory", "pinned"):
            yield variants[before], variants[after], why


class _Counter:
    """A counter whose labels are given by position, and to which 0 can be added."""

    def __init__(self, name: str, text: str, *labels: str) -> None:
        self._labels = labels
        keys: Any = labels  # annotated as if there could be but one
        self._counter = metrics.Counter(f"shifter_{name}", text, keys)

    def add(self, amount: float, *values: str) -> None:
        # Not inc(), which refuses 0.
        self._counter._record(amount, dict(zip(self._labels, values, strict=True)))


class _Gauge:
    """A gauge whose labels are given by position."""

    def __init__(self, name: str, text: str, *labels: str) -> None:
        self._labels = labels
        keys: Any = labels
        self._gauge = metrics.Gauge(f"shifter_{name}", text, keys)

    def set(self, value: float, *values: str) -> None:
        self._gauge.set(float(value), dict(zip(self._labels, values, strict=True)))


class _Histogram:
    """What Prometheus calls a histogram: cumulative counters by upper bound ``le``, a sum and a count."""

    def __init__(self, name: str, text: str, bounds: tuple[float, ...], *labels: str) -> None:
        self._buckets = _Counter(f"{name}_bucket", text, *labels, "le")
        self._sum = _Counter(f"{name}_sum", text, *labels)
        self._count = _Counter(f"{name}_count", text, *labels)
        self._bounds = [*(f"{bound:g}" for bound in bounds), "+Inf"]

    def add(self, binned: Binned, *values: str) -> None:
        seen = 0.0
        for bound, count in zip(self._bounds, binned.counts, strict=True):
            seen += count
            self._buckets.add(seen, *values, bound)
        self._sum.add(binned.total, *values)
        self._count.add(seen, *values)
