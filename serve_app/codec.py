"""Where bodies are decoded and answers encoded: at once, or off the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_T = TypeVar("_T")


class Codec:
    """One thread, which does one thing at a time: the other cores are the engine's."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "codec")

    async def run(self, is_light: bool, function: Callable[[], _T]) -> tuple[_T, float]:
        """(what it returns, the seconds that it took).

        Args:
            is_light: it takes less than waking a thread and being woken by it, and is done at once.
        """
        if is_light:
            return _timed(function)
        return await asyncio.get_running_loop().run_in_executor(self._thread, _timed, function)

    def close(self) -> None:
        self._thread.shutdown()


def _timed(function: Callable[[], _T]) -> tuple[_T, float]:
    start = time.perf_counter()
    return function(), time.perf_counter() - start
