"""The memory budget: which variants can serve within it, and what of it is taken."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Collection, Mapping

from shifter.errors import EngineError
from shifter.switching.policies import Policy, choices
from shifter.values import Profile

_POLL_S = 0.002
_POLLS_PER_COLLECTION = 500


def building_bytes(profile: Profile) -> int:
    """What a variant takes while its engine is built: the engine, and the tensors that it is built from."""
    return profile.memory_bytes + profile.tensor_bytes


def smallest(profiles: Mapping[str, Profile]) -> str:
    """The variant that takes the least memory."""
    return min(profiles, key=lambda name: building_bytes(profiles[name]))


def usable(
    profiles: Mapping[str, Profile], package_bytes: int, memory_bytes: int | None
) -> dict[str, Profile]:
    """The variants that can serve within a budget, in their order.

    One serves while the next is built, and where a pair does not fit, the smallest serves between
    the two. So a variant is usable if it fits beside the smallest, each of them being built.

    Args:
        package_bytes: of the package, which stays in memory. memory_bytes: the budget; None for none.

    Raises:
        EngineError: if not even the smallest fits, with the bytes that it needs.
    """
    if memory_bytes is None:
        return dict(profiles)
    first = smallest(profiles)
    least = package_bytes + building_bytes(profiles[first])
    if least > memory_bytes:
        raise EngineError(
            f"memory_bytes is {memory_bytes}: the package takes {package_bytes}, and {first} with it "
            f"{least}; give at least {least}"
        )

    return beside(first, profiles, package_bytes, memory_bytes)


def beside(
    first: str, profiles: Mapping[str, Profile], package_bytes: int, memory_bytes: int | None
) -> dict[str, Profile]:
    """``first``, and those that fit a budget beside it while either is built, in their order."""

    def fits(name: str) -> bool:
        pair = (profiles[name], profiles[first])
        larger = max(profile.tensor_bytes for profile in pair)
        taken = package_bytes + sum(profile.memory_bytes for profile in pair) + larger
        return memory_bytes is None or taken <= memory_bytes

    return {name: profile for name, profile in profiles.items() if name == first or fits(name)}


def servable(
    policy: Policy, profiles: Mapping[str, Profile], package_bytes: int, memory_bytes: int | None
) -> dict[str, Profile]:
    """The variants that can serve within a budget: all that a policy may choose of them, and what else
    fits beside, for requests that need it and for administration.

    Raises:
        EngineError: as `usable`, of what the policy may choose.
    """
    chosen = usable(choices(policy, profiles), package_bytes, memory_bytes)
    return beside(smallest(chosen), profiles, package_bytes, memory_bytes)


class NotNowError(EngineError):
    """What is asked cannot be done now, and may be later: nothing is wrong with it."""


class NoRoomError(NotNowError):
    """A budget has no room for a variant now; the variant itself may be sound."""


class Reservation:
    """Room for what is being made; given up when it is made, or dropped."""


class Memory:
    """What of a budget is taken. A thing counts as long as it exists: an engine, until the last
    request on it is answered.

    Args:
        limit: the budget in bytes; None for none.
    """

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._bytes: weakref.WeakKeyDictionary[object, int] = weakref.WeakKeyDictionary()
        self._counted = 0
        self._stopped = threading.Event()

    def count(self, thing: object, nbytes: int, instead_of: Reservation | None = None) -> None:
        """From here on, until it is gone."""
        with self._lock:
            self._counted += thing not in self._bytes
            self._bytes[thing] = nbytes
            if instead_of is not None:
                self._give_up(instead_of)

    def give_up(self, room: Reservation) -> None:
        """What was reserved is free again; that is once enough."""
        with self._lock:
            self._give_up(room)

    @property
    def taken(self) -> int:
        """Bytes of all that exists."""
        with self._lock:
            return sum(self._bytes.values())

    @property
    def gone(self) -> int:
        """How many things were counted and exist no more."""
        with self._lock:
            return self._counted - len(self._bytes)

    def reserve(self, name: str, nbytes: int, kept: Collection[object], patience_s: float) -> Reservation:
        """Takes ``nbytes`` once they are within the limit, as others let go of what is not ``kept``.

        What others have reserved is not waited for.

        Args:
            name: of what is to take them, for messages.

        Raises:
            NoRoomError: if they are not even within it beside ``kept`` alone.
            TimeoutError: if others held on to the rest for ``patience_s``, or waiting was stopped.
        """
        made = Reservation()
        known, end = {id(thing) for thing in kept}, time.monotonic() + patience_s
        waited = 0
        while True:
            with self._lock:
                needed = sum(self._bytes.values()) + nbytes
                if self.limit is None or needed <= self.limit:
                    self._counted += 1
                    self._bytes[made] = nbytes
                    return made
                others = {id(thing) for thing in self._bytes if not isinstance(thing, Reservation)}
            if others <= known:
                raise NoRoomError(
                    f"memory_bytes is {self.limit}: {name}, and what stays beside it, take {needed}"
                )
            if time.monotonic() >= end or self._stopped.wait(_POLL_S):
                raise TimeoutError(
                    f"memory_bytes is {self.limit}: {name}, and what requests are still on, take {needed}"
                )
            waited += 1
            if waited % _POLLS_PER_COLLECTION == 0:
                gc.collect()  # should an engine be part of a cycle

    def stop(self) -> None:
        """Nobody waits for room any more."""
        self._stopped.set()

    def _give_up(self, room: Reservation) -> None:
        self._counted -= self._bytes.pop(room, None) is not None
