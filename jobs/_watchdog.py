"""Ends a local Ray cluster whose driver was killed, and removes its folder.

Ray's processes follow their driver, but its agents take half a minute and more to notice. Run as a
script of its own, with nothing but the standard library: ``_watchdog.py FOLDER``. Whoever starts it
says goodbye on its stdin; if that is closed without a word, it acts.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path

PATIENCE_S = 15.0
QUIET_S = 3.0


def main(folder: str) -> None:
    if sys.stdin.buffer.read():
        return
    last = begin = time.monotonic()
    # Again, and for a while after none is left: one that is just being started shows no environment.
    while (now := time.monotonic()) < min(begin + PATIENCE_S, last + QUIET_S):
        if kill_all(folder):
            last = now
        time.sleep(0.05)
    shutil.rmtree(folder, ignore_errors=True)


def kill_all(folder: str) -> int:
    """Kills every process of the cluster in ``folder``; returns how many there were.

    Those are what was given it as RAY_TMPDIR, or has a file of it open: who changes the title that ps
    shows, as Ray's agents do, may lose its environment to it, as others see it.
    """
    given, below, found = f"RAY_TMPDIR={folder}".encode(), f"{folder.rstrip('/')}/", 0
    for entry in Path("/proc").glob("[0-9]*"):
        if int(entry.name) == os.getpid():
            continue
        try:
            process = os.pidfd_open(int(entry.name))
        except OSError:
            continue  # it has ended
        try:
            # Read while the descriptor is held: it is this process, and none that got its pid later.
            if given in (entry / "environ").read_bytes().split(b"\0") or _has_open(entry, below):
                signal.pidfd_send_signal(process, signal.SIGKILL)
                found += 1
        except OSError:
            continue  # it has ended, or is another user's
        finally:
            os.close(process)
    return found


def _has_open(process: Path, below: str) -> bool:
    for descriptor in os.listdir(process / "fd"):
        try:
            if os.readlink(process / "fd" / descriptor).startswith(below):
                return True
        except OSError:
            continue  # it was closed
    return False


if __name__ == "__main__":
    main(sys.argv[1])
