"""The machine at hand, as far as the speed of a network depends on it."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

_ENGINES = ("onnxruntime", "onnxruntime-gpu")


@dataclass(frozen=True)
class Node:
    """A kind of machine, and the engine on it; two that are equal compute about equally fast.

    Args:
        cpu: its model, as the system names it.
        cores: logical ones that the machine has, whether or not this process may use them all.
        engine: distribution and version, such as ``onnxruntime 1.24.0``.
    """

    cpu: str
    cores: int
    engine: str

    def __str__(self) -> str:
        return f"{self.cpu}, {self.cores} cores"


def this_node() -> Node:
    """The one that this process runs on."""
    return Node(cpu_model(), os.cpu_count() or 1, _engine())


def cpu_model() -> str:
    """The CPU's or, where it has no name of its own (ARM), the board's model."""
    for path, pattern in (
        (Path("/proc/cpuinfo"), r"^model name\s*:\s*(\S.*?)\s*$"),
        (Path("/proc/device-tree/model"), r"^([^\0\n]+)"),
    ):
        try:
            found = re.search(pattern, path.read_text(errors="replace"), re.MULTILINE)
        except OSError:
            continue
        if found:
            return found[1]
    return platform.processor() or platform.machine()


def _engine() -> str:
    for name in _ENGINES:
        try:
            return f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue
    return "none"
