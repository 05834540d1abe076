"""The service without Ray and without HTTP: admission, decoding, and what it says of itself.

The event loop only counts and hands over. Bodies are decoded and answers encoded on one thread;
the host infers on a second (the engine releases the GIL); deciding and switching have a third, so
that no request waits for a switch.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

import numpy as np

from serve_app.protocol import answer, decode
from serve_app.settings import Settings
from shifter.errors import OverloadError
from shifter.portfolio import Portfolio
from shifter.switching.host import Switch
from shifter.switching.initialise import initialise
from shifter.switching.policies import Fixed, Slo
from shifter.values import InputSpec

_SHOWN_SWITCHES = 50
_SHOWN_LATENCIES = 1000


class EdgeService:
    """A portfolio being served; an asynchronous context manager, within which it switches.

    Raises:
        PackageError: when made, if an entry of the portfolio is damaged.
        EngineError: when made, if the fixed variant is unknown, or the first one does not run here.
    """

    def __init__(self, portfolio: Portfolio, settings: Settings) -> None:
        self.settings = settings
        self.input_spec: InputSpec = portfolio.input_spec
        self.limits = settings.limits
        self._portfolio = portfolio
        if settings.variant is None:
            self._host = initialise(portfolio, Slo(settings.objective_ms / 1e3), threads=settings.threads)
        else:
            # Nothing is inflated ahead for a policy that never switches.
            self._host = initialise(
                portfolio, Fixed(settings.variant), threads=settings.threads, ahead_bytes=0
            )
        self._refused = 0
        self._answered: Counter[str] = Counter()
        self._latencies: deque[float] = deque(maxlen=_SHOWN_LATENCIES)
        self._pace = 0.0  # seconds of work in the last request answered
        self._codec = ThreadPoolExecutor(1, "codec")
        self._switcher = ThreadPoolExecutor(1, "switcher")
        self._deciding: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._deciding = asyncio.create_task(self._decide())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._deciding is not None
        self._deciding.cancel()
        await asyncio.gather(self._deciding, return_exceptions=True)
        self._switcher.shutdown()
        self._host.close()
        self._codec.shutdown()

    async def _decide(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self.settings.decide_every_s)
            await loop.run_in_executor(self._switcher, self._host.tick)

    def check(self) -> None:
        """Raises what ended the deciding, if anything did: a service that cannot switch is ill."""
        if self._deciding is not None and self._deciding.done():
            self._deciding.result()

    async def predict(self, body: bytes, content_type: str) -> tuple[str, bytes]:
        """The variant that answered, and the answer as JSON.

        Raises:
            RequestError: if the body is not what the model reads.
            OverloadError: at once, if as many requests as allowed are inside already.
        """
        if self._host.queue >= self.settings.max_queue:
            self._refused += 1
            # When those inside will have been answered, at the pace of the last one.
            retry_after_s = max(1, math.ceil(self._host.queue * self._pace))
            raise OverloadError(
                f"{self._host.queue} requests wait already, as many as may: "
                f"ask again in {retry_after_s} s, or send fewer",
                retry_after_s,
            )
        arrived = time.perf_counter()
        loop = asyncio.get_running_loop()
        with self._host.request() as request:
            images, decoding = await loop.run_in_executor(
                self._codec, _timed, decode, body, content_type, self.input_spec, self.limits
            )
            answered = await asyncio.wrap_future(request.submit(images))
            content, encoding = await loop.run_in_executor(
                self._codec, _timed, answer, answered.variant, answered.logits, self.input_spec
            )
            request.overhead = decoding + encoding
        self._pace = request.overhead + answered.seconds
        self._answered[answered.variant] += 1
        self._latencies.append(time.perf_counter() - arrived)
        return answered.variant, content

    def status(self) -> dict[str, Any]:
        """What ``GET /status`` answers; plain data. Times in milliseconds but where they say UTC."""
        host, settings = self._host.status(), self.settings
        latencies = list(self._latencies)
        return {
            "model": self._portfolio.model,
            "portfolio": self._portfolio.digest,
            "active": host.active,
            "reason": host.reason,
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
            "latency_ms": {
                "requests": len(latencies),
                "p50": 1e3 * float(np.percentile(latencies, 50)) if latencies else None,
                "p99": 1e3 * float(np.percentile(latencies, 99)) if latencies else None,
            },
            "answered": dict(self._answered),
            "refused": self._refused,
            "switches": [_switch(switch) for switch in host.switches[-_SHOWN_SWITCHES:]],
            "variants": [
                {"name": name, "active": name == host.active, "ready": name in host.ready, **asdict(profile)}
                for name, profile in self._portfolio.profiles.items()
            ],
        }


def _switch(switch: Switch) -> dict[str, Any]:
    return {
        "at": datetime.fromtimestamp(switch.time, UTC).isoformat(timespec="milliseconds"),
        "from": switch.before,
        "to": switch.after,
        "reason": switch.reason,
        "ms": 1e3 * switch.seconds,
        "ahead": switch.ahead,
        "error": switch.error,
    }


def _timed(function: Any, *arguments: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    return function(*arguments), time.perf_counter() - start
