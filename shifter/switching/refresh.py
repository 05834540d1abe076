"""A newer portfolio, looked for while one is served, and taken over when it is there."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from shifter.errors import PackageError
from shifter.switching.backoff import Backoff
from shifter.switching.host import Host
from shifter.switching.memory import NotNowError
from shifter.switching.resident import Deflated

if TYPE_CHECKING:
    from shifter.switching.calibration import Calibration

_PATIENCE_S = (30.0, 600.0)
"""Between two tries of a package for which there was no room, at first and at most."""


class Source(Protocol):
    """Where the portfolio lies (`shifter.portfolio.source.Source`)."""

    def version(self) -> str:
        """What differs once another portfolio is there; cheap."""

    def open(self, most_bytes: int | None = None) -> Deflated:
        """Refuses what is larger before it is read."""


@dataclass(frozen=True)
class Checked:
    """The last look for another portfolio.

    Args:
        time: seconds since the epoch, when it was over.
        error: why what is there does not serve, or why it is not known what is there; None if all is well.
    """

    time: float
    error: str | None


class Refresh:
    """Looks whether the source has another portfolio than the one that serves, and hands it to the host.

    Another is any whose version differs, an older one that was named again included. It is read and
    checked, and taken over if it can be (`Host.take_over`); else the one that serves goes on, and
    the other is not tried again until the version changes. Storage that fails is
    asked again, and so is one for which there was no memory; one that the budget has no room for beside
    what serves, or that lacks a pinned variant, after half a minute, then twice that, up to ten.

    Args:
        version: that of the portfolio that serves, as the source told it before that was opened.
        calibrated: what was measured on this node of a portfolio with that digest, if anything was.
        memory_bytes: the host's budget; what cannot fit beside the package that serves is not read.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        host: Host,
        source: Source,
        version: str,
        *,
        calibrated: Callable[[str], Calibration | None] = lambda _: None,
        memory_bytes: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._host = host
        self._source = source
        self._version = version
        self._calibrated = calibrated
        self._memory_bytes = memory_bytes
        self._clock = clock
        self._backoff = Backoff(*_PATIENCE_S)
        self._refusal: tuple[str, str] | None = None  # the version that is there, and why it does not serve
        self._again = math.inf  # when that is tried again
        self.last: Checked | None = None
        """The last look; replaced as a whole."""

    def look(self) -> None:
        """Returns when what is there serves, or is refused. Meant for one thread, off the event loop."""
        try:
            error = self._look()
        except (OSError, PackageError) as problem:
            error = str(problem)
        except Exception as problem:  # noqa: BLE001 - what is there may be anyone's; what serves goes on
            error = f"{type(problem).__name__}: {problem}"
        self.last = Checked(self._clock(), error)

    def _look(self) -> str | None:
        version = self._source.version()
        if version == self._version:
            self._refusal = None
        elif self._refusal is None or self._refusal[0] != version or self._clock() >= self._again:
            if self._refusal is None or self._refusal[0] != version:
                self._backoff = Backoff(*_PATIENCE_S)
            self._refusal, self._again = None, math.inf
            try:
                self._take(version)
            except (OSError, MemoryError):  # of the moment, not of the package: it is tried again
                raise
            except Exception as problem:  # noqa: BLE001 - whatever it is, the one that serves goes on
                if isinstance(problem, NotNowError):
                    self._backoff.failed(version, self._clock())
                    self._again = self._backoff.until(version)
                self._refusal = (version, f"{type(problem).__name__}: {problem}")
        return self._refusal[1] if self._refusal else None

    def _take(self, version: str) -> None:
        most = self._memory_bytes
        if most is not None:
            most -= self._host.portfolio.deflated_bytes
        portfolio = self._source.open(most)
        if portfolio.digest != self._host.portfolio.digest:
            self._host.take_over(portfolio, self._calibrated(portfolio.digest))
        self._version = version
