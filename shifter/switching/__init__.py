"""Phase 3: engines, the initialiser (module 8), the switcher (module 9), a simulator. No torch, no Ray."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shifter.switching.simulator import simulate as simulate


def __getattr__(name: str) -> object:
    if name != "simulate":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Here, since who serves does not simulate.
    from shifter.switching.simulator import simulate

    return simulate
