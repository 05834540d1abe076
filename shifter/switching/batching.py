"""Which of the requests that wait are computed by one call of the engine. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

Seconds = Callable[[int], float]
"""Predicted seconds of one call with so many images."""

# A batch delays each of its requests to the end of all: only where that saves so much of the work.
_WORTH = 0.95
# And only as long as it takes this share of the time that a request has: waiting takes the rest. Larger ones
# answer no more in time under overload, since those that have waited longest cannot join.
_SHARE = 1 / 3


class Piece(Protocol):
    """What batching knows of a request that waits."""

    @property
    def count(self) -> int:
        """Its images."""

    @property
    def deadline(self) -> float:
        """When its answer has to be there, on the clock of ``now``; infinite for none."""

    @property
    def patience(self) -> float:
        """Seconds that its answer may take from its arrival; infinite for any."""

    @property
    def joins(self) -> bool:
        """Whether its images may be in one array with others'."""


P = TypeVar("P", bound=Piece)


def form(pieces: Iterable[P], now: float, most_images: int, seconds: Seconds) -> tuple[list[P], list[P]]:
    """(those of the next call, those that cannot be answered in time any more).

    The first that can be answered is; others join it in the order of arrival, as long as all of
    them keep their deadlines, the call has at most ``most_images`` and takes no great part of the time
    that any has, and it is faster than calls one by one. A request of more images is computed alone.

    Args:
        pieces: in the order of arrival, for one engine. Not looked at further than needed.
    """
    taken: list[P] = []
    late: list[P] = []
    images, takes, due, longest = 0, 0.0, math.inf, math.inf
    for piece in pieces:
        alone = seconds(piece.count)
        if now + alone > piece.deadline:
            late.append(piece)
            continue
        together, due = seconds(images + piece.count), min(due, piece.deadline)
        longest = min(longest, _SHARE * piece.patience)
        if taken and (
            not piece.joins
            or images + piece.count > most_images
            or together > min(due - now, longest, takes + _WORTH * alone)
        ):
            break
        taken.append(piece)
        images, takes = images + piece.count, together
        if images >= most_images or not piece.joins:
            break
    return taken, late


def useful(most_images: int, patience: float, seconds: Seconds) -> int:
    """Images that a call answers where many requests of one image wait, with so much time each."""
    alone = seconds(1)
    for images in range(2, most_images + 1):
        if seconds(images) > min(_SHARE * patience, seconds(images - 1) + _WORTH * alone):
            return images - 1
    return most_images


def work_s(images: int, most_images: int, seconds: Seconds) -> float:
    """Predicted seconds for so many images that wait, in batches or one by one, whichever is faster."""
    full, rest = divmod(images, most_images)
    return full * _call_s(most_images, seconds) + (_call_s(rest, seconds) if rest else 0.0)


def _call_s(images: int, seconds: Seconds) -> float:
    return min(seconds(images), images * seconds(1))
