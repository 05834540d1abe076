"""The client in a process of its own: ``python -m jobs._load_client FOLDER``.

The folder holds what `jobs.replay_process` wrote: ``job.json``, ``due.npy`` and ``bodies.bin``.
It leaves ``log.npz`` and ``payloads.bin`` there, and tells on stdout, a JSON object a
second, how far it is.
"""

from __future__ import annotations

import asyncio
import gc
import json
import resource
import signal
import sys
from pathlib import Path

import numpy as np

from jobs.load_client import Client, Log, Target, drive
from jobs.protocols import Request

_OTHER_FILES = 64


def main(folder: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started it ends it
    job = json.loads((folder / "job.json").read_text("utf-8"))
    target = Target(**job["target"])
    _allow_files(target.max_in_flight + _OTHER_FILES)
    due = np.load(folder / "due.npy").tolist()
    with (folder / "bodies.bin").open("rb") as file:
        requests = [
            Request(job["path"], file.read(length), job["headers"][kind]) for length, kind in job["bodies"]
        ]
    with (folder / "payloads.bin").open("w+b", buffering=2**20) as payloads:
        log = Log(payloads)
        # What is there stays: looking through it again and again would hold requests up.
        gc.collect()
        gc.freeze()
        asyncio.run(drive(target, due, requests, log, _tell))
        log.save(folder / "log.npz")


def _tell(client: Client) -> None:
    told = {
        "seconds": round(client.now(), 3),
        "sent": client.sent,
        "answered": client.answered,
        "in_flight": client.in_flight,
    }
    # Should nobody listen any more, this ends it.
    print(json.dumps(told), flush=True)


def most_files() -> int:
    """Connections that a process may be allowed at a time."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1] - _OTHER_FILES


def _allow_files(wanted: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, wanted), hard), hard))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
