"""A Ray cluster of one node with token authentication, and jobs that are sent to it."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


@contextmanager
def running(home: Path) -> Iterator[dict[str, str]]:
    """A head node started in ``home``; yields the environment of who uses it."""
    ports = [free_port() for _ in range(2)]
    folder = tempfile.mkdtemp(prefix="shifter-")
    environment = os.environ | {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{ports[1]}",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": folder,
    }
    environment.pop("RAY_ADDRESS", None)
    start = [BIN / "ray", "start", "--head", "--block", "--num-cpus=3", f"--port={ports[0]}"]
    start += [f"--dashboard-port={ports[1]}", f"--temp-dir={folder}", "--node-ip-address=127.0.0.1"]
    # Not the fixed port that is the default: connections of a cluster that was killed may still hold it.
    start += ["--dashboard-agent-listen-port=0"]
    head = subprocess.Popen(
        start,
        cwd=home,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _wait_for_jobs(environment)
        yield environment
    finally:
        head.send_signal(signal.SIGTERM)
        try:
            head.wait(60)
        finally:
            subprocess.run(["rm", "-rf", folder], check=True)


def command(*arguments: str) -> list[str]:
    """That sends a `generate` job."""
    submit = [str(BIN / "ray"), "job", "submit", "--working-dir", ".", "--"]
    return [*submit, "python", "-m", "jobs.generate", *arguments]


def submit(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return _send(environment, command(*arguments))


def _send(environment: dict[str, str], what: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        what,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )


def _wait_for_jobs(environment: dict[str, str]) -> None:
    """Until a job that does nothing is done: jobs are listed before an agent is there to start one."""
    headers = {"Authorization": f"Bearer {environment['RAY_AUTH_TOKEN']}"}
    request = Request(f"{environment['RAY_API_SERVER_ADDRESS']}/api/jobs/", headers=headers)
    patiently(lambda: urlopen(request, timeout=10))

    def one_is_done() -> None:
        done = _send(environment, [str(BIN / "ray"), "job", "submit", "--", "true"])
        if "No available agent" in done.stdout:
            raise ConnectionError(done.stdout)
        assert done.returncode == 0, done.stdout

    patiently(one_is_done)


def patiently(attempt, seconds=120.0):  # type: ignore[no-untyped-def]
    """What ``attempt`` returns, once it does; what stood in its way, if it never does."""
    end = time.monotonic() + seconds
    while True:
        try:
            return attempt()
        except (URLError, ConnectionError, TimeoutError):
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
