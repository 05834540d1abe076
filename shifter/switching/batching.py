"""Which of the requests that wait are computed by one call of the engine. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

Seconds = Callable[[int], float]
"""Predicted seconds of one call with so many images."""

# A batch delays each of its requests to the end of all: only where that saves so much of the work.
_WORTH = 0.95


class Piece(Protocol):
    """What batching knows of a request that waits."""

    @property
    def count(self) -> int:
        """Its images."""

    @property
    def deadline(self) -> float:
        """When its answer has to be there, on the clock of ``now``; infinite for none."""

    @property
    def joins(self) -> bool:
        """Whether its images may be in one array with others'."""


P = TypeVar("P", bound=Piece)


def form(pieces: Iterable[P], now: float, most_images: int, seconds: Seconds) -> tuple[list[P], list[P]]:
    """(those of the next call, those that cannot be answered in time any more).

    The first that can be answered is; others join it in the order of arrival, as long as all of
    them keep their deadlines, the call has at most ``most_images``, and it is faster than calls one
    by one. A request of more images than that is computed alone.

    Args:
        pieces: in the order of arrival, for one engine. Not looked at further than needed.
    """
    taken: list[P] = []
    late: list[P] = []
    images, takes, due = 0, 0.0, float("inf")
    for piece in pieces:
        alone = seconds(piece.count)
        if now + alone > piece.deadline:
            late.append(piece)
            continue
        together, due = seconds(images + piece.count), min(due, piece.deadline)
        if taken and (
            not piece.joins
            or images + piece.count > most_images
            or now + together > due
            or together > takes + _WORTH * alone
        ):
            break
        taken.append(piece)
        images, takes = images + piece.count, together
        if images >= most_images or not piece.joins:
            break
    return taken, late


def work_s(images: int, most_images: int, seconds: Seconds) -> float:
    """Predicted seconds for so many images that wait, in batches or one by one, whichever is faster."""
    full, rest = divmod(images, most_images)
    return full * _call_s(most_images, seconds) + (_call_s(rest, seconds) if rest else 0.0)


def _call_s(images: int, seconds: Seconds) -> float:
    return min(seconds(images), images * seconds(1))
