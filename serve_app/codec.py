"""Where bodies are decoded and answers encoded: at once, or off the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from shifter.errors import OverloadError

_T = TypeVar("_T")


class Codec:
    """One thread, which does one thing at a time: the other cores are the engine's."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "codec")

    async def run(
        self, is_light: bool, function: Callable[[], _T], within_s: float | None = None
    ) -> tuple[_T, float]:
        """(what it returns, the seconds that it took).

        Args:
            is_light: it takes less than waking a thread and being woken by it, and is done at once.
            within_s: until its turn comes; None for whenever.

        Raises:
            OverloadError: if it has to wait longer, at its turn. Else what ``function`` raises.
        """
        if is_light:
            return _timed(function)
        latest = None if within_s is None else time.perf_counter() + within_s
        return await asyncio.get_running_loop().run_in_executor(self._thread, _in_time, function, latest)

    def close(self) -> None:
        self._thread.shutdown()


def _in_time(function: Callable[[], _T], latest: float | None) -> tuple[_T, float]:
    if latest is not None and time.perf_counter() > latest:
        raise OverloadError("others' bodies took too long to decode: ask again in 1 s, or send fewer", 1)
    return _timed(function)


def _timed(function: Callable[[], _T]) -> tuple[_T, float]:
    start = time.perf_counter()
    return function(), time.perf_counter() - start
