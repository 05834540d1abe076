"""The client in a process of its own, where nothing else delays it: started, watched, and read."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from jobs.load_client import Log, Target
from jobs.protocols import Read, Request
from jobs.records import Recording
from shifter.errors import ServiceError

_ENDS_S = 10.0


def drive(
    target: Target,
    due: Sequence[float],
    requests: Sequence[Request],
    asked: Sequence[tuple[int, ...]],
    read: Read,
    watch: Callable[[Mapping[str, Any]], None],
) -> Recording:
    """Open loop, as `jobs.load_client.drive`; ``requests``, of one path, ask about the images ``asked``.

    Args:
        watch: told once a second how far it is: ``seconds``, ``sent``, ``answered``, ``in_flight``.

    Raises:
        ServiceError: if the client's process was ended from outside.
    """
    with tempfile.TemporaryDirectory(prefix="shifter-replay-") as name:
        folder = Path(name)
        kinds = list(dict.fromkeys(tuple(request.headers.items()) for request in requests))
        job = {
            "target": asdict(target),
            "path": requests[0].path,
            "headers": [dict(kind) for kind in kinds],
            "bodies": [(len(one.body), kinds.index(tuple(one.headers.items()))) for one in requests],
        }
        (folder / "job.json").write_text(json.dumps(job), "utf-8")
        np.save(folder / "due.npy", np.asarray(due, np.float64))
        with (folder / "bodies.bin").open("wb") as file:
            file.writelines(request.body for request in requests)
        _run(folder, watch)
        with (folder / "payloads.bin").open("rb") as payloads:
            return Log.load(folder / "log.npz", payloads).recording(asked, read)


def _run(folder: Path, watch: Callable[[Mapping[str, Any]], None]) -> None:
    command = [sys.executable, "-m", "jobs._load_client", str(folder)]
    with (
        (folder / "errors.txt").open("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            for line in process.stdout:
                watch(json.loads(line))
            status = process.wait()
        except BaseException:
            process.terminate()
            try:
                process.wait(_ENDS_S)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
        errors.seek(0)
        said = errors.read().strip()
    if status < 0:
        raise ServiceError(
            f"the client was ended by signal {-status}: has the machine run out of memory? A shorter part "
            "(--seconds) or fewer different images (--distinct) take less"
        )
    assert status == 0, f"the client's process ended with status {status}: {said}"
