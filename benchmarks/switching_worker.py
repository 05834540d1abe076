"""What `benchmarks.switching` measures in processes of their own: time to start, and resident memory.

Prints one line of JSON. Nothing is imported before the clock runs.
"""

from __future__ import annotations

import time

BEGAN = time.perf_counter()

import ctypes  # noqa: E402 - see above
import gc  # noqa: E402
import json  # noqa: E402
import platform  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable, Mapping  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import TYPE_CHECKING, Any  # noqa: E402

if TYPE_CHECKING:
    from shifter.switching.host import Host
    from shifter.switching.policies import Situation
    from shifter.values import Profile

ALL = 1 << 40
"""Bytes of memory for neighbours inflated ahead: as much as they like."""
_TICKS = 5


@dataclass
class Told:
    """A policy that does as it is told."""

    variant: str

    def start(self, profiles: Mapping[str, Profile]) -> str:
        return self.variant

    def choose(self, now: Situation) -> tuple[str, str]:
        return self.variant, "told so"


def start(package: str) -> dict[str, Any]:
    """From the first import to the first answer, as a service does it."""
    import numpy as np

    from shifter.portfolio import Portfolio
    from shifter.switching.initialise import initialise
    from shifter.switching.policies import Slo

    imported = time.perf_counter()
    portfolio = Portfolio.open(package)
    with initialise(portfolio, Slo(0.1)) as host:
        ready = time.perf_counter()
        _answer(host, np.zeros((1, *portfolio.input_spec.shape), np.float32))
        answered = time.perf_counter()
    return {
        "seconds": answered - BEGAN,
        "imports": imported - BEGAN,
        "initialise": ready - imported,
        "peak": resident("VmHWM"),
        "deflated": portfolio.deflated_bytes,
    }


def nothing(package: str) -> dict[str, Any]:
    """Memory of the libraries alone."""
    import shifter.switching.initialise  # noqa: F401 - loads what serving needs

    return _memory()


def ensemble(package: str) -> dict[str, Any]:
    """Memory with every variant loaded, and the package gone."""
    import numpy as np

    from shifter.portfolio import Portfolio
    from shifter.switching.engine import OnnxEngine

    portfolio = Portfolio.open(package)
    image = np.zeros((1, *portfolio.input_spec.shape), np.float32)
    engines = []
    for name in portfolio.names:
        variant = portfolio.inflate(name)
        engines.append(OnnxEngine(variant.graph, variant.tensors))
        del variant
        engines[-1].run(image)
    del portfolio
    return _memory()


def active(package: str, variant: str, ahead: str) -> dict[str, Any]:
    """Memory of a host that holds the portfolio deflated and ``variant`` active, and its next switch."""
    import numpy as np

    from shifter.portfolio import Portfolio
    from shifter.switching.initialise import initialise

    portfolio = Portfolio.open(package)
    policy = Told(variant)
    with initialise(portfolio, policy, dwell=0.0, ahead_bytes=ALL if ahead == "ahead" else 0) as host:
        image = np.zeros((1, *portfolio.input_spec.shape), np.float32)
        for _ in range(_TICKS):  # builds what is built ahead, and gives memory back
            host.tick()
            _answer(host, image)
        found = _memory()
        names = portfolio.names
        here = names.index(variant)
        policy.variant = names[here - 1 if here else 1]
        host.tick()
        switch = host.status().switches[-1]
    assert (switch.after, switch.ahead) == (policy.variant, ahead == "ahead"), switch
    return found | {"switch_ms": 1000 * switch.seconds}


def _answer(host: Host, image: Any) -> None:
    with host.request() as request:
        request.submit(image).result()


def _memory() -> dict[str, Any]:
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        # What lies free in the heap is given back before each is measured, the ensemble's too.
        ctypes.CDLL(None).malloc_trim(0)
    return {"resident": resident("VmRSS"), "peak": resident("VmHWM")}


def resident(field: str) -> int:
    """Bytes now (VmRSS) or at most (VmHWM), from Linux's procfs."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


if __name__ == "__main__":
    ways: dict[str, Callable[..., Any]] = {
        "start": start,
        "nothing": nothing,
        "ensemble": ensemble,
        "active": active,
    }
    print(json.dumps(ways[sys.argv[1]](*sys.argv[2:])))
