"""Storage that fails for a while is waited for; what waiting does not mend is told at once."""

from __future__ import annotations

import errno
import logging
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from shifter.errors import StoreError

T = TypeVar("T")

ENVIRONMENT = "SHIFTER_STORE_PATIENCE"
"""Environment variable: for how many seconds storage that fails is waited for."""

_LOG = logging.getLogger("shifter.store")
_QUIET_S = 30.0
_spoke = -_QUIET_S
# Its own generator: nobody's random numbers may depend on how often the storage failed.
_jitter = random.Random()

# What servers, networks and devices say that are busy, restarted or cut off. Not a full disk, a
# quota or a missing permission: somebody has to mend those, and should hear of them now.
_TRANSIENT = frozenset(
    getattr(errno, name)
    for name in (
        *("EAGAIN", "EBUSY", "ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "EHOSTDOWN", "EHOSTUNREACH"),
        *("EINTR", "EIO", "ENETDOWN", "ENETRESET", "ENETUNREACH", "ENFILE", "ENOLCK", "ENOTCONN"),
        *("EPIPE", "EREMOTEIO", "ESHUTDOWN", "ESTALE", "ETIMEDOUT"),
    )
    if hasattr(errno, name)
)


_UNANSWERED = frozenset(
    getattr(errno, name)
    for name in ("ECONNREFUSED", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "ETIMEDOUT")
    if hasattr(errno, name)
)


def is_unanswered(error: OSError) -> bool:
    """Whether nobody was there to answer, as far as can be told."""
    return error.errno in _UNANSWERED and not isinstance(error, StoreError)


def is_transient(error: OSError) -> bool:
    """Whether the same call may succeed a little later."""
    return error.errno in _TRANSIENT and not isinstance(error, StoreError)


@dataclass(frozen=True)
class Patience:
    """How long to go on trying: with pauses that double, up to ``limit_s`` after the first failure.

    Pauses are drawn around their length, so that many who wait for one server do not ask at once.
    """

    limit_s: float = 300.0
    first_pause_s: float = 0.1
    longest_pause_s: float = 10.0

    @classmethod
    def from_environment(cls) -> Patience:
        """As SHIFTER_STORE_PATIENCE says. Raises StoreError if that is no number of seconds."""
        text = os.environ.get(ENVIRONMENT)
        if text is None:
            return cls()
        try:
            limit_s = float(text)
        except ValueError:
            limit_s = -1.0
        if not 0 <= limit_s < float("inf"):
            raise StoreError(f"{ENVIRONMENT}={text}: give a number of seconds, such as 300")
        return cls(limit_s)

    def attempt(self, action: Callable[[], T], what: str) -> T:
        """What ``action`` returns, once it does.

        Args:
            what: is being done, for the log, in the infinitive.

        Raises:
            OSError: that of ``action``, when it is not transient, or the last one at the limit.
        """
        pause_s, began = self.first_pause_s, None
        while True:
            try:
                return action()
            except OSError as error:
                if not is_transient(error):
                    raise
                now = time.monotonic()
                began = now if began is None else began
                left_s = began + self.limit_s - now
                if left_s <= 0:
                    raise
                self._tell(f"cannot {what} ({error.strerror}): storage does not answer, waiting")
            time.sleep(min(left_s, pause_s * _jitter.uniform(0.5, 1.5)))
            pause_s = min(2 * pause_s, self.longest_pause_s)

    def _tell(self, line: str) -> None:
        """Once in a while: storage that fails often must not flood the log."""
        global _spoke
        now = time.monotonic()
        if now - _spoke >= _QUIET_S:
            _spoke = now
            _LOG.warning("%s for up to %.0f s", line, self.limit_s)
