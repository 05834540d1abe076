"""Who is let in, and who is told at once that it is too much; what became of those who were not answered."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Final, Self

from serve_app.observer import Cause
from serve_app.settings import Settings
from shifter.errors import NeedsError, OverloadError, RequestError
from shifter.switching.host import Host

Tell = Callable[[Cause, str], None]

_LONGEST_RETRY_S: Final = 60
_MOST_LARGE: Final = 4


class RefusedError(OverloadError):
    """A request that is not let in."""

    def __init__(self, why: str, remedy: str, retry_after_s: float, cause: Cause) -> None:
        whole = min(max(1, math.ceil(retry_after_s)), _LONGEST_RETRY_S)
        super().__init__(f"{why}: ask again in {whole} s, or {remedy}", whole)
        self.cause = cause


class Admission:
    """The door; used on the event loop alone.

    Args:
        tell: is told the cause and the request's id of each that gets no answer.
    """

    def __init__(self, host: Host, settings: Settings, tell: Tell) -> None:
        self._host = host
        self._max_queue = settings.max_queue
        self._deadline_s = settings.deadline_s
        self._most_bytes = settings.read_bytes
        self._tell = tell
        self.bytes = 0
        """Of bodies inside."""
        self.refused: Counter[Cause] = Counter()
        """Requests without an answer, those that the client gave up excepted."""
        self._large = 0
        self.stopping = False
        """Set once nobody is to be let in any more."""

    def check(self) -> None:
        """Whether one more may come in, as far as is known before it is read.

        Raises:
            OverloadError: if not.
        """
        if self.stopping:
            raise self._refusal("this service is ending", "ask another one", 1, "stopping")
        if (queue := self._host.queue) >= self._max_queue:
            why = f"{queue} requests wait already, as many as may"
            raise self._refusal(why, "send fewer", self._host.wait_s(1), "queue")
        deadline = self.deadline_s
        if deadline is not None and (wait := self._host.wait_s(1)) > deadline:
            why = f"an answer would take {1e3 * wait:.0f} ms, and is to take {1e3 * deadline:.0f} ms at most"
            raise self._refusal(why, "send fewer", wait - deadline, "deadline")

    @property
    def deadline_s(self) -> float | None:
        """Of a request that comes now. One that finds nobody inside has none: waiting would not help it."""
        return self._deadline_s if self._host.queue else None

    def left_s(self, spent_s: float) -> float | None:
        """Of the deadline of a request that has spent so much of it.

        Raises:
            OverloadError: if nothing is left.
        """
        deadline = self.deadline_s
        if deadline is None:
            return None
        if spent_s >= deadline:
            most = f"an answer is to take {1e3 * deadline:.0f} ms at most"
            why = f"reading it took {1e3 * spent_s:.0f} ms, and {most}"
            raise self._refusal(why, "send a smaller one", self._host.wait_s(1), "deadline")
        return deadline - spent_s

    @contextmanager
    def reading_large(self) -> Iterator[None]:
        """A turn at reading what takes long to read.

        Raises:
            OverloadError: when entered, if too many wait for theirs.
        """
        if self._large >= _MOST_LARGE:
            why = f"{self._large} large requests are being read already"
            raise self._refusal(why, "send binary tensors, which are read at once", 1, "queue")
        self._large += 1
        try:
            yield
        finally:
            self._large -= 1

    @contextmanager
    def reserve(self, count: int) -> Iterator[None]:
        """Room for so many bytes of a body.

        Raises:
            OverloadError: when entered, if there is none.
        """
        if self.bytes + count > self._most_bytes:
            why = f"bodies of {self.bytes} bytes are inside, and {self._most_bytes} may be"
            raise self._refusal(why, "send smaller ones", self._host.wait_s(1), "bytes")
        self.bytes += count
        try:
            yield
        finally:
            self.bytes -= count

    def failed(self, error: BaseException, request_id: str) -> None:
        """Counts a request that ended with ``error``."""
        cause = _cause_of(error)
        if cause is not None:
            self.refused[cause] += 1
            self._tell(cause, request_id)

    def _refusal(self, why: str, remedy: str, retry_after_s: float, cause: Cause) -> RefusedError:
        self._host.refused()
        return RefusedError(why, remedy, retry_after_s, cause)


class Arrival:
    """A request from its head to its answer; a context manager that tells how it failed, if it does.

    Args:
        request_id: for logs.
    """

    def __init__(self, admission: Admission, request_id: str) -> None:
        self._admission = admission
        self.request_id = request_id
        self.reserve = admission.reserve

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._admission.failed(error, self.request_id)


def _cause_of(error: BaseException) -> Cause | None:
    match error:
        case RefusedError(cause=cause):
            return cause
        case OverloadError():  # the host's
            return "deadline"
        case NeedsError():
            return "needs"
        case RequestError():
            return "request"
        case Exception():  # a cancelled request is none
            return "engine"
    return None
