"""The portfolio in a serving process: answers requests, and changes variant off their path."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from shifter.errors import EngineError, PackageError
from shifter.switching.engines import Engine, QuickEngine
from shifter.switching.switcher import Decision, Observation, Service, Switcher
from shifter.values import InputSpec, Profile, Variant

_REMEMBERED = 1000
_WARM_UP_RUNS = 1
"""The second run of a session is as fast as any later one, and so is nearly the first."""


class Deflated(Protocol):
    """What the host needs of a portfolio (`shifter.portfolio.Portfolio`)."""

    @property
    def profiles(self) -> Mapping[str, Profile]: ...

    @property
    def input_spec(self) -> InputSpec: ...

    def inflate(self, name: str) -> Variant: ...

    def verify(self) -> None: ...


@dataclass(frozen=True)
class Answer:
    """Logits, float32 (batch, classes), the variant that computed them, and the engine's seconds."""

    logits: NDArray[np.float32]
    variant: str
    seconds: float


@dataclass(frozen=True)
class Switch:
    """One change of variant, or, with ``error``, one that failed and left ``before`` serving.

    Args:
        time: seconds since the epoch, when ``after`` began to serve.
        seconds: from the decision to the first answer possible.
        ahead: whether ``after`` had been inflated ahead.
    """

    time: float
    before: str
    after: str
    reason: str
    seconds: float
    ahead: bool
    error: str | None = None


@dataclass(frozen=True)
class Status:
    """What the host says of itself.

    Args:
        rate: requests per second, as the last decision saw it. queue: requests inside.
        ready: variants whose engines exist, the active one included.
        switches: the last ones, oldest first.
    """

    active: str
    reason: str
    rate: float
    queue: int
    ready: tuple[str, ...]
    switches: tuple[Switch, ...]


class Request:
    """One request inside a `Host`; a context manager that lasts as long as the request is inside.

    ``overhead``: add to it the seconds spent on this request besides the engine's, on the same
    cores (decoding, encoding). The switcher takes it into account.
    """

    def __init__(self, host: Host) -> None:
        self.overhead = 0.0
        self._host = host
        self._images = 0
        self._answer: Future[Answer] | None = None

    def submit(self, images: NDArray[np.float32]) -> Future[Answer]:
        """Queues normalised images, float32 (batch, channels, height, width); once per request.

        The future fails with `EngineError` if they do not fit the network; cancelling it before
        its turn takes them out of the queue.
        """
        assert self._answer is None, "a request is submitted once"
        self._images = len(images)
        self._answer = self._host._compute(images)
        return self._answer

    def __enter__(self) -> Self:
        self._host._enter()
        return self

    def __exit__(self, *_: object) -> None:
        if self._answer is None:
            self._host._leave(None)
        else:  # at once, unless it was given up while being computed
            self._answer.add_done_callback(self._leave)

    def _leave(self, answered: Future[Answer]) -> None:
        if answered.cancelled() or answered.exception() is not None:
            self._host._leave(None)
        else:
            answer = answered.result()
            service = Service(answer.variant, self._images, answer.seconds, self.overhead)
            self._host._leave(service)


class Host:
    """Holds the deflated portfolio and the active variant's engine, and switches.

    Requests are computed in the order of arrival on ``servers`` threads. Each takes the engine
    that is active when its computation begins, and finishes on it: a switch drops none and delays
    none, and the old engine's memory is given back after its last answer.

    It switches within `tick`, which the service calls several times a second, off its event loop.
    Neighbours in size of the active variant are inflated ahead, the smaller one first, as far as
    ``ahead_bytes`` allow (their ``memory_bytes`` added up, the active variant's not counted).

    Args:
        portfolio: the variants, deflated.
        build: makes the engine of an inflated variant.
        servers: requests computed at once. The switcher should count on as many.
        clock: seconds, for the switcher and durations.

    Raises:
        EngineError, PackageError: if the first variant cannot be inflated or run.
    """

    def __init__(
        self,
        portfolio: Deflated,
        switcher: Switcher,
        build: Callable[[Variant], Engine],
        *,
        servers: int = 1,
        ahead_bytes: int = 256 << 20,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._portfolio = portfolio
        self._switcher = switcher
        self._build = build
        self._ahead_bytes = ahead_bytes
        self._clock = clock
        self._profiles: dict[str, Profile] = dict(portfolio.profiles)
        # Replaced as a whole, never changed: who has read it holds a name and an engine that belong together.
        self._active: tuple[str, Engine] = (switcher.current, self._prepare(switcher.current))
        self._ready = {switcher.current: self._active[1]}
        self._decision = Decision(switcher.current, "the start", 0.0)
        self._history: deque[Switch] = deque(maxlen=_REMEMBERED)
        self._counting = threading.Lock()
        self._requests = self._queue = 0
        self._services: list[Service] = []
        self._switching = threading.Lock()
        self._servers = ThreadPoolExecutor(servers, thread_name_prefix="server")

    def request(self) -> Request:
        """A request that arrives: the switcher knows of it from the moment that it is entered."""
        return Request(self)

    @property
    def queue(self) -> int:
        """Requests inside: being decoded, waiting, computed, or encoded."""
        return self._queue

    @property
    def active(self) -> str:
        """The variant that serves."""
        return self._active[0]

    def status(self) -> Status:
        decision, ready, history = self._decision, tuple(self._ready), tuple(self._history)
        return Status(self.active, decision.reason, decision.rate, self._queue, ready, history)

    def tick(self) -> Decision:
        """Observes, decides, and does what was decided; returns when it is done.

        Meant for one thread; others wait for their turn. Requests are served meanwhile: a variant
        that was not inflated ahead takes as long as inflating, building and warming up take.
        """
        with self._switching:
            with self._counting:
                seen = Observation(self._clock(), self._requests, self._queue, tuple(self._services))
                self._requests = 0
                self._services = []
            self._decision = self._switcher.observe(seen)
            if self._decision.variant != self.active:
                self._switch(self._decision)
            self._optimise()
            self._inflate_ahead()
            self._optimise()
            return self._decision

    def close(self) -> None:
        """Answers what is queued, then ends the threads."""
        self._servers.shutdown(wait=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _enter(self) -> None:
        with self._counting:
            self._requests += 1
            self._queue += 1

    def _leave(self, service: Service | None) -> None:
        with self._counting:
            self._queue -= 1
            if service is not None:
                self._services.append(service)

    def _compute(self, images: NDArray[np.float32]) -> Future[Answer]:
        return self._servers.submit(self._answer, images)

    def _answer(self, images: NDArray[np.float32]) -> Answer:
        name, engine = self._active
        begin = self._clock()
        logits = engine.run(images)
        return Answer(logits, name, self._clock() - begin)

    def _prepare(self, name: str) -> Engine:
        """Inflates a variant, builds its engine, and runs it until it is warm."""
        engine = self._build(self._portfolio.inflate(name))
        image = np.zeros((1, *self._portfolio.input_spec.shape), np.float32)
        for _ in range(_WARM_UP_RUNS):
            engine.run(image)
        return engine

    def _switch(self, decision: Decision) -> None:
        begin = self._clock()
        before, after = self.active, decision.variant
        ahead = after in self._ready
        if not ahead:
            # What is ready but neither serves nor will is in the way of what is to come.
            self._keep({before})
        if ahead or self._make_ready(after, decision.reason):
            self._active = (after, self._ready[after])
            seconds = self._clock() - begin
            self._history.append(Switch(time.time(), before, after, decision.reason, seconds, ahead))

    def _make_ready(self, name: str, reason: str) -> bool:
        begin = self._clock()
        try:
            engine = self._prepare(name)
        except (EngineError, PackageError, MemoryError) as problem:
            # It will not run next time either: the others serve on without it.
            self._switcher.exclude(name, self.active)
            del self._profiles[name]
            seconds = self._clock() - begin
            error = f"{type(problem).__name__}: {problem}"
            self._history.append(Switch(time.time(), self.active, name, reason, seconds, False, error))
            return False
        self._ready = {**self._ready, name: engine}
        return True

    def _optimise(self) -> None:
        """What answers quickly after a switch becomes what answers fast; off the path of requests."""
        for engine in self._ready.values():
            if isinstance(engine, QuickEngine):
                engine.optimise()

    def _keep(self, names: set[str]) -> None:
        self._ready = {name: engine for name, engine in self._ready.items() if name in names}

    def _inflate_ahead(self) -> None:
        names = list(self._profiles)
        here = names.index(self.active)
        wanted = []
        room = self._ahead_bytes
        for neighbour in (here - 1, here + 1):
            if 0 <= neighbour < len(names) and self._profiles[names[neighbour]].memory_bytes <= room:
                wanted.append(names[neighbour])
                room -= self._profiles[names[neighbour]].memory_bytes
        self._keep({self.active, *wanted})
        for name in wanted:
            if name not in self._ready:
                self._make_ready(name, "inflated ahead")
