"""Which process it is, told so that another process can find out whether it still lives."""

from __future__ import annotations

import os
import socket
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_PROC = Path("/proc")


@dataclass(frozen=True)
class Process:
    """A process of some machine. What the operating system does not tell is None.

    Args:
        started: ticks since the machine's start; a pid alone is given away again.
        boot: the running kernel. Host names are no proof: images and reboots share them.
        namespace: in which ``pid`` counts; containers have their own.
    """

    host: str
    pid: int
    started: int | None
    boot: str | None
    namespace: str | None

    @classmethod
    def this(cls) -> Process:
        """The calling one."""
        pid = os.getpid()
        return cls(socket.gethostname(), pid, _started(pid), _boot(), _namespace())

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Process:
        """Raises TypeError for what is not of :meth:`to_json`."""
        return cls(**data)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def is_known_dead(self) -> bool:
        """True if it has certainly ended; False if it lives, or cannot be seen from here."""
        if self.boot is None or (self.boot, self.namespace) != (_boot(), _namespace()):
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass  # another user's: there it is
        now = _started(self.pid)
        # No start time: it may just be hidden, but for a zombie, which does nothing any more.
        return now != self.started if now is not None else _is_zombie(self.pid)


def _stat(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat from the third, its state, on; none if it cannot be read."""
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return []
    # The second field, the name, may hold spaces and brackets itself.
    return text.rpartition(")")[2].split()


def _is_zombie(pid: int) -> bool:
    fields = _stat(pid)
    return bool(fields) and fields[0] in "ZX"


def _started(pid: int) -> int | None:
    fields = _stat(pid)
    return int(fields[19]) if fields and fields[0] not in "ZX" else None


def _boot() -> str | None:
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def _namespace() -> str | None:
    try:
        return os.readlink(_PROC / "self/ns/pid")
    except OSError:
        return None
