"""The application under plain uvicorn, in a process of its own: ``python server.py PORTFOLIO SETTINGS``."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from serve_app.app import create_app
from serve_app.service import EdgeService
from serve_app.settings import Settings

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Server:
    pid: int
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self, timeout: float = 30) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout)

    def ask(self, sent: bytes) -> bytes:
        """What comes back, until the server closes or says no more for a while."""
        with self.connect() as client:
            client.sendall(sent)
            return received(client)

    @property
    def peak_bytes(self) -> int:
        """The most memory that was resident since the last :meth:`forget_peak`."""
        told = Path(f"/proc/{self.pid}/status").read_text()
        return 1024 * int(told.split("VmHWM:")[1].split()[0])

    def forget_peak(self) -> int:
        """Begins to count anew; what is resident now, in bytes."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")
        return self.peak_bytes


def received(client: socket.socket) -> bytes:
    """Whole responses with a declared length, one after another, until the other side closes."""
    answer = b""
    while True:
        try:
            part = client.recv(65536)
        except ConnectionResetError:
            return answer
        if not part:
            return answer
        answer += part
        if _whole(answer):
            return answer


def _whole(answer: bytes) -> bool:
    head, found, body = answer.partition(b"\r\n\r\n")
    if not found or head.startswith(b"HTTP/1.1 100"):
        return bool(found) and bool(body) and _whole(body)
    lengths = [
        line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")
    ]
    return bool(lengths) and len(body) >= int(lengths[0])


@contextmanager
def serving(portfolio: Path, log: Path, **settings: Any) -> Iterator[Server]:
    """A server on a free port, until the block is left."""
    command = [sys.executable, __file__, str(portfolio), json.dumps(settings)]
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=output,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        ) as process,
    ):
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            assert line, log.read_text()
            yield Server(process.pid, int(line), log)
        finally:
            process.terminate()


def main(portfolio: str, settings: str) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    service = EdgeService.open(Settings(portfolio=portfolio, **json.loads(settings)))
    # What Serve asks of uvicorn, but for the lifespan, which Serve's replica runs by itself.
    config = uvicorn.Config(create_app(service), access_log=False, log_level="warning", timeout_keep_alive=90)
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(2048)
    print(listening.getsockname()[1], flush=True)
    uvicorn.Server(config).run([listening])


if __name__ == "__main__":
    main(*sys.argv[1:])
