"""Writing to the store while training goes on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType


class Writer:
    """One thread that does jobs in order, with one at most under way.

    An error in a job is raised where the next one is handed in, or where the work is waited for. As
    a context manager it waits at the end; there, an error that is on its way already goes first.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "shifter-writer")
        self._job: Future[None] | None = None

    def submit(self, job: Callable[[], None]) -> None:
        """Waits for the job before, then lets this one begin."""
        self.wait()
        self._job = self._pool.submit(job)

    def wait(self) -> None:
        """Until nothing is under way. Raises what the last job raised."""
        if self._job is not None:
            job, self._job = self._job, None
            job.result()

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.wait()
        finally:
            self._pool.shutdown(wait=True)
