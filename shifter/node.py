"""The machine at hand, as far as serving a network depends on it: its kind, and its memory."""

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


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes that processes here may still take; None where the system does not say.

    What Linux calls available, or what the control group (version 2) leaves, if that is less; pages
    of files that nobody used of late are free in both.

    Args:
        root: where ``proc`` and ``sys`` are mounted.
    """
    known = [_number(root / "proc/meminfo", r"^MemAvailable:\s*(\d+) kB", 1024)]
    group = root / "sys/fs/cgroup"
    limit, taken = _number(group / "memory.max"), _number(group / "memory.current")
    if limit is not None and taken is not None:
        files = _number(group / "memory.stat", r"^inactive_file (\d+)") or 0
        known.append(max(0, limit - taken + files))
    return min((one for one in known if one is not None), default=None)


def _number(file: Path, pattern: str = r"^(\d+)$", unit: int = 1) -> int | None:
    try:
        found = re.search(pattern, file.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * unit if found else None


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
