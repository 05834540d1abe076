"""Module 8: the whole portfolio deflated in memory, checked, and one variant ready to answer, in one step."""

from __future__ import annotations

from shifter.errors import EngineError
from shifter.heap import give_own_pages
from shifter.switching.engine import OnnxEngine
from shifter.switching.host import Host
from shifter.switching.memory import usable
from shifter.switching.policies import Policy, choices
from shifter.switching.resident import Deflated
from shifter.switching.switcher import Switcher


def initialise(
    portfolio: Deflated,
    policy: Policy,
    *,
    dwell: float = 2.0,
    servers: int = 1,
    threads: int = 1,
    memory_bytes: int | None = None,
    ahead_bytes: int | None = None,
) -> Host:
    """The host of a portfolio, its first variant inflated and warmed up; `Host.tick` lets it switch.

    Every entry's content is checked here, so that a damaged package is refused before the first
    request and not at the first switch. The policy names the first variant: that of median size,
    unless it is fixed. From here on large blocks of this process's memory get pages of their own
    (`shifter.heap`), so that a switch to a smaller variant gives back what the larger one took.

    Args:
        portfolio: as `shifter.portfolio.Portfolio.open` reads it, from a path, a bucket, or bytes.
        dwell: least seconds between two switches.
        servers: requests computed at once. threads: cores that each may use.
        memory_bytes: what package and engines may take together; None for no limit.
        ahead_bytes: the most that neighbours inflated ahead may take of it, 0 for none; by default
            what there is, or 256 MiB if there is no limit.

    Raises:
        PackageError: if the content of an entry is not what the manifest declares.
        EngineError: if a setting is out of range, the memory does not hold the package and its
            smallest variant, or the first variant does not run on this node.
    """
    if threads < 1 or (ahead_bytes or 0) < 0:
        raise EngineError(f"threads is at least 1 and ahead_bytes at least 0: {threads}, {ahead_bytes}")
    profiles = usable(choices(policy, portfolio.profiles), portfolio.deflated_bytes, memory_bytes)
    switcher = Switcher(profiles, policy, dwell=dwell, servers=servers)
    give_own_pages()
    portfolio.verify()
    return Host(
        portfolio,
        switcher,
        lambda variant: OnnxEngine(variant.graph, variant.tensors, threads=threads),
        servers=servers,
        memory_bytes=memory_bytes,
        ahead_bytes=ahead_bytes,
    )
