"""The memory part of module 5: what one loaded variant adds to a process that holds nothing else.

Imports little, since every measurement starts a process that imports it.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shifter.errors import EngineError
from shifter.values import Tensors

LoadEngine = Callable[[bytes, Tensors], Any]
"""Loads a weightless graph with its tensors into what has a ``run(images)``; picklable."""


def measure_memory(load: LoadEngine, graph: bytes, tensors: Tensors, images: NDArray[np.float32]) -> int:
    """Bytes that one loaded engine adds to a fresh process, at its peak, answering ``images``.

    The graph and tensors that it is loaded from are there before and after, and so do not count.
    """
    task = pickle.dumps((_added_bytes, (load, graph, dict(tensors), images)))
    # Not multiprocessing: its resource tracker would outlive the measurement.
    program = "import pickle, sys; f, given = pickle.load(sys.stdin.buffer); print(f(*given))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=task,
        capture_output=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    if done.returncode != 0:
        said = done.stderr.decode().splitlines() or [f"its process ended with status {done.returncode}"]
        raise EngineError(f"the memory of a variant could not be measured: {said[-1]}")
    return int(done.stdout.split()[-1])


def _added_bytes(load: LoadEngine, graph: bytes, tensors: Tensors, images: NDArray[np.float32]) -> int:
    before = _resident_bytes("VmRSS")
    engine = load(graph, tensors)
    engine.run(images)
    return max(0, _resident_bytes("VmHWM") - before)


def _resident_bytes(field: str) -> int:
    """Current (VmRSS) or peak (VmHWM) resident bytes of this process, from Linux's procfs."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")
