"""A run of well under a minute, and the job that carries it out on a Ray of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import yaml

NAME = "mine"
"""Of the run."""


def tiny(*, epochs: int = 10, **pruning: Any) -> dict[str, Any]:
    """A recipe for two workers."""
    return {
        "name": "tiny",
        "workers": 2,
        "model": {"name": "vgg", "stages": [[8, 8]]},
        "data": {"name": "digits", "size": 8},
        "training": {"epochs": epochs, "batch_size": 64, "learning_rate": 0.1},
        "pruning": {"ratios": [2.0, 4.0], **pruning},
        "profile": {"samples": 10},
    }


def generate(folder: Path, recipe: dict[str, Any], store: str) -> list[str]:
    """The command; ``folder`` gets the recipe's file."""
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return [sys.executable, "-m", "jobs.generate", str(file), "--name", NAME, "--store", store]


def without_a_cluster(**more: str) -> dict[str, str]:
    """This process's environment and ``more``, but for the cluster that it may name."""
    return {key: value for key, value in (os.environ | more).items() if key != "RAY_ADDRESS"}
