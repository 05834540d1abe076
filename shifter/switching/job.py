"""A request that waits for the engine, the call that computes it, and its answer."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from shifter.switching.load import Service
from shifter.switching.resident import Active, Resident


@dataclass(frozen=True)
class Answer:
    """What a variant answered.

    Args:
        logits: float32 (batch, classes).
        variant: the one that computed them. portfolio: the digest of the portfolio that it is of.
        seconds: of the engine's call. batch: images in that call, those of other requests included.
    """

    logits: NDArray[np.float32]
    variant: str
    seconds: float
    portfolio: str
    batch: int


class Call:
    """One call of the engine, until the last request that it answered has left. Of one thread at a time."""

    def __init__(self, variant: str, images: int, seconds: float, requests: int) -> None:
        self._variant, self._images, self._seconds = variant, images, seconds
        self._requests = self._inside = requests
        self._overhead = 0.0

    def left(self, overhead: float) -> Service | None:
        """One of its requests has left; with the last one, what it all came to."""
        self._overhead += overhead
        self._inside -= 1
        if self._inside:
            return None
        each = self._overhead / self._requests
        return Service(self._variant, self._images, self._seconds, each, self._requests)


@dataclass(eq=False)
class Job:
    """A request that waits.

    Args:
        able: the variants that may answer it, the fastest first; None for whichever serves.
        deadline: on the host's clock. patience: seconds from its arrival until then.
        asked: whether one of ``able`` is about to be inflated for it.
        call: that which answered it. number: in the order of arrival.
    """

    resident: Resident
    able: tuple[str, ...] | None
    images: NDArray[np.float32]
    deadline: float
    patience: float
    answer: Future[Answer] = field(default_factory=Future)
    asked: bool = False
    call: Call | None = None
    number: int = -1

    @property
    def count(self) -> int:
        return len(self.images)

    @property
    def joins(self) -> bool:
        fits = self.images.shape[1:] == self.resident.portfolio.input_spec.shape
        return fits and self.images.dtype == np.float32

    @property
    def engine(self) -> Active | None:
        """What would compute it now."""
        return self.resident.engine_for(self.able)
