"""The requests that wait for the engine, and the threads that compute them."""

from __future__ import annotations

import math
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, count
from typing import Protocol

import numpy as np

from shifter.errors import EngineError, OverloadError
from shifter.switching.admission import late, refused, wait_s
from shifter.switching.batching import form
from shifter.switching.job import Answer, Call, Job
from shifter.switching.load import Service
from shifter.switching.pace import LOOKED_AT
from shifter.switching.resident import Active, Resident

# Predictions that refuse everything are tried at most so often.
_STALE_S = 0.5


class Missing(Protocol):
    """Told of requests for which no variant is ready."""

    def __call__(self, resident: Resident, able: tuple[str, ...]) -> None: ...


@dataclass
class _Turn:
    """What a thread does next: ``jobs`` by one call of ``active``, or trying how long calls take."""

    jobs: list[Job]
    late: list[Job]
    missing: list[Job]
    active: Active | None = None
    trial: Resident | None = None


_Outcome = tuple[Job, Answer | BaseException]


class Line:
    """First come, first served, as far as what is needed is ready; several by one call (`batching.form`).

    Args:
        servers: threads. most_images: of one call, unless one request has more.
        missing: called by such a thread, and to end with `settle`.
        tried: told of calls made to see how long they take.
    """

    def __init__(
        self,
        servers: int,
        most_images: int,
        clock: Callable[[], float],
        missing: Missing,
        tried: Callable[[Resident, Service], None],
    ) -> None:
        self._servers, self._most, self._clock = servers, most_images, clock
        self._missing, self._tried = missing, tried
        self._changed = threading.Condition()
        self._waiting: OrderedDict[int, Job] = OrderedDict()
        self._images: Counter[tuple[Resident, tuple[str, ...] | None]] = Counter()
        self._computing: dict[int, tuple[float, int]] = {}  # by thread: until when, by prediction; requests
        self._threads: list[threading.Thread] = []
        self._closed = False
        self._numbers = count()
        self._trial: Resident | None = None
        self._last_call = -math.inf

    @property
    def counts(self) -> tuple[int, int, int]:
        """Requests that wait, requests that are on the engine, and calls of it."""
        with self._changed:
            computing = [requests for _, requests in self._computing.values()]
            return len(self._waiting), sum(computing), len(computing)

    def submit(self, job: Job) -> None:
        """Queues it.

        Raises:
            OverloadError: if it cannot be answered in time, by prediction.
        """
        with self._changed:
            if self._closed:
                raise OverloadError("the service ends: ask another one", 1)
            if job.deadline < math.inf:
                now = self._clock()
                wait = self._wait_s(job.resident, job.able, job.count, now, job.patience)
                if now + wait > job.deadline:
                    self._doubt(job.resident, now)
                    raise refused(wait, job.patience)
            self._start()
            job.number = next(self._numbers)
            self._waiting[job.number] = job
            self._images[job.resident, job.able] += job.count
            self._changed.notify()
        # Not the job, which has the answer: a cycle would keep the logits, and with them the engine's memory.
        job.answer.add_done_callback(partial(self._forget, job.number))

    def wait_s(self, resident: Resident, images: int, before: int) -> float:
        """Predicted seconds until a request of so many images that was submitted now would be computed.

        Args:
            before: requests of one image that are to come before it.
        """
        with self._changed:
            return self._wait_s(resident, None, images, self._clock(), before=before)

    def settle(
        self, resident: Resident, able: tuple[str, ...], problem: Callable[[], Exception] | None
    ) -> None:
        """One of ``able`` is ready, or else no request gets it now, because of ``problem()``."""
        with self._changed:
            asked = [job for job in self._waiting.values() if (job.resident, job.able) == (resident, able)]
            for job in asked:
                job.asked = False
            if problem is None or resident.engine_for(able):
                asked = []
            for job in asked:
                self._take(job)
            self._changed.notify_all()
        for job in asked:
            assert problem is not None
            _give_up(job, problem())

    def close(self) -> None:
        """Answers what waits, then ends the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (turn := self._next()) is not None:
            try:
                outcomes = self._do(turn)
            except BaseException as problem:  # noqa: BLE001 - a thread that ended would never be replaced
                outcomes = self._broken(turn, problem)
            # Once a request is answered, and while nothing is to be done, no engine is held on to.
            del turn
            for job, outcome in outcomes:
                if isinstance(outcome, Answer):
                    job.answer.set_result(outcome)
                else:
                    job.answer.set_exception(outcome)
            del outcomes
            job = outcome = None  # type: ignore[assignment]  # of the loop

    def _broken(self, turn: _Turn, problem: BaseException) -> list[_Outcome]:
        """What nobody foresaw is of the requests of this turn alone."""
        with self._changed:
            self._computing.pop(threading.get_ident(), None)
        return [(job, problem) for job in (*turn.jobs, *turn.missing) if not job.answer.done()]

    def _do(self, turn: _Turn) -> list[_Outcome]:
        for job in turn.late:
            _give_up(job, late())
        for job in turn.missing:
            assert job.able is not None
            self._missing(job.resident, job.able)
        if turn.trial is not None:
            self._try(turn.trial)
        elif turn.active is not None and turn.jobs:
            return self._compute(turn.active, turn.jobs)
        return []

    def _next(self) -> _Turn | None:
        """What is to be done, once there is something; None at the end."""
        with self._changed:
            while True:
                turn, patience = self._look(self._clock())
                if turn.jobs or turn.late or turn.missing or turn.trial:
                    return turn
                if self._closed and not self._waiting:
                    return None
                self._changed.wait(patience)

    def _look(self, now: float) -> tuple[_Turn, float | None]:
        """(what is to be done now, if anything; the longest to wait until looking again)."""
        turn, soonest = _Turn([], [], []), math.inf

        def candidates() -> Iterator[Job]:
            nonlocal soonest
            for job in self._waiting.values():
                if job.deadline <= now:
                    turn.late.append(job)
                elif (active := job.engine) is None:
                    soonest = min(soonest, job.deadline)
                    if not job.asked:
                        job.asked = True
                        turn.missing.append(job)
                elif turn.active is None or turn.active.engine is active.engine:
                    turn.active = active
                    yield job

        def seconds(images: int) -> float:
            assert turn.active is not None
            return resident.pace.seconds(turn.active.name, images)

        pieces = candidates()
        if (first := next(pieces, None)) is not None:
            resident = first.resident
            turn.jobs, too_late = form(chain([first], pieces), now, self._most, seconds)
            turn.late += too_late
            if not turn.jobs and too_late:
                self._doubt(resident, now)
        for job in [*turn.jobs, *turn.late]:
            self._take(job)
        turn.jobs = [job for job in turn.jobs if job.answer.set_running_or_notify_cancel()]
        if turn.jobs:
            until = now + seconds(sum(job.count for job in turn.jobs))
            self._computing[threading.get_ident()] = (until, len(turn.jobs))
        elif self._trial is not None:
            turn.trial, self._trial = self._trial, None
        return turn, None if soonest == math.inf else soonest - now

    def _wait_s(
        self,
        resident: Resident,
        able: tuple[str, ...] | None,
        images: int,
        now: float,
        patience: float = math.inf,
        before: int = 0,
    ) -> float:
        waiting: Counter[tuple[Resident, str]] = Counter()
        for (each, its), number in self._images.items():
            waiting[each, _would_compute(each, its)] += number
        waiting[resident, resident.active.name] += before
        mine = (resident, _would_compute(resident, able))
        seconds = {key: partial(key[0].pace.seconds, key[1]) for key in (mine, *waiting)}
        return wait_s(
            seconds[mine],
            images,
            [max(0.0, until - now) for until, _ in self._computing.values()],
            [(seconds[key], number) for key, number in waiting.items()],
            servers=self._servers,
            most_images=self._most,
            patience=patience,
        )

    def _doubt(self, resident: Resident, now: float) -> None:
        """Has the predictions tried, should they be of a time that is over and nothing else correct them."""
        if not self._computing and now - self._last_call > _STALE_S:
            self._last_call = now
            self._trial = resident
            self._start()
            self._changed.notify()

    def _try(self, resident: Resident) -> None:
        name, engine = resident.active
        image = np.zeros((1, *resident.portfolio.input_spec.shape), np.float32)
        for _ in range(LOOKED_AT):
            begin = self._clock()
            try:
                engine.run(image)
            except (EngineError, MemoryError):
                return
            service = Service(name, 1, self._clock() - begin, requests=0)
            self._saw(resident, service)
            self._tried(resident, service)
            if self._waiting or self._closed:
                return

    def _compute(self, active: Active, jobs: list[Job]) -> list[_Outcome]:
        resident, begin = jobs[0].resident, self._clock()
        try:
            images = jobs[0].images if len(jobs) == 1 else np.concatenate([job.images for job in jobs])
            logits = active.engine.run(images)
            if len(logits) != len(images):
                raise EngineError(f"the variant answers {len(images)} images with {len(logits)} rows")
        except BaseException as problem:  # noqa: BLE001 - whatever it is, it is of those requests alone
            return self._failed(active, jobs, problem)
        seconds = self._clock() - begin
        self._saw(resident, Service(active.name, len(images), seconds))
        call = Call(active.name, len(images), seconds, len(jobs))
        outcomes: list[_Outcome] = []
        at = 0
        for job in jobs:
            job.call = call
            mine = logits[at : at + job.count]
            at += job.count
            digest = resident.portfolio.digest
            outcomes.append((job, Answer(mine, active.name, seconds, digest, len(images))))
        return outcomes

    def _failed(self, active: Active, jobs: list[Job], problem: BaseException) -> list[_Outcome]:
        """Of several requests, one is at fault: each is computed by itself."""
        if len(jobs) == 1:
            with self._changed:
                self._computing.pop(threading.get_ident(), None)
            if isinstance(problem, MemoryError):
                problem = OverloadError(f"there is no memory to compute it now: {problem}", 1)
            return [(jobs[0], problem)]
        outcomes: list[_Outcome] = []
        for job in jobs:
            if self._clock() >= job.deadline:
                outcomes.append((job, late()))
            else:
                outcomes += self._compute(active, [job])
        return outcomes

    def _saw(self, resident: Resident, service: Service) -> None:
        with self._changed:
            self._computing.pop(threading.get_ident(), None)
            self._last_call = self._clock()
            resident.pace.saw(service.variant, service.images, service.seconds)

    def _take(self, job: Job) -> None:
        if self._waiting.pop(job.number, None) is not None:
            key = (job.resident, job.able)
            self._images[key] -= job.count
            if not self._images[key]:
                del self._images[key]

    def _forget(self, number: int, _: object) -> None:
        """Of one that is answered, or was given up while it waited."""
        with self._changed:
            if (job := self._waiting.get(number)) is not None:
                self._take(job)
                self._changed.notify()

    def _start(self) -> None:
        if len(self._threads) < self._servers:
            thread = threading.Thread(target=self._work, name=f"server-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()


def _would_compute(resident: Resident, able: tuple[str, ...] | None) -> str:
    """The variant that would, or will once it is ready."""
    if (active := resident.engine_for(able)) is not None:
        return active.name
    assert able is not None
    return able[0]


def _give_up(job: Job, problem: Exception) -> None:
    """Fails one that waited, unless it was cancelled."""
    if job.answer.set_running_or_notify_cancel():
        job.answer.set_exception(problem)
