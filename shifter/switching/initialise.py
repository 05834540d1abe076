"""Module 8: the whole portfolio deflated in memory, checked, and one variant ready to answer, in one step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shifter.errors import EngineError
from shifter.heap import give_own_pages
from shifter.node import free_memory
from shifter.switching.engines import make_engine
from shifter.switching.host import MAX_BATCH, Host
from shifter.switching.memory import servable
from shifter.switching.policies import Policy
from shifter.switching.resident import Build, Deflated
from shifter.switching.switcher import Switcher

if TYPE_CHECKING:
    from shifter.switching.calibration import Calibration


def initialise(
    portfolio: Deflated,
    policy: Policy,
    *,
    dwell: float = 2.0,
    servers: int = 1,
    max_batch: int = MAX_BATCH,
    build: Build | None = None,
    memory_bytes: int | None = None,
    ahead_bytes: int | None = None,
    calibration: Calibration | None = None,
) -> Host:
    """The host of a portfolio, its first variant inflated and warmed up; `Host.tick` lets it switch.

    Every entry's content is checked here, so that a damaged package is refused before the first
    request and not at the first switch. The policy names the first variant: that of median size,
    unless it is fixed; where the node's memory gets short, a smaller one serves. From here on large
    blocks of this process's memory get pages of their own (`shifter.heap`), so that a switch to a
    smaller variant gives back what the larger one took.

    Args:
        portfolio: as `shifter.portfolio.Portfolio.open` reads it, from a path, a bucket, or bytes.
        dwell: least seconds between two switches.
        servers: requests computed at once. max_batch: images of several requests in one call, at most.
        build: makes the engine of an inflated variant; by default ONNX Runtime on the processor, one
            core for each request (`shifter.switching.engines.make_engine`).
        memory_bytes: what package and engines may take together; None for no limit.
        ahead_bytes: the most that neighbours inflated ahead may take of it, 0 for none; by default
            what there is, or 256 MiB if there is no limit.
        calibration: what was measured on this node with as many threads
            (`shifter.switching.calibration.find_calibration`); by default the profiles count.

    Raises:
        PackageError: if the content of an entry is not what the manifest declares.
        EngineError: if a setting is out of range, the memory does not hold the package and its
            smallest variant, or the first variant does not run on this node.
    """
    if (ahead_bytes or 0) < 0:
        raise EngineError(f"ahead_bytes is at least 0: {ahead_bytes}")
    profiles = portfolio.profiles if calibration is None else calibration.apply(portfolio.profiles)
    profiles = servable(policy, profiles, portfolio.deflated_bytes, memory_bytes)
    switcher = Switcher(profiles, policy, dwell=dwell, servers=servers, calibration=calibration)
    give_own_pages()
    portfolio.verify()
    return Host(
        portfolio,
        switcher,
        build or make_engine(),
        servers=servers,
        max_batch=max_batch,
        memory_bytes=memory_bytes,
        ahead_bytes=ahead_bytes,
        free_memory=free_memory,
    )
