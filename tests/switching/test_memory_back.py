"""A process that switches keeps no memory of what it has left: its resident bytes, over many switches."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from shifter.portfolio import pack
from shifter.values import InputSpec

from ..conftest import CLASSES, _variant

WIDTHS = {"64x": 64, "16x": 128, "4x": 256, "1x": 512}
MIB = 1 << 20

SWITCHING = """
import json, random, sys, threading
from pathlib import Path
import numpy as np
from shifter.portfolio import Portfolio
from shifter.switching.initialise import initialise
from shifter.switching.policies import Slo, median

class Wandering(Slo):
    def choose(self, now):
        return chosen[0], "the test"

def resident():
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) * 1024

switches, ahead_bytes = int(sys.argv[2]), int(sys.argv[3])
portfolio = Portfolio.open(sys.argv[1])
names, chosen, random = list(portfolio.names), [median(portfolio.profiles)], random.Random(0)
images = np.zeros((4, *portfolio.input_spec.shape), np.float32)
seen = []
with initialise(portfolio, Wandering(1.0), dwell=0.0, ahead_bytes=ahead_bytes) as host:
    stop = threading.Event()

    def client():
        while not stop.is_set():
            with host.request() as request:
                request.submit(images).result()
            stop.wait(0.002)

    # Requests from another thread, so that engines are let go of there.
    requests = threading.Thread(target=client)
    requests.start()
    for _ in range(switches):
        chosen[0] = random.choice([name for name in names if name != host.active])
        host.tick()
        with host.request() as request:  # behind those that began before the switch
            request.submit(images).result()
        host.tick()
        seen.append((host.active, resident()))
    stop.set()
    requests.join()
    assert len(host.status().switches) == min(switches, 200), len(host.status().switches)
print(json.dumps(seen))
"""


def resident(package: Path, switches: int, ahead_bytes: int) -> dict[str, list[int]]:
    """Resident bytes after each switch to a variant, in a process that answers requests meanwhile."""
    done = subprocess.run(
        [sys.executable, "-c", SWITCHING, str(package), str(switches), str(ahead_bytes)],
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen: dict[str, list[int]] = {}
    for name, found in json.loads(done.stdout):
        seen.setdefault(name, []).append(found)
    return seen


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Variants of 0.15, 0.6, 2.4 and 9.4 MB."""
    variants = [_variant(name, width, 1.0, 0.9, seed=width) for name, width in WIDTHS.items()]
    path = tmp_path_factory.mktemp("memory") / "portfolio.zip"
    path.write_bytes(
        pack(variants, InputSpec(1, 8, 8, 16.0, (0.3,), (0.4,), CLASSES), model="m", provenance={})
    )
    return path


on_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the heap is glibc's")


@on_glibc
def test_what_the_large_variant_took_is_back_after_a_switch_to_a_small_one(package: Path) -> None:
    """No more than half of the weights stay; without the heap's settings several times their size do."""
    seen = resident(package, 40, ahead_bytes=0)
    freed = min(seen["1x"][3:]) - max(seen["64x"][3:])
    assert freed > 0.5 * 4 * 9 * 512**2


@on_glibc
@pytest.mark.long
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("ahead_bytes", [0, 1 << 30])
def test_resident_memory_is_flat_over_a_thousand_switches(package: Path, ahead_bytes: int) -> None:
    seen = resident(package, 1000, ahead_bytes)
    for name, found in seen.items():
        warm = found[len(found) // 10 :]
        tenth = len(warm) // 10
        first, last = sorted(warm[:tenth]), sorted(warm[-tenth:])
        assert abs(last[tenth // 2] - first[tenth // 2]) < 2 * MIB, name
        half = len(warm) // 2
        assert max(warm[half:]) < max(warm[:half]) + 4 * MIB, name
