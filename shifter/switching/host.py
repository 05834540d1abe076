"""The portfolio in a serving process: answers requests, and changes variant, or portfolio, off their path."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from shifter.errors import EngineError, PackageError
from shifter.heap import trim
from shifter.switching.backoff import Backoff
from shifter.switching.memory import Memory, NoRoomError, building_bytes, smallest, usable
from shifter.switching.policies import choices
from shifter.switching.resident import Build, Deflated, Resident
from shifter.switching.switcher import Decision, Observation, Service, Switcher
from shifter.values import InputSpec

if TYPE_CHECKING:
    from shifter.switching.calibration import Calibration

_REMEMBERED = 1000
_AHEAD_BYTES = 256 << 20
_TRIMS = 2


@dataclass(frozen=True)
class Answer:
    """What a variant answered.

    Args:
        logits: float32 (batch, classes).
        variant: the one that computed them. portfolio: the digest of the portfolio that it is of.
        seconds: of the engine's call.
    """

    logits: NDArray[np.float32]
    variant: str
    seconds: float
    portfolio: str


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
        portfolio: the one that serves. since: seconds since the epoch, when it began to.
        rate: requests per second, as the last decision saw it. queue: requests inside.
        usable: variants that run on this node, within the memory budget.
        ready: variants whose engines exist, the active one included.
        memory_bytes: what packages and engines take (as profiled, the active one included).
        switches: the last ones, oldest first.
    """

    portfolio: Deflated
    since: float
    active: str
    reason: str
    rate: float
    queue: int
    usable: tuple[str, ...]
    ready: tuple[str, ...]
    memory_bytes: int
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

    @property
    def input_spec(self) -> InputSpec:
        """What the portfolio that will answer this request reads."""
        return self._resident.portfolio.input_spec

    def submit(self, images: NDArray[np.float32]) -> Future[Answer]:
        """Queues normalised images, float32 (batch, channels, height, width); once per request.

        The future fails with `EngineError` if they do not fit the network; cancelling it before
        its turn takes them out of the queue.
        """
        assert self._answer is None, "a request is submitted once"
        self._images = len(images)
        self._answer = self._host._compute(self._resident, images)
        return self._answer

    def __enter__(self) -> Self:
        self._resident = self._host._enter()
        return self

    def __exit__(self, *_: object) -> None:
        if self._answer is None:
            self._host._leave(self._resident, None)
        else:  # at once, unless it was given up while being computed
            self._answer.add_done_callback(self._leave)

    def _leave(self, answered: Future[Answer]) -> None:
        if answered.cancelled() or answered.exception() is not None:
            self._host._leave(self._resident, None)
        else:
            answer = answered.result()
            service = Service(answer.variant, self._images, answer.seconds, self.overhead)
            self._host._leave(self._resident, service)


class Host:
    """Holds the deflated portfolio and the active variant's engine, and switches.

    Requests are computed in the order of arrival on ``servers`` threads. Each takes the engine
    that is active when its computation begins, and finishes on it: a switch drops none and delays
    none, and the old engine's memory is given back after its last answer. A request is answered by
    the portfolio that served when it came in, so a newer one is taken over in the same way.

    It switches within `tick`, which the service calls several times a second, off its event loop.
    Neighbours in size of the active variant are inflated ahead, the smaller one first, as far as
    ``ahead_bytes`` and ``memory_bytes`` allow.

    Args:
        portfolio: the variants, deflated.
        switcher: knows those of them that may serve.
        build: makes the engine of an inflated variant. One that can be optimised serves before it is,
            where it is waited for (`shifter.switching.engines.QuickEngine`).
        servers: requests computed at once. The switcher should count on as many.
        memory_bytes: what package and engines may take together at any time, one being built
            and those that requests are still on included; None for no limit. Engines count as in
            their profiles.
        ahead_bytes: what neighbours inflated ahead may take of it; by default what there is, or
            256 MiB if ``memory_bytes`` is None.
        free_memory: bytes that the node has left (`shifter.node.free_memory`), asked at each tick: where
            others take it, a smaller variant serves. None knows nothing of it.
        clock: seconds, for the switcher and durations.

    Raises:
        EngineError, PackageError: if the first variant cannot be inflated or run.
    """

    def __init__(
        self,
        portfolio: Deflated,
        switcher: Switcher,
        build: Build,
        *,
        servers: int = 1,
        memory_bytes: int | None = None,
        ahead_bytes: int | None = None,
        free_memory: Callable[[], int | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._switcher = switcher
        self._build = build
        self._memory = Memory(memory_bytes)
        self._ahead_bytes = (memory_bytes or _AHEAD_BYTES) if ahead_bytes is None else ahead_bytes
        self._free_memory = free_memory
        self._clock = clock
        self._resident = Resident(
            portfolio, switcher.profiles, build, self._memory, self._ahead_bytes, switcher.current
        )
        self._since = time.time()
        self._decision = Decision(switcher.current, "the start", 0.0)
        self._history: deque[Switch] = deque(maxlen=_REMEMBERED)
        self._counting = threading.Lock()
        self._requests = self._queue = 0
        self._services: list[Service] = []
        self._switching = threading.Lock()
        self._gone = self._trims = 0
        self._backoff = Backoff()
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
        return self._resident.active.name

    @property
    def portfolio(self) -> Deflated:
        """The portfolio that serves."""
        return self._resident.portfolio

    def status(self) -> Status:
        """What serves, why, and what was switched; of any thread."""
        here, decision = self._resident, self._decision
        return Status(
            portfolio=here.portfolio,
            since=self._since,
            active=here.active.name,
            reason=decision.reason,
            rate=decision.rate,
            queue=self._queue,
            usable=tuple(here.profiles),
            ready=tuple(here.ready),
            memory_bytes=self._memory.taken,
            switches=tuple(self._history),
        )

    def tick(self) -> Decision:
        """Observes, decides, and does what was decided; returns when it is done.

        Meant for one thread; others wait for their turn. Requests are served meanwhile: a variant
        that was not inflated ahead takes as long as inflating, building and warming up take.
        """
        with self._switching:
            self._resident.optimise()  # what serves since the start, or since a portfolio was taken over
            free = self._free_bytes()
            with self._counting:
                seen = Observation(self._clock(), self._requests, self._queue, tuple(self._services), free)
                self._requests = 0
                self._services = []
            decision = self._switcher.observe(seen)
            if decision.variant != self.active:
                decision = self._switch(decision)
            self._decision = decision
            self._resident.optimise()
            self._inflate_ahead(free)
            self._give_back()
            return self._decision

    def take_over(self, portfolio: Deflated, calibration: Calibration | None = None) -> None:
        """Lets another portfolio serve, from the next request on; returns when it does.

        All of it is checked, its first variant inflated and warmed up, before anything changes:
        that of the active one's name, or else the one that the policy starts with; where both
        portfolios with it exceed the budget, the smallest. What is known of the load stays known.

        Args:
            calibration: what was measured of it on this node; by default its profiles count.

        Raises:
            PackageError: if it is damaged, or reads or tells something else than the one that serves.
            EngineError: if it lacks a fixed variant, does not run here, or does not fit the budget
                beside the old one.
            MemoryError: if there is not enough of it.
            TimeoutError: if requests hold on to the engines of what was dropped.
        """
        _require_same_interface(self._resident.portfolio.input_spec, portfolio.input_spec)
        portfolio.verify()
        with self._switching:
            old, limit = self._resident, self._memory.limit
            profiles = portfolio.profiles if calibration is None else calibration.apply(portfolio.profiles)
            profiles = usable(choices(self._switcher.policy, profiles), portfolio.deflated_bytes, limit)
            switcher = self._switcher.renewed(profiles, calibration)
            old.keep(())
            old.optimise()
            if limit is not None:
                held = old.portfolio.deflated_bytes + old.profiles[old.active.name].memory_bytes
                room = limit - held - portfolio.deflated_bytes
                if building_bytes(switcher.profiles[switcher.current]) > room:
                    switcher.current = smallest(switcher.profiles)
            new = Resident(
                portfolio,
                switcher.profiles,
                self._build,
                self._memory,
                self._ahead_bytes,
                switcher.current,
                beside=(old.portfolio, old.active.engine),
            )
            with self._counting:
                # From here on, what is answered on the old one says nothing of the new one's variants.
                self._resident, self._switcher, self._services = new, switcher, []
            self._since, self._backoff = time.time(), Backoff()
            self._decision = Decision(switcher.current, "a newer portfolio", self._decision.rate)

    def close(self) -> None:
        """Answers what is queued, then ends the threads. A `tick` that waits for memory gives up."""
        self._memory.stop()
        self._servers.shutdown(wait=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def refused(self) -> None:
        """Counts a request that arrived and was turned away, for the switcher: it is load as well."""
        with self._counting:
            self._requests += 1

    def _enter(self) -> Resident:
        with self._counting:
            self._requests += 1
            self._queue += 1
            return self._resident

    def _leave(self, resident: Resident, service: Service | None) -> None:
        with self._counting:
            self._queue -= 1
            if service is not None and resident is self._resident:
                self._services.append(service)

    def _compute(self, resident: Resident, images: NDArray[np.float32]) -> Future[Answer]:
        return self._servers.submit(self._answer, resident, images)

    def _answer(self, resident: Resident, images: NDArray[np.float32]) -> Answer:
        name, engine = resident.active
        begin = self._clock()
        logits = engine.run(images)
        return Answer(logits, name, self._clock() - begin, resident.portfolio.digest)

    def _free_bytes(self) -> int | None:
        """What engines may take, those that exist included: of the budget, and of the node's memory."""
        package, limit, left = (
            self._resident.portfolio.deflated_bytes,
            self._memory.limit,
            self._free_memory(),
        )
        known = [] if limit is None else [limit - package]
        known += [] if left is None else [left + self._memory.taken - package]
        return min(known, default=None)

    def _switch(self, decision: Decision) -> Decision:
        """Does it; returns what serves now, and why."""
        here, begin = self._resident, self._clock()
        ahead = decision.variant in here.ready
        if not ahead:
            # What is ready but neither serves nor will is in the way of what is to come.
            here.keep(())
        for after in here.steps_to(decision.variant):
            before = here.active.name
            error = self._make_ready(after, decision.reason)
            if error is not None:
                self._switcher.current = before
                for each in (after, decision.variant):
                    self._switcher.suspend(each, self._backoff.until(after))
                return Decision(before, f"{after} cannot serve: {error}", decision.rate)
            here.activate(after)
            seconds = self._clock() - begin
            self._history.append(Switch(time.time(), before, after, decision.reason, seconds, ahead))
            if after != decision.variant:  # the step in between is there to make room
                here.keep(())
                here.optimise()
        return decision

    def _make_ready(self, name: str, reason: str) -> str | None:
        """Returns None, or why it failed; then the others serve on without it, for now or for good."""
        here, begin = self._resident, self._clock()
        try:
            here.make_ready(name)
        except (NoRoomError, TimeoutError, MemoryError) as problem:
            # Not the variant's fault: when others have given memory back, it will run.
            self._backoff.failed(name, self._clock())
            error = f"{type(problem).__name__}: {problem}"
        except (EngineError, PackageError) as problem:
            # It will not run next time either.
            for each in here.exclude(name):
                self._switcher.exclude(each, self.active)
            error = f"{type(problem).__name__}: {problem}"
        else:
            self._backoff.worked(name)
            return None
        seconds = self._clock() - begin
        self._history.append(Switch(time.time(), self.active, name, reason, seconds, False, error))
        return error

    def _inflate_ahead(self, free: int | None) -> None:
        here, now = self._resident, self._clock()
        wanted = here.ahead(free)
        here.keep(wanted)
        for name in wanted:
            # Room that requests still take is not waited for.
            if name in here.profiles and self._backoff.until(name) <= now and here.has_room(name):
                self._make_ready(name, "inflated ahead")
                here.optimise()

    def _give_back(self) -> None:
        """The memory of engines that are gone; a tick later again, as one is gone just before its memory."""
        if self._gone != (gone := self._memory.gone):
            self._gone, self._trims = gone, _TRIMS
        if self._trims:
            self._trims -= 1
            trim()


def _require_same_interface(old: InputSpec, new: InputSpec) -> None:
    """What clients send and read must stay: pixels of one shape and range, classes by number and name."""
    if (old.shape, old.pixel_max, old.classes) != (new.shape, new.pixel_max, new.classes):
        raise PackageError(
            f"it reads {_described(new)}; clients of the one that serves send {_described(old)}: "
            "serve it as another application"
        )


def _described(spec: InputSpec) -> str:
    classes = f"{len(spec.classes)} classes ({spec.classes[0]}, …, {spec.classes[-1]})"
    return f"pixels of shape {spec.shape} up to {spec.pixel_max:g} for {classes}"
