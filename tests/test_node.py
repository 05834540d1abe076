"""What a node says of its memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from shifter.node import free_memory

MEMINFO = "MemTotal:       24000 kB\nMemFree:         1000 kB\nMemAvailable:    8000 kB\n"


def node(root: Path, **files: str) -> Path:
    places = {"meminfo": "proc/meminfo", "stat": "sys/fs/cgroup/memory.stat"}
    for name, content in files.items():
        file = root / places.get(name, f"sys/fs/cgroup/memory.{name}")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return root


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({"meminfo": MEMINFO}, 8_192_000),
        ({"meminfo": MEMINFO, "max": "max\n", "current": "5000000\n"}, 8_192_000),
        ({"meminfo": MEMINFO, "max": "6000000\n", "current": "5000000\n"}, 1_000_000),
        (
            {
                "meminfo": MEMINFO,
                "max": "6000000\n",
                "current": "5000000\n",
                "stat": "anon 7\ninactive_file 500000\n",
            },
            1_500_000,
        ),
        ({"meminfo": MEMINFO, "max": "6000000\n", "current": "6500000\n"}, 0),
        ({"meminfo": "Nothing:  1 kB\n", "max": "6000000\n", "current": "0\n"}, 6_000_000),
        ({}, None),
    ],
)
def test_the_least_of_what_is_left_is_free(tmp_path: Path, files: dict[str, str], free: int | None) -> None:
    assert free_memory(node(tmp_path, **files)) == free


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="only Linux says how much memory is available")
def test_this_node_has_some() -> None:
    free = free_memory()
    assert free is not None
    assert free > 0
