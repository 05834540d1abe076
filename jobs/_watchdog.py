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
    """Kills every process that was given ``folder`` as RAY_TMPDIR; returns how many there were."""
    given, found = f"RAY_TMPDIR={folder}".encode(), 0
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            process = os.pidfd_open(int(entry.name))
        except OSError:
            continue  # it has ended
        try:
            # Read while the descriptor is held: it is this process, and none that got its pid later.
            if given in (entry / "environ").read_bytes().split(b"\0"):
                signal.pidfd_send_signal(process, signal.SIGKILL)
                found += 1
        except OSError:
            continue  # it has ended, or is another user's
        finally:
            os.close(process)
    return found


if __name__ == "__main__":
    main(sys.argv[1])
