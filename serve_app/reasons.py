"""Why a switch happened, and why one failed, in a word each: sentences are for people, labels are few."""

from __future__ import annotations

import re
from typing import Final, Literal, get_args

Reason = Literal["load", "room", "memory", "pinned", "ahead", "other"]
"""Answers would come too late; there is room for a more accurate variant; memory has become short; somebody
chose the variant; it was only to be inflated ahead; or none of these."""

Failure = Literal["memory", "variant"]
"""There was no memory for it then, or it does not run on this node."""

REASONS: Final[tuple[Reason, ...]] = get_args(Reason)
FAILURES: Final[tuple[Failure, ...]] = get_args(Failure)

# What policies, switcher and host say; the first that is found counts.
_SAID: Final[tuple[tuple[Reason, re.Pattern[str]], ...]] = (
    ("ahead", re.compile(r"^inflated ahead$")),
    ("memory", re.compile(r"bytes of memory")),
    ("pinned", re.compile(r"\bis (?:pinned|fixed)$")),
    ("room", re.compile(r"more accurate variant|one size up")),
    ("load", re.compile(r"falling behind|too slow|ms allowed|of the time there is|in time")),
)
_NO_MEMORY: Final = ("NoRoomError:", "TimeoutError:", "MemoryError:")


def reason(said: str) -> Reason:
    """The kind of ``Switch.reason``."""
    return next((kind for kind, pattern in _SAID if pattern.search(said)), "other")


def failure(error: str) -> Failure:
    """The kind of ``Switch.error``."""
    return "memory" if error.startswith(_NO_MEMORY) else "variant"
