"""The portfolio in a serving process: answers requests, and changes variant, or portfolio, off their path."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Self

from shifter.errors import EngineError, OverloadError
from shifter.switching.changes import Changes
from shifter.switching.interface import require_same_interface
from shifter.switching.job import Answer, Call, Job
from shifter.switching.line import Line
from shifter.switching.memory import Memory, NotNowError, Reservation, building_bytes, servable, smallest
from shifter.switching.needs import Needs
from shifter.switching.pace import Pace
from shifter.switching.policies import choices
from shifter.switching.request import Request
from shifter.switching.resident import PATIENCE_S, Build, Deflated, Resident
from shifter.switching.status import Status, Switch
from shifter.switching.switcher import Decision, Observation, Service, Switcher

if TYPE_CHECKING:
    from shifter.switching.calibration import Calibration

__all__ = ["Answer", "Host", "Request", "Status", "Switch"]

_AHEAD_BYTES = 256 << 20
MAX_BATCH = 8
"""As many as profiles measure at once, unless their recipe says otherwise: up to there, times are known."""


class Host:
    """Holds the deflated portfolio and the active variant's engine, and switches.

    Requests are computed in the order of arrival on ``servers`` threads; those that wait when one
    becomes free are computed together, as far as their deadlines allow (`shifter.switching.batching`).
    Each takes the engine that is active when its computation begins, and finishes on it: a switch
    drops none and delays none, and the old engine's memory is given back after its last answer. A
    request is answered by the portfolio that served when it came in, so a newer one is taken over in
    the same way.

    It switches within `tick`, which the service calls several times a second, off its event loop.
    Neighbours in size of the active variant are inflated ahead, the smaller one first, as far as
    ``ahead_bytes`` and ``memory_bytes`` allow. A request that needs another variant gets one that is
    ready, or one is inflated for it, beside what serves the others, and kept for a minute.

    Args:
        portfolio: the variants, deflated.
        switcher: knows those of them that may serve.
        build: makes the engine of an inflated variant. One that can be optimised serves before it is,
            where it is waited for (`shifter.switching.engines.QuickEngine`).
        servers: requests computed at once. The switcher should count on as many.
        max_batch: images of one call, of several requests; a request with more is computed alone.
        memory_bytes: what package and engines may take together at any time, one being built
            and those that requests are still on included; None for no limit. Engines count as in
            their profiles.
        ahead_bytes: what neighbours inflated ahead may take of it; by default what there is, or
            256 MiB if ``memory_bytes`` is None.
        free_memory: bytes that the node has left (`shifter.node.free_memory`), asked at each tick: where
            others take it, a smaller variant serves. None knows nothing of it.
        clock: seconds, for the switcher, deadlines and durations.

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
        max_batch: int = MAX_BATCH,
        memory_bytes: int | None = None,
        ahead_bytes: int | None = None,
        free_memory: Callable[[], int | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if max_batch < 1:
            raise EngineError(f"max_batch is at least 1: {max_batch}")
        self._switcher = switcher
        self._build = build
        self._memory = Memory(memory_bytes)
        self._ahead_bytes = (memory_bytes or _AHEAD_BYTES) if ahead_bytes is None else ahead_bytes
        self._clock = clock
        self._changes = Changes(self._memory, free_memory, clock)
        self._resident = self._inflated(portfolio, switcher)
        self._since = time.time()
        self._decision = Decision(switcher.current, "the start", 0.0)
        self._pinned: str | None = None
        self._counting = threading.Lock()
        self._requests = self._queue = self._undecoded = 0
        self._services: list[Service] = []
        self._switching = threading.Lock()
        self._taking_over = threading.Lock()
        self._inflater = ThreadPoolExecutor(1, thread_name_prefix="inflater")
        self._line = Line(servers, max_batch, clock, self._meet_later, self._learn)

    def request(self, needs: Needs = Needs(), deadline_s: float | None = None) -> Request:  # noqa: B008 - frozen
        """A request that arrives: the switcher knows of it from the moment that it is entered.

        Args:
            needs: what it asks of the variant that answers it.
            deadline_s: seconds from then on within which it is to be answered, or else refused.
        """
        return Request(self, needs, deadline_s)

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

    def wait_s(self, images: int = 1) -> float:
        """Predicted seconds until a request of so many images that came now would be answered."""
        here = self._resident
        return here.pace.overhead + self._line.wait_s(here, images, self._undecoded)

    def status(self) -> Status:
        """What serves, why, and what was switched; of any thread."""
        here, decision = self._resident, self._decision
        waiting, computing, _ = self._line.counts
        return Status(
            portfolio=here.portfolio,
            since=self._since,
            active=here.active.name,
            reason=decision.reason,
            pinned=self._pinned,
            rate=decision.rate,
            queue=self._queue,
            waiting=waiting,
            computing=computing,
            usable=tuple(here.profiles),
            ready=tuple(here.ready),
            memory_bytes=self._memory.taken,
            switches=tuple(self._changes.switches),
            inflations=tuple(self._changes.inflations),
        )

    def pin(self, variant: str | None) -> None:
        """From the next tick on, this variant serves whatever the load, until another is pinned, or None.

        Where the node's memory does not hold it, smaller ones serve meanwhile. A portfolio without it
        is not taken over.

        Raises:
            NeedsError: if there is no such variant, or it cannot serve on this node.
        """
        if variant is not None:
            self._resident.able(Needs(variant))
        self._pinned = variant

    def tick(self) -> Decision:
        """Observes, decides, and does what was decided; returns when it is done.

        Meant for one thread; others wait for their turn. Requests are served meanwhile: a variant
        that was not inflated ahead takes as long as inflating, building and warming up take.
        """
        with self._switching:
            here = self._resident
            here.optimise()  # what serves since the start, or since a portfolio was taken over
            free = self._changes.free_bytes(here)
            _, computing, calls = self._line.counts
            with self._counting:
                queue = max(0, self._queue - (computing - calls))
                seen = Observation(self._clock(), self._requests, queue, tuple(self._services), free)
                self._requests = 0
                self._services = []
            self._switcher.pinned = self._pinned
            decision = self._switcher.observe(seen)
            if decision.variant != self.active:
                decision = self._switch(decision)
            self._decision = decision
            here.optimise()
            self._changes.inflate_ahead(here, self._switcher, free)
            self._changes.give_back()
            return self._decision

    def take_over(self, portfolio: Deflated, calibration: Calibration | None = None) -> None:
        """Lets another portfolio serve, from the next request on; returns when it does.

        All of it is checked, its first variant inflated and warmed up, before anything changes, and
        while the old one goes on switching: that of the active one's name, or else the one that the
        policy starts with; where both portfolios with it exceed the budget, the smallest. What is known
        of the load stays known.

        Args:
            calibration: what was measured of it on this node; by default its profiles count.

        Raises:
            PackageError: if it is damaged, or reads or tells something else than the one that serves.
            EngineError: if it lacks a fixed variant or does not run here.
            NotNowError: if it does not fit the budget beside the old one, or lacks a pinned variant.
            MemoryError: if there is not enough of it.
            TimeoutError: if requests hold on to the engines of what was dropped.
        """
        require_same_interface(self._resident.portfolio.input_spec, portfolio.input_spec)
        portfolio.verify()
        with self._taking_over:
            try:
                self._replace(portfolio, calibration)
            finally:
                self._changes.expect(None)

    def _replace(self, portfolio: Deflated, calibration: Calibration | None) -> None:
        limit = self._memory.limit
        profiles = portfolio.profiles if calibration is None else calibration.apply(portfolio.profiles)
        profiles = servable(self._switcher.policy, profiles, portfolio.deflated_bytes, limit)
        with self._switching:
            old = self._resident
            switcher = self._switcher.renewed(profiles, calibration)
            old.keep(())
            old.optimise()
            if limit is not None:
                held = old.portfolio.deflated_bytes + old.profiles[old.active.name].memory_bytes
                room = limit - held - portfolio.deflated_bytes
                if building_bytes(switcher.profiles[switcher.current]) > room:
                    switcher.current = smallest(switcher.profiles)
            first, takes = switcher.current, building_bytes(profiles[switcher.current])
            self._memory.count(portfolio, portfolio.deflated_bytes)
            kept = (portfolio, old.portfolio, old.active.engine)
            reserved = self._memory.reserve(first, takes, kept, PATIENCE_S)
            del kept
            self._changes.expect(portfolio, takes)
        # Whatever its graph makes the engine do, the old one goes on.
        new = self._inflated(portfolio, switcher, reserved)
        with self._switching:
            if self._pinned not in (None, *new.profiles):
                raise NotNowError(f"it has no variant {self._pinned!r}, which is pinned: unpin it first")
            renewed = self._switcher.renewed(profiles, calibration)
            renewed.current = new.active.name
            new.pace = Pace(renewed.times)
            with self._counting:
                # From here on, what is answered on the old one says nothing of the new one's variants.
                self._resident, self._switcher, self._services = new, renewed, []
            self._since = time.time()
            self._changes.forget_failures()
            self._decision = Decision(renewed.current, "a newer portfolio", self._decision.rate)

    def close(self) -> None:
        """Answers what is queued, then ends the threads. A `tick` that waits for memory gives up."""
        self._memory.stop()
        self._line.close()
        self._inflater.shutdown(wait=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def refused(self) -> None:
        """Counts a request that arrived and was turned away, for the switcher: it is load as well."""
        with self._counting:
            self._requests += 1

    def _inflated(self, portfolio: Deflated, switcher: Switcher, room: Reservation | None = None) -> Resident:
        return Resident(
            portfolio,
            switcher.profiles,
            choices(switcher.policy, switcher.profiles),
            Pace(switcher.times),
            self._build,
            self._memory,
            self._ahead_bytes,
            switcher.current,
            room,
        )

    def _switch(self, decision: Decision) -> Decision:
        here = self._resident
        return self._changes.switch(here, self._switcher, decision, self._changes.free_bytes(here))

    def _enter(self, needs: Needs) -> tuple[Resident, tuple[str, ...] | None, float]:
        now = self._clock()
        with self._counting:
            here = self._resident
            able = here.able(needs)
            self._requests += 1
            self._queue += 1
            self._undecoded += 1
        engine = here.engine_for(able)
        if engine is not None and engine.name != here.active.name:
            here.ask(engine.name, now)
        return here, able, now

    def _submit(self, job: Job) -> None:
        with self._counting:
            self._undecoded -= 1
        self._line.submit(job)

    def _leave(self, resident: Resident, is_decoded: bool, call: Call | None, overhead: float) -> None:
        with self._counting:
            self._queue -= 1
            self._undecoded -= not is_decoded
            service = None if call is None else call.left(overhead)
            if service is not None and resident is self._resident:
                self._services.append(service)

    def _learn(self, resident: Resident, service: Service) -> None:
        with self._counting:
            if resident is self._resident:
                self._services.append(service)

    def _meet_later(self, resident: Resident, able: tuple[str, ...]) -> None:
        self._inflater.submit(self._meet, resident, able)

    def _meet(self, here: Resident, able: tuple[str, ...]) -> None:
        """Inflates what a request needs, or says why not."""
        problem: Callable[[], Exception] | None
        try:
            with self._switching:
                if here is self._resident or here.engine_for(able):
                    problem = self._changes.inflate_for(here, self._switcher, able)
                else:
                    problem = lambda: OverloadError("a newer portfolio has come meanwhile: ask again", 1)  # noqa: E731
        except BaseException as error:  # noqa: BLE001 - those who wait are to know it
            text = f"{type(error).__name__}: {error}"
            problem = lambda: EngineError(text)  # noqa: E731
        self._line.settle(here, able, problem)
