"""An edge node by itself on this machine, as ``ray start`` and ``serve deploy`` make one."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.error import URLError
from urllib.request import Request, urlopen

from jobs._watchdog import kill_all

Mode = Literal["proxy", "haproxy"]
MODES: tuple[Mode, ...] = ("proxy", "haproxy")
ROOT = Path(__file__).parents[1]
_BIN = Path(sys.executable).parent
T = TypeVar("T")
_PATIENCE_S = 180.0
_MODULES = "dashboard's modules"
_OF_HEAD = {"gcs_server", "dashboard.py", _MODULES, "monitor.py", "ray.util.client.server", "ServeController"}


@dataclass(frozen=True)
class Application:
    """One application: its name (and route), what builds it, and with which arguments."""

    name: str
    import_path: str
    args: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "route_prefix": f"/{self.name}",
            "import_path": self.import_path,
            "args": dict(self.args),
        }


class Node:
    """A running node. Made by `node`."""

    def __init__(self, folder: Path, environment: Mapping[str, str], port: int, host: str, pid: int) -> None:
        self.folder, self.port, self._host, self._pid = folder, port, host, pid
        self._api = f"{environment['RAY_API_SERVER_ADDRESS']}/api/serve/applications/"
        self._headers = {"Authorization": f"Bearer {environment['RAY_AUTH_TOKEN']}"}

    def url(self, application: str) -> str:
        return f"http://127.0.0.1:{self.port}/{application}"

    def deploy(self, applications: Sequence[Application]) -> None:
        """Returns when all of them run and answer; others that were deployed before are gone."""
        before = time.time()
        self.put(applications)
        wanted = {one.name for one in applications}
        patiently(lambda: self._running(wanted, before))
        for name in wanted:
            patiently(partial(self._routed, name))

    def put(self, applications: Sequence[Application]) -> None:
        """Asks for them, whatever becomes of it."""
        config = {
            "proxy_location": "HeadOnly",
            "http_options": {"host": self._host, "port": self.port},
            "logging_config": {"log_level": "WARNING", "enable_access_log": False},
            "applications": [one.to_json() for one in applications],
        }
        headers = self._headers | {"Content-Type": "application/json"}
        urlopen(Request(self._api, json.dumps(config).encode(), headers, method="PUT"), timeout=60).close()

    def applications(self) -> dict[str, Any]:
        """What Ray Serve says of them, by name."""
        with urlopen(Request(self._api, headers=self._headers), timeout=30) as answer:
            found: dict[str, Any] = json.load(answer)["applications"]
        return found

    def status(self, application: str) -> dict[str, Any]:
        """What an edge application says of itself."""
        with urlopen(f"{self.url(application)}/status", timeout=30) as answer:
            told: dict[str, Any] = json.load(answer)
        return told

    def _running(self, wanted: set[str], since: float = 0.0) -> None:
        found = self.applications()
        for name, one in found.items():
            if one["status"] == "DEPLOY_FAILED" and one["last_deployed_time_s"] >= since:
                raise RuntimeError(f"{name} was not deployed: {one['message']} {one['deployments']}")
        states = {name: one["status"] for name, one in found.items()}
        if states != dict.fromkeys(wanted, "RUNNING"):
            raise ConnectionError(f"the applications are {states}")

    def _routed(self, name: str) -> None:
        with urlopen(f"http://127.0.0.1:{self.port}/-/routes", timeout=10) as answer:
            if f"/{name}" not in json.load(answer):
                raise ConnectionError(f"there is no route to {name} yet")

    def memory(self) -> dict[str, tuple[float, float]]:
        """MiB of each process by its name: resident, and with pages that others have as well in shares."""
        found: dict[str, tuple[float, float]] = {}
        for pid in _descendants(self._pid):
            entry = Path("/proc", str(pid))
            try:
                rollup = dict(
                    line.split(":", 1) for line in (entry / "smaps_rollup").read_text().splitlines()[1:]
                )
                name = _name((entry / "cmdline").read_bytes())
            except (OSError, ValueError):
                continue  # it has ended
            rss, pss = (float(rollup[kind].split()[0]) / 1024 for kind in ("Rss", "Pss"))
            before = found.get(name, (0.0, 0.0))
            found[name] = (before[0] + rss, before[1] + pss)
        return found


def patiently(attempt: Callable[[], T]) -> T:
    """What ``attempt`` returns, once it does; what stood in its way, if it never does."""
    end = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return attempt()
        except (URLError, ConnectionError, TimeoutError):
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def of_head(process: str) -> bool:
    """Whether that process is one that an edge node without the head does not have."""
    return process in _OF_HEAD


def _name(command: bytes) -> str:
    words = [word.decode(errors="replace") for word in command.split(b"\0") if word]
    title = words[0] if words else "?"
    if title.startswith("ray::"):
        return title.removeprefix("ray::").split()[0].partition(".")[0]  # without what it is doing
    if title.startswith("ray-dashboard-") or any("multiprocessing" in word for word in words):
        return _MODULES
    if "python" not in Path(title).name:
        return Path(title).name
    scripts = [Path(word).name for word in words[1:] if not word.startswith("-")]
    return scripts[0] if scripts else "python"


def _descendants(pid: int) -> set[int]:
    """It and all that it started, and those did."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has ended
    ours, found = {pid}, {pid}
    while found:
        found = {child for child, parent in parents.items() if parent in found} - ours
        ours |= found
    return ours


@contextmanager
def node(mode: Mode, more: Mapping[str, str] | None = None) -> Iterator[Node]:
    """A node of a cluster of its own; its processes and its folder go with it.

    Args:
        more: environment variables of its processes.
    """
    folder = Path(tempfile.mkdtemp(prefix="shifter-"))
    gcs, dashboard, http, *others = _free_ports(6)
    environment = {
        k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR")
    }
    environment |= {
        "PATH": f"{_BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    environment |= haproxy_environment(folder, others) if mode == "haproxy" else {}
    environment |= more or {}
    start = [str(_BIN / "ray"), "start", "--head", "--block", "--num-cpus=4", "--node-ip-address=127.0.0.1"]
    start += [f"--port={gcs}", f"--dashboard-port={dashboard}", f"--temp-dir={folder}"]
    start += ["--dashboard-agent-listen-port=0"]
    with (folder / "start.log").open("w") as log:
        process = subprocess.Popen(start, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        # HAProxy looks for replicas at the node's address, so they have to listen there.
        started = Node(folder, environment, http, "127.0.0.1" if mode == "proxy" else "0.0.0.0", process.pid)
        patiently(lambda: started._running(set()))
        yield started
    finally:
        # Not gracefully, which takes half a minute: nothing here is to be kept.
        while kill_all(str(folder)):
            time.sleep(0.1)
        process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def haproxy_environment(folder: Path, ports: Sequence[int]) -> dict[str, str]:
    """What switches HAProxy on, with its files in ``folder`` and its three other ports."""
    files = folder / "h"  # a socket's path ends at 97 characters, and the node's id of 56 is in it
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(files / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(files / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(files / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(files),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(files / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports[0]),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(ports[1]),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports[2]),
        # By default, a replica that leaves waits half a minute for balancers to notice.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    }


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()
