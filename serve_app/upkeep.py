"""What a service does beside answering: it decides, switches, and looks for a newer portfolio."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from serve_app.observer import Observer, tell
from serve_app.settings import Settings
from shifter.switching.host import Host
from shifter.switching.refresh import Refresh

_FIRST_TOLD_S = 0.1


@dataclass(frozen=True)
class Reloaded:
    """What came of looking for a newer portfolio.

    Args:
        outcome: of ``refused``, what is there cannot serve, or cannot be looked at.
        portfolio: the digest of the one that serves now.
        reason: why it was refused.
    """

    outcome: Literal["taken over", "nothing new", "refused"]
    portfolio: str
    reason: str | None = None


class Upkeep:
    """Its methods are the event loop's; what takes time has two threads, one to switch and one to look.

    Args:
        refresh: looks for a newer portfolio; None if the one that serves came from no place.
        observers: told of switches, and of each look at the load; may become more.
    """

    def __init__(
        self, host: Host, refresh: Refresh | None, settings: Settings, observers: Sequence[Observer]
    ) -> None:
        self._host = host
        self._refresh = refresh
        self._decide_every_s, self._refresh_s = settings.decide_every_s, settings.refresh_s
        self._observers = observers
        self._told = 0.0  # when the last switch was that observers were told of
        self._switcher = ThreadPoolExecutor(1, "switcher")
        self._refresher = ThreadPoolExecutor(1, "refresher")
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks.append(asyncio.create_task(self._tell_first()))
        self._repeat(self._decide_every_s, self._switcher, self._tick)
        if self._refresh is not None and self._refresh_s is not None:
            self._repeat(self._refresh_s, self._refresher, self._refresh.look)

    async def stop(self) -> None:
        """Begins nothing more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def close(self) -> None:
        """Ends the threads; the host is to be closed before, so that they wait for nothing."""
        self._refresher.shutdown()
        self._switcher.shutdown()

    def check(self) -> None:
        """Raises what ended it, if anything did."""
        for task in self._tasks:
            if task.done():
                task.result()

    async def pin(self, variant: str | None) -> str:
        """Holds a variant whatever the load, or with None lets the policy choose; returns what serves then.

        Raises:
            NeedsError: if there is no such variant, or it cannot serve on this node.
        """
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._switcher, self._host.pin, variant)
        await loop.run_in_executor(self._switcher, self._tick)
        return self._host.active

    async def reload(self) -> Reloaded:
        """Looks for a newer portfolio now, and takes it over if it can be."""
        before = self._host.portfolio.digest
        if self._refresh is None:
            return Reloaded("refused", before, "the portfolio was not read from a place to look at")
        await asyncio.get_running_loop().run_in_executor(self._refresher, self._refresh.look)
        looked, after = self._refresh.last, self._host.portfolio.digest
        if looked is not None and looked.error is not None:
            return Reloaded("refused", after, looked.error)
        return Reloaded("nothing new" if after == before else "taken over", after)

    def _repeat(self, every_s: float, thread: ThreadPoolExecutor, action: Callable[[], object]) -> None:
        async def repeat() -> None:
            loop = asyncio.get_running_loop()
            while True:
                await asyncio.sleep(every_s)
                await loop.run_in_executor(thread, action)

        self._tasks.append(asyncio.create_task(repeat()))

    async def _tell_first(self) -> None:
        """What serves, however seldom it is decided. A little later: a replica that starts logs nothing."""
        await asyncio.sleep(_FIRST_TOLD_S)
        await asyncio.get_running_loop().run_in_executor(self._switcher, self._tell)

    def _tick(self) -> None:
        self._host.tick()
        self._tell()

    def _tell(self) -> None:
        if not self._observers:
            return
        status = self._host.status()
        new = [switch for switch in status.switches if switch.time > self._told]
        self._told = max((switch.time for switch in new), default=self._told)

        def what(observer: Observer) -> None:
            for switch in new:
                observer.switched(switch)
            observer.ticked(status)

        tell(self._observers, what)
