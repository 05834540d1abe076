"""The service without Ray and without HTTP: admission, decoding, and what it says of itself.

The event loop only counts and hands over. Bodies are decoded and answers encoded on one thread;
the host infers on a second (the engine releases the GIL); deciding and switching have a third, so
that no request waits for a switch, and looking for a newer portfolio a fourth.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from serve_app.observer import Answered, Observer
from serve_app.settings import Settings
from shifter.errors import OverloadError, StoreError
from shifter.place import scheme_of
from shifter.portfolio import Portfolio
from shifter.portfolio.source import Source
from shifter.switching.calibration import Calibration, Found, find_calibration
from shifter.switching.engines import make_engine
from shifter.switching.host import Switch
from shifter.switching.initialise import initialise
from shifter.switching.policies import Fixed, Policy, Slo, Trend
from shifter.switching.providers import CPU
from shifter.switching.refresh import Refresh
from shifter.switching.resident import Deflated
from shifter.values import InputSpec

Read = Callable[[InputSpec], NDArray[np.float32]]
Write = Callable[[str, NDArray[np.float32], InputSpec], bytes]

_SHOWN_SWITCHES = 50
_SHOWN_LATENCIES = 1000
_DRAIN_S = 30.0
_DRAIN_POLL_S = 0.01


@dataclass(frozen=True)
class Inferred:
    """An answer as bytes, the variant that computed it, and the digest of the variant's portfolio."""

    content: bytes
    variant: str
    portfolio: str


class EdgeService:
    """A portfolio being served; an asynchronous context manager, within which it switches.

    It is left when the requests inside are answered, or after half a minute.

    Args:
        version: of the portfolio, as its source told it (`shifter.portfolio.source.Source`); without
            it, no newer one is looked for.

    Raises:
        PackageError: when made, if an entry of the portfolio is damaged.
        EngineError: when made, if the fixed variant is unknown, the first one does not run here, or
            the memory budget does not hold the smallest.
    """

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Serves the portfolio of ``settings``.

        Raises:
            StoreError: if it cannot be read. PackageError, EngineError: as when made.
        """
        source = Source(settings.portfolio)
        try:
            version = source.version()  # first: should a newer one come in between, it is found later
            portfolio = source.open()
        except StoreError as error:
            if scheme_of(settings.portfolio) or Path(settings.portfolio).is_absolute():
                raise
            begins = "begins where the node was started ('ray start') or 'serve run' was called"
            raise StoreError(f"{error}; a relative path {begins}") from error
        return cls(portfolio, settings, version)

    def __init__(self, portfolio: Portfolio, settings: Settings, version: str | None = None) -> None:
        self.settings = settings
        self.limits = settings.limits
        self._engines = make_engine(settings.engine, settings.providers, settings.threads)
        # A look soon follows another: storage that fails is not waited for.
        self._source = Source(settings.portfolio, patience_s=0)
        self._calibrations: dict[str, Found] = {}
        self._host = initialise(
            portfolio,
            _policy(settings),
            build=self._engines,
            memory_bytes=settings.memory_bytes,
            calibration=self._calibrated(portfolio.digest),
        )
        self._refresh: Refresh | None = None
        if version is not None and settings.refresh_s is not None:
            self._refresh = Refresh(
                self._host,
                self._source,
                version,
                calibrated=self._calibrated,
                memory_bytes=settings.memory_bytes,
            )
        self.observers: list[Observer] = []
        self._told = 0.0  # when the last switch was that observers were told of
        self._refused = 0
        self._answered: Counter[str] = Counter()
        self._latencies: deque[float] = deque(maxlen=_SHOWN_LATENCIES)
        self._pace = 0.0  # seconds of work in the last request answered
        self._codec = ThreadPoolExecutor(1, "codec")
        self._switcher = ThreadPoolExecutor(1, "switcher")
        self._refresher = ThreadPoolExecutor(1, "refresher")
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._repeat(self.settings.decide_every_s, self._switcher, self._tick)
        if self._refresh is not None and self.settings.refresh_s is not None:
            self._repeat(self.settings.refresh_s, self._refresher, self._refresh.look)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # Those inside are answered first, for which the loop and the threads have to go on.
        end = time.monotonic() + _DRAIN_S
        while self._host.queue and time.monotonic() < end:
            await asyncio.sleep(_DRAIN_POLL_S)
        await asyncio.to_thread(self._shut_down)

    def _shut_down(self) -> None:
        self._host.close()  # what waits for memory in the other threads gives up
        self._refresher.shutdown()
        self._switcher.shutdown()
        self._codec.shutdown()

    def _calibrated(self, digest: str) -> Calibration | None:
        if self._engines.kind != "onnxruntime" or self._engines.providers[0] != CPU:
            found = Found(None, "calibrations are of ONNX Runtime on the processor")
        else:
            found = find_calibration(digest, self._source.package(digest), threads=self.settings.threads)
        self._calibrations[digest] = found
        return found.calibration

    def _repeat(self, every_s: float, thread: ThreadPoolExecutor, action: Callable[[], object]) -> None:
        async def repeat() -> None:
            loop = asyncio.get_running_loop()
            while True:
                await asyncio.sleep(every_s)
                await loop.run_in_executor(thread, action)

        self._tasks.append(asyncio.create_task(repeat()))

    def _tick(self) -> None:
        self._host.tick()
        if self.observers:
            status = self._host.status()
            new = [switch for switch in status.switches if switch.time > self._told]
            self._told = max((switch.time for switch in new), default=self._told)
            for observer in self.observers:
                for switch in new:
                    observer.switched(switch)
                observer.ticked(status)

    @property
    def portfolio(self) -> Deflated:
        """The portfolio that serves."""
        return self._host.portfolio

    @property
    def input_spec(self) -> InputSpec:
        """What the portfolio that serves reads."""
        return self._host.portfolio.input_spec

    def check(self) -> None:
        """Raises what ended the deciding, if anything did: a service that cannot switch is ill."""
        for task in self._tasks:
            if task.done():
                task.result()

    def admit(self, request_id: str = "") -> None:
        """To be asked before a body is read, too.

        Raises:
            OverloadError: at once, if as many requests as allowed are inside already.
        """
        if self._host.queue >= self.settings.max_queue:
            self._refused += 1
            self._host.refused()
            for observer in self.observers:
                observer.refused("queue", request_id)
            # When those inside will have been answered, at the pace of the last one.
            retry_after_s = max(1, math.ceil(self._host.queue * self._pace))
            raise OverloadError(
                f"{self._host.queue} requests wait already, as many as may: "
                f"ask again in {retry_after_s} s, or send fewer",
                retry_after_s,
            )

    async def infer(self, read: Read, write: Write, *, request_id: str = "") -> Inferred:
        """The answer, and whose it is.

        Args:
            read: makes the network's input, float32 (images, channels, height, width), of the body.
            write: makes the answer's bytes of the variant's name and its logits, (images, classes).
                Both run on the codec's thread, and are given what the portfolio reads.
            request_id: for the logs.

        Raises:
            RequestError: if the body is not what the model reads.
            OverloadError: at once, if as many requests as allowed are inside already.
        """
        self.admit(request_id)
        arrived = time.perf_counter()
        loop = asyncio.get_running_loop()
        with self._host.request() as request:
            images, decoding = await loop.run_in_executor(self._codec, _timed, read, request.input_spec)
            answered = await asyncio.wrap_future(request.submit(images))
            content, encoding = await loop.run_in_executor(
                self._codec, _timed, write, answered.variant, answered.logits, request.input_spec
            )
            request.overhead = decoding + encoding
        self._pace = request.overhead + answered.seconds
        self._answered[answered.variant] += 1
        seconds = time.perf_counter() - arrived
        self._latencies.append(seconds)
        told = Answered(answered.variant, len(images), seconds, answered.seconds, len(images), request_id)
        for observer in self.observers:
            observer.answered(told)
        return Inferred(content, answered.variant, answered.portfolio)

    def status(self) -> dict[str, Any]:
        """What ``GET /status`` answers; plain data. Times in milliseconds but where they say UTC."""
        host, settings = self._host.status(), self.settings
        latencies = list(self._latencies)
        looked = self._refresh.last if self._refresh else None
        return {
            "model": host.portfolio.model,
            "portfolio": host.portfolio.digest,
            "since": _utc(host.since),
            "refresh": {
                "every_s": None if self._refresh is None else settings.refresh_s,
                "checked": _utc(looked.time) if looked else None,
                "error": looked.error if looked else None,
            },
            "active": host.active,
            "reason": host.reason,
            "engine": {
                "name": self._engines.kind,
                "threads": self._engines.threads,
                "providers": list(self._engines.providers),
                "absent": dict(self._engines.absent),
            },
            "calibration": self._calibrations[host.portfolio.digest].reason,
            "policy": {
                "name": settings.policy,
                "variant": settings.variant,
                "objective_ms": settings.objective_ms,
            },
            "load": {
                "requests_per_s": host.rate,
                "queue": host.queue,
                "max_queue": settings.max_queue,
            },
            "memory": {
                "budget_bytes": settings.memory_bytes,
                "taken_bytes": host.memory_bytes,
                "deflated_bytes": host.portfolio.deflated_bytes,
            },
            "latency_ms": {
                "requests": len(latencies),
                "p50": 1e3 * float(np.percentile(latencies, 50)) if latencies else None,
                "p99": 1e3 * float(np.percentile(latencies, 99)) if latencies else None,
            },
            "answered": dict(self._answered),
            "refused": self._refused,
            "switches": [_switch(switch) for switch in host.switches[-_SHOWN_SWITCHES:]],
            "variants": [
                {
                    "name": name,
                    "active": name == host.active,
                    "ready": name in host.ready,
                    "usable": name in host.usable,
                    **asdict(profile),
                }
                for name, profile in host.portfolio.profiles.items()
            ],
        }


def _switch(switch: Switch) -> dict[str, Any]:
    return {
        "at": _utc(switch.time),
        "from": switch.before,
        "to": switch.after,
        "reason": switch.reason,
        "ms": 1e3 * switch.seconds,
        "ahead": switch.ahead,
        "error": switch.error,
    }


def _utc(time: float) -> str:
    return datetime.fromtimestamp(time, UTC).isoformat(timespec="milliseconds")


def _policy(settings: Settings) -> Policy:
    if settings.variant is not None:
        return Fixed(settings.variant)
    return Trend() if settings.objective_ms is None else Slo(settings.objective_ms / 1e3)


def _timed(function: Any, *arguments: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    return function(*arguments), time.perf_counter() - start
