"""Plain processes that train together, without Ray."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist

ROOT = Path(__file__).parents[1]


def outputs_of(module: str, arguments: list[str], workers: int) -> list[str]:
    """What ``python -m module`` printed, run by ``workers`` processes at once.

    They find RANK and WORLD_SIZE in the environment and, if they are several, get ``--meeting FILE``
    for :func:`together`.

    Raises:
        RuntimeError: if one fails.
    """
    command = [sys.executable, "-m", module, *arguments]
    with tempfile.TemporaryDirectory(prefix="shifter-") as folder:
        command += [f"--meeting={folder}/meeting"] if workers > 1 else []
        processes = [
            subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | {"RANK": str(rank), "WORLD_SIZE": str(workers)},
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(workers)
        ]
        try:
            outputs = [process.communicate(timeout=1800)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
    statuses = [process.returncode for process in processes]
    if any(statuses):
        raise RuntimeError(f"{command} ended with {statuses} (negative: killed by that signal)")
    return outputs


@contextmanager
def together(meeting: Path | None) -> Iterator[None]:
    """Within it, this process is one of a gloo group; of none where there is no ``meeting``."""
    if meeting is not None:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        # By a file: a port that was free a moment ago may be another's by now.
        dist.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=size)
    try:
        yield
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
