"""What a host says of itself."""

from __future__ import annotations

from dataclasses import dataclass

from shifter.switching.resident import Deflated


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
class Inflation:
    """One variant made ready.

    Args:
        time: seconds since the epoch, when it was. seconds: of inflating, building and warming up,
            waiting for room included.
        reason: why; of the switch, if it was for one.
    """

    time: float
    variant: str
    seconds: float
    reason: str


@dataclass(frozen=True)
class Status:
    """What the host says of itself.

    Args:
        portfolio: the one that serves. since: seconds since the epoch, when it began to.
        pinned: the variant that administration holds, if it does.
        rate: requests per second, as the last decision saw it. queue: requests inside.
        waiting, computing: those of the queue that wait for the engine, and that are on it; the rest are
            being decoded or encoded.
        usable: variants that run on this node, within the memory budget.
        ready: variants whose engines exist, the active one included.
        memory_bytes: what packages and engines take (as profiled, the active one included).
        switches, inflations: the last ones, oldest first.
    """

    portfolio: Deflated
    since: float
    active: str
    reason: str
    pinned: str | None
    rate: float
    queue: int
    waiting: int
    computing: int
    usable: tuple[str, ...]
    ready: tuple[str, ...]
    memory_bytes: int
    switches: tuple[Switch, ...]
    inflations: tuple[Inflation, ...]
