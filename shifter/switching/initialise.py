"""Module 8: the whole portfolio deflated in memory, checked, and one variant ready to answer, in one step."""

from __future__ import annotations

from shifter.errors import EngineError
from shifter.switching.engines import make_engine
from shifter.switching.host import Deflated, Host
from shifter.switching.policies import Policy
from shifter.switching.switcher import Switcher


def initialise(
    portfolio: Deflated,
    policy: Policy,
    *,
    dwell: float = 2.0,
    servers: int = 1,
    threads: int = 1,
    ahead_bytes: int = 256 << 20,
) -> Host:
    """The host of a portfolio, its first variant inflated and warmed up; `Host.tick` lets it switch.

    Every entry's content is checked here, so that a damaged package is refused before the first
    request and not at the first switch. The policy names the first variant: that of median size,
    unless it is fixed.

    Args:
        portfolio: as `shifter.portfolio.Portfolio.open` reads it.
        dwell: least seconds between two switches.
        servers: requests computed at once. threads: cores that each may use.
        ahead_bytes: memory for neighbours inflated ahead; 0 for none.

    Raises:
        PackageError: if the content of an entry is not what the manifest declares.
        EngineError: if a setting is out of range, or the first variant does not run on this node.
    """
    if threads < 1 or ahead_bytes < 0:
        raise EngineError(f"threads is at least 1 and ahead_bytes at least 0: {threads}, {ahead_bytes}")
    switcher = Switcher(portfolio.profiles, policy, dwell=dwell, servers=servers)
    portfolio.verify()
    return Host(
        portfolio,
        switcher,
        make_engine(threads=threads),
        servers=servers,
        ahead_bytes=ahead_bytes,
    )
