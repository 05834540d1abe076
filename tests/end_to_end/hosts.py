"""Hosts of their own on this machine: network, processes and ``/tmp/ray`` apart; needs root and iproute2."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
PORT, API = 6379, 8265


class Host:
    """One end of a cable. ``ray`` is a function, called again where Ray is to be started again."""

    def __init__(self, name: str, address: str, folder: Path, environment: Mapping[str, str]) -> None:
        self.name, self.address, self.folder = name, address, folder
        self.environment = dict(environment)
        self.ray: subprocess.Popen[bytes] | None = None
        (folder / name).mkdir()

    def start(self, *options: str) -> None:
        """Starts Ray, as a supervisor would."""
        inside = 'mount --bind "$0" /tmp/ray && exec "$@"'
        apart = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c", inside]
        start = [str(BIN / "ray"), "start", "--block", f"--node-ip-address={self.address}", *options]
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self.ray = subprocess.Popen(
                [*self.within, *apart, str(self.folder / self.name), *start],
                env=self.environment,
                cwd=self.folder,
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        """All of Ray, at once: as when the power fails."""
        if self.ray is not None:
            self.ray.kill()
            self.ray.wait()

    @property
    def within(self) -> list[str]:
        """What goes before a command that is to run on this host's network."""
        return ["ip", "netns", "exec", self.name]

    def get(self, url: str) -> Any:
        """JSON from there; ConnectionError if there is none."""
        code = (
            "import os, sys, urllib.request as r; "
            "h = {'Authorization': 'Bearer ' + os.environ['RAY_AUTH_TOKEN']}; "
            "sys.stdout.write(r.urlopen(r.Request(sys.argv[1], headers=h), timeout=10).read().decode())"
        )
        done = subprocess.run(
            [*self.within, sys.executable, "-c", code, url],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        if done.returncode != 0:
            raise ConnectionError(done.stderr)
        return json.loads(done.stdout)

    def cable(self, state: str) -> None:
        """``up`` or ``down``."""
        subprocess.run([*self.within, "ip", "link", "set", "shifter0", state], check=True)


@contextmanager
def two_hosts(folder: Path, more: Mapping[str, str]) -> Iterator[tuple[Host, Host]]:
    """Two, connected by a cable, on which nothing runs yet; what does at the end is killed."""
    if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("unshare") is None:
        pytest.skip("needs root, iproute2 and util-linux, to make hosts of their own")
    Path("/tmp/ray").mkdir(exist_ok=True)  # where each host has a folder of its own
    environment = os.environ | {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    environment = {k: v for k, v in environment.items() if k not in ("RAY_ADDRESS", "RAY_TMPDIR")} | dict(
        more
    )
    names = [f"shifter-{os.getpid()}-{end}" for end in ("head", "edge")]
    if any(_ip("netns", "add", name).returncode for name in names):
        pytest.skip("this machine allows no network of one's own (ip netns add)")
    hosts = [
        Host(name, f"10.99.0.{number}", folder, environment) for number, name in enumerate(names, start=1)
    ]
    try:
        made = ["link", "add", "shifter0", "netns", names[0], "type", "veth", "peer", "name", "shifter0"]
        _ip(*made, "netns", names[1]).check_returncode()
        for host in hosts:
            for change in (
                ["addr", "add", f"{host.address}/24", "dev", "shifter0"],
                ["link", "set", "lo", "up"],
                ["link", "set", "shifter0", "up"],
            ):
                _ip("-n", host.name, *change).check_returncode()
        yield hosts[0], hosts[1]
    finally:
        for host in hosts:
            host.kill()
        time.sleep(0.5)
        for name in names:
            _ip("netns", "del", name)


def _ip(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["ip", *arguments], capture_output=True, check=False)
