"""Whether a job left processes behind."""

from __future__ import annotations

import contextlib
import importlib
import threading
from types import TracebackType
from typing import Any, Self

import ray

from shifter.errors import DemoError

# Ray brings its own copy, and has it found once it is imported itself.
assert ray.__version__
psutil = importlib.import_module("psutil")


class Descendants:
    """Every process started by this one, or by those it started, while the context is open.

    A process counts from when it is first seen: those that end between two looks left nothing.
    """

    def __init__(self, every_s: float = 0.5) -> None:
        self._every_s = every_s
        self.seen: dict[tuple[int, float], Any] = {}
        self._before: set[tuple[int, float]] = set()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="descendants", daemon=True)

    def __enter__(self) -> Self:
        self._before = set(self._alive())
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(self._every_s):
            self.seen |= {key: found for key, found in self._alive().items() if key not in self._before}

    @staticmethod
    def _alive() -> dict[tuple[int, float], Any]:
        alive = {}
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended meanwhile
                alive[process.pid, process.create_time()] = process
        return alive

    def check_gone(self, patience_s: float = 20.0) -> int:
        """Waits for all of them to end; returns how many there were.

        Raises:
            DemoError: naming those that still run.
        """
        _, alive = psutil.wait_procs(list(self.seen.values()), timeout=patience_s)
        left = [
            f"{p.pid} ({p.name()})" for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE
        ]
        if left:
            raise DemoError(f"processes were left behind: {', '.join(left)}")
        return len(self.seen)
