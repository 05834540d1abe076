"""Who wants to know what a service does: metrics, logs, the live page."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from shifter.switching.host import Status, Switch

_log = logging.getLogger(__name__)

Cause = Literal["queue", "deadline", "bytes", "stopping", "needs", "request", "engine"]
"""Why a request got no answer: the queue is full, its deadline cannot be met, too many bytes are inside,
the service is ending, no variant is what it asks for, it is not what the model reads, or the engine
failed."""


@dataclass(frozen=True)
class Answered:
    """One request that was answered.

    Args:
        variant: the one that computed it. images: how many it carried.
        seconds: from its arrival to its answer. engine_s: of the engine's call that it was part of.
        batch: images in that call.
        request_id: the client's, or the one that Serve gave it.
    """

    variant: str
    images: int
    seconds: float
    engine_s: float
    batch: int = 1
    request_id: str = ""


class Observer(Protocol):
    """Told on the event loop (``answered``, ``refused``) or on the switching thread; must not block."""

    def answered(self, answered: Answered) -> None:
        """A request was answered."""

    def refused(self, cause: Cause, request_id: str) -> None:
        """A request got no answer."""

    def switched(self, switch: Switch) -> None:
        """The variant was changed, or that failed."""

    def ticked(self, status: Status) -> None:
        """The policy has looked at the load."""


def tell(observers: Sequence[Observer], what: Callable[[Observer], None]) -> None:
    """Tells each; one that fails is logged, and neither fails a request nor ends the switching."""
    for observer in observers:
        try:
            what(observer)
        except Exception:  # noqa: BLE001 - whatever it is, it is the observer's alone
            _log.exception("%s failed, and is asked again next time", type(observer).__name__)
