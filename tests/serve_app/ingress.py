"""The application behind Ray Serve's own ingress, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .server import ROOT, Server

MODES = {
    "proxy": {},
    "haproxy": {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        # By default 4096 connections, of which an idle one stays for an hour: then nobody is let in.
        "RAY_SERVE_HAPROXY_MAXCONN": "7500",
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "15",
    },
}
_MARK = "SHIFTER_TESTS_INGRESS"


@dataclass(frozen=True)
class Ingress(Server):
    """A server that consists of many processes."""

    mark: str = ""
    limits_silence: bool = False
    """Whether a connection that says nothing is closed."""

    def _processes(self) -> list[Path]:
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (process / "environ").read_bytes():
                    found.append(process)
            except OSError:
                pass  # it has ended
        return found

    @property
    def peaks(self) -> dict[str, int]:
        """Of each process that requests go through, by its number."""
        peaks: dict[str, int] = {}
        for process in self._processes():
            name = (process / "cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
            if "ServeReplica" in name or "Proxy" in name or "haproxy" in name:
                told = (process / "status").read_text()
                peaks[process.name] = 1024 * int(told.split("VmHWM:")[1].split()[0])
        return peaks

    @property
    def peak_bytes(self) -> int:
        return sum(self.peaks.values())

    def forget_peak(self) -> int:
        for process in self._processes():
            (process / "clear_refs").write_text("5")
        return self.peak_bytes


@contextmanager
def ingress(mode: str, portfolio: Path, log: Path, **settings: Any) -> Iterator[Ingress]:
    """The application at the root of a Ray Serve of its own, until the block is left."""
    mark = uuid.uuid4().hex
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    environment |= {**MODES[mode], _MARK: mark, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [sys.executable, "-m", "tests.serve_app.ingress", str(portfolio), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            env=environment,
        ) as process,
    ):
        assert process.stdout is not None
        try:
            lines = iter(process.stdout.readline, b"")
            port = next((int(line.split()[1]) for line in lines if line.startswith(b"PORT ")), None)
            assert port is not None, log.read_text()
            yield Ingress(process.pid, port, log, mark, limits_silence=mode == "haproxy")
        finally:
            process.communicate(b"\n")


def main(portfolio: str, settings: str) -> None:
    from ray import serve

    from jobs.cluster import cluster
    from jobs.serving import serving
    from serve_app.edge import build
    from serve_app.settings import Settings

    with cluster(2, lambda _: None), serving() as served:
        application = build(Settings(portfolio=portfolio, cpus=0.1, **json.loads(settings)))
        serve.run(application, name="edge", route_prefix="/")
        print("PORT", served.port, flush=True)
        sys.stdin.readline()
        serve.delete("edge")


if __name__ == "__main__":
    main(*sys.argv[1:])
