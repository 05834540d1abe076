"""Large blocks of memory go back to the system when they are given back, and not only in the end."""

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, sys
from pathlib import Path
from shifter.heap import give_own_pages

def resident():
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) / 1024

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
libc.free(libc.malloc(30 * 2**20))  # from here on blocks below 30 MiB come from the heap
if sys.argv[1] == "own pages":
    assert give_own_pages()
before = resident()
blocks = [libc.malloc(4 * 2**20) for _ in range(32)]
for block in blocks:
    ctypes.memset(block, 1, 4 * 2**20)
libc.malloc(2**20)  # stays, above them
for block in blocks:
    libc.free(block)
print(resident() - before)
"""


def kept_mib(how):
    """Of 128 MiB in blocks of 4."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the heap is glibc's")
def test_large_blocks_leave_no_memory_behind():
    assert kept_mib("heap") > 100
    assert kept_mib("own pages") < 10


TRIMMED = """
import ctypes
from pathlib import Path
from shifter.heap import trim

def resident():
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) / 1024

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
blocks = [libc.malloc(60_000) for _ in range(1000)]
for block in blocks:
    ctypes.memset(block, 1, 60_000)
libc.malloc(60_000)  # stays, above them
for block in blocks:
    libc.free(block)
before = resident()
trim()
print(before - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the heap is glibc's")
def test_what_lies_free_between_small_blocks_is_given_back():
    done = subprocess.run([sys.executable, "-c", TRIMMED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 40


def test_another_c_library_is_left_alone(monkeypatch):
    from shifter import heap

    monkeypatch.setattr(heap.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(heap.ctypes, "CDLL", None)
    assert not heap.give_own_pages()
    heap.trim()
