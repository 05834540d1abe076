"""Thousands of mutated packages, in a process that has little memory to spare (`fuzz.py`)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

KINDS = ("bytes", "headers", "container", "manifest", "coding")
FEW, MANY = 1200, 12_000


def fuzz(first: int, count: int) -> dict[str, int]:
    """How many of each kind were refused and accepted."""
    command = [sys.executable, str(Path(__file__).with_name("fuzz.py")), str(first), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr
    seen: dict[str, int] = json.loads(done.stdout)["seen"]
    return seen


def check(seen: dict[str, int], count: int) -> None:
    assert sum(seen.values()) == count
    for kind in KINDS:
        assert seen[f"{kind}_changed refused"] > count // 20
    # Codings that are right by chance, so that the reading of what is accepted is tested as well.
    assert seen["coding_changed accepted"] > count // 50
    assert sum(found for what, found in seen.items() if what.endswith("refused")) > 0.8 * count


def test_mutated_packages_are_refused_or_read_right() -> None:
    check(fuzz(0, FEW), FEW)


@pytest.mark.long
@pytest.mark.timeout(1300)
def test_twelve_thousand_mutated_packages_are_refused_or_read_right() -> None:
    check(fuzz(FEW, MANY), MANY)
