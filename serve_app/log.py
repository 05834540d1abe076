"""What a service does, as lines of Serve's log; with ``encoding: JSON`` each is an object with fields.

Never what a client sent, but for the request's id, nor a token. `docs/observability.md` has examples.
"""

from __future__ import annotations

import logging
import math
import random
import re
import time
from collections import defaultdict, deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from serve_app.observer import Answered, Cause
from serve_app.settings import Settings
from shifter.switching.host import Status, Switch

_log = logging.getLogger("ray.serve")

_EVERY_S: Final = 1.0
_MOST_KEPT: Final = 10_000
_ID_CHARACTERS: Final = 64
# The others are for want of room.
_LEVELS: Final[dict[Cause, int]] = {
    "needs": logging.INFO,
    "request": logging.INFO,
    "engine": logging.ERROR,
}


class Log:
    """An observer that logs.

    Switches and portfolios always; of requests the share ``Settings.log_requests``, and besides, once a
    second, a late one and a refused one of each cause, with the number of those left out since. Lines
    about requests are written at a tick, so that no request waits for a disk.

    Args:
        clock: seconds since the epoch.
        chance: a number from 0 up to 1, drawn for each answer if some are logged.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._share = settings.log_requests
        self._objective_s = math.inf if settings.objective_ms is None else settings.objective_ms / 1e3
        self._clock = clock
        self._chance = chance
        self._seldom: defaultdict[str, _Seldom] = defaultdict(_Seldom)
        self._kept: deque[tuple[int, str, dict[str, Any]]] = deque()
        self._lost = 0
        self._digest: str | None = None

    def answered(self, answered: Answered) -> None:
        late = answered.seconds > self._objective_s
        drawn = self._share and self._chance() < self._share
        left_out = self._seldom["late"].left_out(self._clock()) if late and not drawn else None
        if not drawn and left_out is None:
            return
        event, known = "late" if late else "answered", _printable(answered.request_id)
        fields = _fields(
            event,
            self._clock(),
            request_id=known,
            variant=answered.variant,
            images=answered.images,
            ms=_ms(answered.seconds),
            engine_ms=_ms(answered.engine_s),
            batch=answered.batch,
            left_out=left_out,
        )
        text = f"{event}: {known} by {answered.variant} in {fields['ms']} ms"
        self._keep(logging.WARNING if late else logging.INFO, text, fields)

    def refused(self, cause: Cause, request_id: str) -> None:
        now = self._clock()
        left_out = self._seldom[cause].left_out(now)
        if left_out is not None:
            known = _printable(request_id)
            fields = _fields("refused", now, request_id=known, cause=cause, left_out=left_out)
            level = _LEVELS.get(cause, logging.WARNING)
            self._keep(level, f"refused: {known} because of {cause}, {left_out} before it", fields)

    def switched(self, switch: Switch) -> None:
        fields = _fields(
            "switched" if switch.error is None else "switch failed",
            switch.time,
            before=switch.before,
            variant=switch.after,
            reason=switch.reason,
            ms=_ms(switch.seconds),
            ahead=switch.ahead,
            error=switch.error,
        )
        text = f"{fields['event']}: {switch.before} to {switch.after} in {fields['ms']} ms: {switch.reason}"
        if switch.error is None:
            _log.info(text, extra=fields)
        else:
            _log.warning(f"{text}: {switch.error}", extra=fields)

    def ticked(self, status: Status) -> None:
        portfolio = status.portfolio
        if portfolio.digest != self._digest:
            fields = _fields(
                "portfolio",
                status.since,
                model=portfolio.model,
                portfolio=portfolio.digest,
                portfolio_before=self._digest,
                variant=status.active,
            )
            self._digest = portfolio.digest
            _log.info(f"portfolio: {portfolio.model} {portfolio.digest} with {status.active}", extra=fields)
        self._write()

    def _keep(self, level: int, text: str, fields: dict[str, Any]) -> None:
        if len(self._kept) < _MOST_KEPT:
            self._kept.append((level, text, fields))
        else:
            self._lost += 1

    def _write(self) -> None:
        for _ in range(len(self._kept)):  # what comes in meanwhile is the next tick's
            level, text, fields = self._kept.popleft()
            # As Serve does with its access log: to the file, not to the console.
            _log.log(level, text, extra={**fields, "log_to_stderr": False})
        lost, self._lost = self._lost, 0
        if lost:
            fields = _fields("left out", self._clock(), left_out=lost)
            _log.warning(f"left out: {lost} lines on requests, too many at once", extra=fields)


class _Seldom:
    """Lets one through in `_EVERY_S`."""

    def __init__(self) -> None:
        self._next = -math.inf
        self._left_out = 0

    def left_out(self, now: float) -> int | None:
        """How many were not let through since the last that was; None if this one is not either."""
        if now < self._next:
            self._left_out += 1
            return None
        self._next = now + _EVERY_S
        before, self._left_out = self._left_out, 0
        return before


def _fields(event: str, when: float, **more: Any) -> dict[str, Any]:
    told = {key: value for key, value in more.items() if value is not None and value != ""}
    utc = datetime.fromtimestamp(when, UTC).isoformat(timespec="milliseconds")
    return {"time": utc, "event": event, **told}


def _ms(seconds: float) -> float:
    return round(1e3 * seconds, 3)


def _printable(request_id: str) -> str:
    """An id that a client may have made up."""
    return re.sub(r"[^\w.:/-]", "?", request_id[:_ID_CHARACTERS])
