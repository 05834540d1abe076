"""The multiple that widths are rounded up to, chosen by measured latency.

Which multiple is fast depends on the processor's vectors and on the engine's kernels, so it is
measured where it matters, once for each variant.
"""

from __future__ import annotations

from collections.abc import Mapping

from shifter.values import Latency

CANDIDATES = (8, 16)
WHOLE = 2**30
"""A multiple that no width reaches: every channel stays."""


def choose_multiple(latencies: Mapping[int, Latency]) -> int:
    """The multiple to round to, of those whose variants were measured; the smallest of equally fast ones.

    Args:
        latencies: by multiple, all from one measurement; :data:`WHOLE`'s is that of the network as it
            was. Whatever is slower than that is no candidate, so that a variant never is.
    """
    whole = latencies[WHOLE]
    fair = {m: found for m, found in latencies.items() if m != WHOLE and not found.is_slower_than(whole)}
    fastest = (m for m, one in fair.items() if not any(one.is_slower_than(other) for other in fair.values()))
    return min(fastest, default=WHOLE)
