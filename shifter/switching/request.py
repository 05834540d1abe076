"""One request inside a host, from its arrival to its answer."""

from __future__ import annotations

import math
from concurrent.futures import Future
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from shifter.switching.job import Answer, Job
from shifter.switching.needs import Needs
from shifter.values import InputSpec

if TYPE_CHECKING:
    from shifter.switching.host import Host


class Request:
    """One request inside a `Host`; a context manager that lasts as long as the request is inside.

    ``overhead``: add to it the seconds spent on this request besides the engine's, on the same
    cores (decoding, encoding). The switcher takes it into account.

    Raises:
        NeedsError: when entered, if nothing in the portfolio that serves meets the needs.
    """

    def __init__(self, host: Host, needs: Needs, deadline_s: float | None) -> None:
        assert deadline_s is None or not math.isnan(deadline_s), deadline_s
        self.overhead = 0.0
        self._host = host
        self._needs = needs
        self._patience = math.inf if deadline_s is None else deadline_s
        self._is_submitted = False
        self._job: Job | None = None

    @property
    def input_spec(self) -> InputSpec:
        """What the portfolio that will answer this request reads."""
        return self._resident.portfolio.input_spec

    def submit(self, images: NDArray[np.float32]) -> Future[Answer]:
        """Queues normalised images, float32 (batch, channels, height, width); once per request.

        The future fails with `EngineError` if they do not fit the network, and with
        `OverloadError` if at their turn it is too late, or there is no memory for what is needed.
        Cancelling it before its turn takes them out of the queue.

        Raises:
            OverloadError: at once, if the deadline cannot be met, by prediction.
        """
        assert not self._is_submitted, "a request is submitted once"
        self._is_submitted = True
        job = Job(self._resident, self._able, images, self._end, self._patience)
        self._host._submit(job)
        self._job = job
        return job.answer

    def __enter__(self) -> Self:
        self._resident, self._able, now = self._host._enter(self._needs)
        self._end = now + self._patience
        return self

    def __exit__(self, *_: object) -> None:
        if self._job is None:
            self._host._leave(self._resident, self._is_submitted, None, 0.0)
        else:  # at once, unless it was given up while being computed
            self._job.answer.add_done_callback(self._leave)

    def _leave(self, answered: Future[Answer]) -> None:
        assert self._job is not None
        call, self._job = self._job.call, None  # no cycle keeps the answer
        self._host._leave(self._resident, True, call, self.overhead)
