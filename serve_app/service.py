"""The service without Ray and without HTTP: inferring, switching, and what it says of itself.

The event loop only counts and hands over. Bodies are decoded and answers encoded on one thread (a small
one that is alone, at once); the host infers on a second (the engine releases the GIL); deciding and
switching have a third, so that no request waits for a switch, and looking for a newer portfolio a fourth.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from serve_app.admission import Admission, Arrival
from serve_app.codec import Codec
from serve_app.observer import Answered, Cause, Observer, tell
from serve_app.secret import Token
from serve_app.settings import Settings
from serve_app.status import Answers, document
from serve_app.upkeep import Upkeep
from shifter.errors import StoreError
from shifter.place import scheme_of
from shifter.portfolio import Portfolio
from shifter.portfolio.source import Source
from shifter.switching.calibration import Calibration, Found, find_calibration
from shifter.switching.engines import make_engine
from shifter.switching.initialise import initialise
from shifter.switching.needs import Needs
from shifter.switching.policies import Fixed, Policy, Slo, Trend
from shifter.switching.providers import CPU
from shifter.switching.refresh import Refresh
from shifter.switching.resident import Deflated
from shifter.values import InputSpec

_T = TypeVar("_T")
Read = Callable[[InputSpec], NDArray[np.float32]]
Write = Callable[[str, NDArray[np.float32], InputSpec], bytes]

_NO_NEEDS = Needs()
# So few numbers are written in less time than another thread takes to be woken.
_LIGHT_LOGITS = 256
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

    It is left when the requests inside are answered, or after half a minute; nobody is let in then.

    Args:
        version: of the portfolio, as its source told it (`shifter.portfolio.source.Source`); without
            it, no newer one is looked for.

    Raises:
        SettingsError: when made, if there is no token where one is said to be.
        PackageError: when made, if an entry of the portfolio is damaged.
        EngineError: when made, if the fixed variant is unknown, the first one does not run here, or
            the memory budget does not hold the smallest.
    """

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Serves the portfolio of ``settings``.

        Raises:
            StoreError: if it cannot be read. SettingsError, PackageError, EngineError: as when made.
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
        self.admin_token = Token.of(settings)
        """Without it, there is no administration."""
        self.model = settings.model or url_safe(portfolio.model)
        """What it is called in paths, whichever portfolio serves."""
        self._engines = make_engine(settings.engine, settings.providers, settings.threads)
        # A look soon follows another: storage that fails is not waited for.
        self._source = Source(settings.portfolio, patience_s=0)
        self._calibrations: dict[str, Found] = {}
        self._host = initialise(
            portfolio,
            _policy(settings),
            build=self._engines,
            max_batch=settings.max_batch,
            memory_bytes=settings.memory_bytes,
            calibration=self._calibrated(portfolio.digest),
        )
        self._refresh: Refresh | None = None
        if version is not None:
            self._refresh = Refresh(
                self._host,
                self._source,
                version,
                calibrated=self._calibrated,
                memory_bytes=settings.memory_bytes,
            )
        self.observers: list[Observer] = []
        self.upkeep = Upkeep(self._host, self._refresh, settings, self.observers)
        self._admission = Admission(self._host, settings, self._tell_refused)
        self._answers = Answers()
        self._codec, self._large = Codec(), Codec()

    async def __aenter__(self) -> Self:
        self.upkeep.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._admission.stopping = True
        await self.upkeep.stop()
        # Those inside are answered first, for which the loop and the threads have to go on.
        end = time.monotonic() + _DRAIN_S
        while self._host.queue and time.monotonic() < end:
            await asyncio.sleep(_DRAIN_POLL_S)
        await asyncio.to_thread(self._shut_down)

    def _shut_down(self) -> None:
        self._host.close()  # what waits for memory in the other threads gives up
        self.upkeep.close()
        self._codec.close()
        self._large.close()

    def _calibrated(self, digest: str) -> Calibration | None:
        if self._engines.kind != "onnxruntime" or self._engines.providers[0] != CPU:
            found = Found(None, "calibrations are of ONNX Runtime on the processor")
        else:
            found = find_calibration(digest, self._source.package(digest), threads=self.settings.threads)
        self._calibrations[digest] = found
        return found.calibration

    def _tell_refused(self, cause: Cause, request_id: str) -> None:
        tell(self.observers, lambda observer: observer.refused(cause, request_id))

    @property
    def ready(self) -> bool:
        """Whether requests are let in: since the first variant answered its warm-up, until it is left."""
        return not self._admission.stopping

    @property
    def portfolio(self) -> Deflated:
        """The portfolio that serves."""
        return self._host.portfolio

    def check(self) -> None:
        """Raises what ended the deciding, if anything did: a service that cannot switch is ill."""
        self.upkeep.check()

    def admit(self, request_id: str = "") -> Arrival:
        """A request whose head has come; to be left when it is answered.

        Raises:
            OverloadError: at once, if it cannot be answered, or not in time.
        """
        arrival = Arrival(self._admission, request_id)
        with arrival:
            self._admission.check()
        return arrival

    async def infer(
        self,
        read: Read,
        write: Write,
        *,
        needs: Needs = _NO_NEEDS,
        request_id: str = "",
        is_light: bool = False,
        spent_s: float = 0.0,
    ) -> Inferred:
        """The answer, and whose it is. Cancelled before its turn, it is not computed.

        Args:
            read: makes the network's input, float32 (images, channels, height, width), of the body.
            write: makes the answer's bytes of the variant's name and its logits, (images, classes).
                Both are given what the portfolio reads, and run where they hold nobody up.
            needs: what is asked of the variant.
            request_id: for the logs.
            is_light: ``read`` takes less time than another thread takes to be woken.
            spent_s: since the body is there, which counts in the deadline.

        Raises:
            RequestError: if the body is not what the model reads, or no variant is what is asked for.
            OverloadError: at once, if there is no room, or it cannot be answered in time.
        """
        self._admission.check()
        arrived = time.perf_counter() - spent_s
        deadline_s = self._admission.left_s(spent_s)
        with self._host.request(needs, deadline_s) as request:
            images, decoding = await self._codec.run(
                is_light and self._is_alone, partial(read, request.input_spec), deadline_s
            )
            answered = await asyncio.wrap_future(request.submit(images))
            content, encoding = await self._codec.run(
                answered.logits.size <= _LIGHT_LOGITS and self._is_alone,
                partial(write, answered.variant, answered.logits, request.input_spec),
            )
            request.overhead = decoding + encoding
        seconds = time.perf_counter() - arrived
        told = Answered(answered.variant, len(images), seconds, answered.seconds, answered.batch, request_id)
        self._answers.add(told)
        tell(self.observers, lambda observer: observer.answered(told))
        return Inferred(content, answered.variant, answered.portfolio)

    async def read_large(self, parse: Callable[[], _T]) -> _T:
        """What is read of a body before it is known what it asks for; one at a time, since it takes many
        times the body's bytes, and few may wait.

        Raises:
            OverloadError: at once, if too many wait.
        """
        with self._admission.reading_large():
            parsed, _ = await self._large.run(False, parse)
            return parsed

    @property
    def _is_alone(self) -> bool:
        """Whether nobody but the request at hand is inside: then waking a thread would take longest.

        With others, what the loop does itself keeps the engine's thread from the interpreter: batches stay
        small, and a request takes half as much again of the processor.
        """
        return self._host.queue <= 1

    def status(self) -> dict[str, Any]:
        """What ``GET /status`` answers."""
        host = self._host.status()
        return document(
            self.model,
            self.settings,
            host,
            engines=self._engines,
            calibration=self._calibrations[host.portfolio.digest].reason,
            refresh=self._refresh,
            admission=self._admission,
            answers=self._answers,
        )


def url_safe(name: str) -> str:
    """``name`` as a segment of a path, with hyphens for what that cannot hold."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:128].strip("-._") or "model"


def _policy(settings: Settings) -> Policy:
    if settings.variant is not None:
        return Fixed(settings.variant)
    return Trend() if settings.objective_ms is None else Slo(settings.objective_ms / 1e3)
