"""What a portfolio's variants take on this machine: for one image, and to be switched to."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from shifter.portfolio import Portfolio
from shifter.switching.engines import Engine, QuickEngine, make_engine, ready
from shifter.switching.samples import ServiceSamples
from shifter.values import Exactness, Latency, Profile, Variant

_WARM_UP = 10
# Milliseconds, accuracy: what is assumed where no portfolio is at hand.
STATED = ((1.0, 0.80), (2.0, 0.85), (4.0, 0.89), (8.0, 0.92), (16.0, 0.94))


@dataclass(frozen=True)
class Measured:
    """Of each variant: service times, hot and when the call before was another's; seconds to switch to it."""

    hot: Mapping[str, ServiceSamples]
    alternating: Mapping[str, ServiceSamples]
    cold: Mapping[str, float]

    def medians(self) -> Measured:
        """Without spread, where other work on the machine is the most of it."""

        def each(times: Mapping[str, ServiceSamples]) -> dict[str, ServiceSamples]:
            return {name: ServiceSamples([np.median(one.seconds)]) for name, one in times.items()}

        return Measured(each(self.hot), each(self.alternating), self.cold)

    def stretched(self, factor: float) -> Measured:
        """Service times that are so many times as long; switches take as long as they did."""

        def each(times: Mapping[str, ServiceSamples]) -> dict[str, ServiceSamples]:
            return {name: ServiceSamples(factor * samples.seconds) for name, samples in times.items()}

        return Measured(each(self.hot), each(self.alternating), self.cold)


def measure(
    portfolio: Portfolio,
    build: Callable[[Variant], Engine] | None = None,
    calls: int = 400,
    switches: int = 5,
) -> Measured:
    """All variants in turns, in this process; switches as `Host` makes them, calls once they are optimised.

    Args:
        build: by default as a service builds, for one core.
    """
    build = build or make_engine()
    image = np.random.default_rng(0).random((1, *portfolio.input_spec.shape)).astype(np.float32)
    engines: dict[str, Engine] = {}
    cold: dict[str, list[float]] = {name: [] for name in portfolio.profiles}
    for _ in range(switches):
        for name in portfolio.profiles:
            began = time.perf_counter()
            engine = ready(portfolio.inflate(name), portfolio.input_spec, build)
            cold[name].append(time.perf_counter() - began)
            engines[name] = engine
    for engine in engines.values():
        if isinstance(engine, QuickEngine):
            engine.optimise()
    alternating: dict[str, list[float]] = {name: [] for name in engines}
    hot: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(calls):
        for name, engine in engines.items():
            alternating[name].append(_timed(engine, image))
    parts = 4  # so that what slows the machine for a while slows all
    for _ in range(parts):
        for name, engine in engines.items():
            for _ in range(_WARM_UP):
                engine.run(image)
            hot[name] += [_timed(engine, image) for _ in range(calls // parts)]
    return Measured(
        {name: ServiceSamples(times) for name, times in hot.items()},
        {name: ServiceSamples(times) for name, times in alternating.items()},
        {name: float(np.median(times)) for name, times in cold.items()},
    )


def _timed(engine: Engine, image: np.ndarray) -> float:
    began = time.perf_counter()
    engine.run(image)
    return time.perf_counter() - began


def taking(profile: Profile, seconds: float) -> Profile:
    """So that the switcher begins with what is true here, as after a calibration."""
    one = 1e3 * seconds
    many = profile.batch_images * one
    return replace(
        profile, latency=Latency(one, one, one, one, 1), batch_latency=Latency(many, many, many, many, 1)
    )


def stated() -> tuple[dict[str, Profile], Measured]:
    """Five variants that nobody measured: `STATED`, no spread, 50 ms to switch to one that is cold."""

    def profile(milliseconds: float, accuracy: float) -> Profile:
        one = Latency(milliseconds, milliseconds, milliseconds, milliseconds, 1)
        return Profile(
            round=0,
            ratio=1.0,
            dense_parameters=1,
            nonzero_parameters=1,
            structural_parameters=1,
            tensor_bytes=4,
            memory_bytes=1 << 20,
            validation_accuracy=accuracy,
            test_accuracy=accuracy,
            latency=one,
            batch_images=1,
            batch_latency=one,
            dense_latency=one,
            exactness=Exactness(0.0, 0.0, 0.0, 1),
        )

    profiles = {f"{milliseconds:g}ms": profile(milliseconds, accuracy) for milliseconds, accuracy in STATED}
    times = {name: ServiceSamples([one.latency.p50_ms / 1e3]) for name, one in profiles.items()}
    return profiles, Measured(times, times, dict.fromkeys(profiles, 0.05))
