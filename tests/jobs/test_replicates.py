"""Replicates are runs of their own, told together."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from jobs.__main__ import app
from jobs.replicates import Replicates, summarise
from shifter.errors import RunError
from shifter.recipe import Recipe
from shifter.run import Run
from shifter.store import Store

TINY: dict[str, Any] = {
    "name": "tiny",
    "seed": 5,
    "model": {"name": "vgg", "stages": [[8], [8]]},
    "data": {"name": "digits"},
    "training": {"epochs": 1, "batch_size": 64, "learning_rate": 0.1},
    "pruning": {"ratios": [2, 8]},
    "profile": {"samples": 10},
}


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(TINY))
    return file


def told(*accuracies: float) -> dict[str, Any]:
    """A run's summary with as many variants as there are accuracies."""
    return {
        "variants": [
            {
                "name": f"{2**index}x",
                "profile": {
                    "nonzero_parameters": 100,
                    "structural_parameters": 50 + accuracy,
                    "tensor_bytes": 4 * accuracy,
                    "validation_accuracy": accuracy,
                    "test_accuracy": accuracy / 2,
                },
            }
            for index, accuracy in enumerate(accuracies)
        ]
    }


def test_mean_and_sample_deviation_are_of_the_replicates_that_have_the_variant() -> None:
    dense, sparse, rare = summarise([told(0.9, 0.8), told(0.7, 0.6, 0.5), told(0.8, 0.4)])
    assert (dense["name"], dense["n"]) == ("1x", 3)
    assert dense["validation_accuracy"] == pytest.approx({"mean": 0.8, "std": 0.1})
    assert sparse["test_accuracy"] == pytest.approx({"mean": 0.3, "std": 0.1})
    assert (rare["name"], rare["n"]) == ("4x", 1)
    assert rare["validation_accuracy"] == {"mean": 0.5, "std": None}


def test_seeds_count_up_and_each_run_is_the_one_that_its_seed_makes(
    recipe_file: Path, tmp_path: Path
) -> None:
    recipe = Recipe.load(recipe_file)
    replicates = Replicates.of(recipe, Store.at(str(tmp_path)), None, 3)
    assert [its.seed for its in replicates.recipes.values()] == [5, 6, 7]
    assert list(replicates.recipes) == [
        Recipe.load(recipe_file, [f"seed={seed}"]).run_name() for seed in (5, 6, 7)
    ]
    named = Replicates.of(recipe, Store.at(str(tmp_path)), "mine", 2)
    assert list(named.recipes) == ["mine-seed-5", "mine-seed-6"]
    with pytest.raises(RunError, match="cannot name a run"):
        Replicates.of(recipe, Store.at(str(tmp_path)), "a b", 2)


def test_a_dry_run_names_them_all_and_writes_nothing(recipe_file: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    command = ["generate", recipe_file, "--store", store, "--replicates", 3, "--name", "mine", "--dry-run"]
    result = CliRunner().invoke(app, [str(word) for word in command])
    assert result.exit_code == 0, result.output
    assert (
        "3 replicates of this, with seeds of their own: mine-seed-5, mine-seed-6, mine-seed-7"
        in result.stdout
    )
    assert not store.exists()


@pytest.mark.ray
@pytest.mark.long  # two fits
def test_they_are_trained_side_by_side_and_are_the_runs_that_they_would_be_alone(
    recipe_file: Path, tmp_path: Path
) -> None:
    store = Store.open(str(tmp_path / "store"))
    command = [sys.executable, "-m", "jobs.generate", str(recipe_file), "--store", store.uri]

    def go(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *more], capture_output=True, text=True, timeout=280, check=True)

    done = go("--replicates", "2", "--json")
    result = json.loads(done.stdout)
    assert re.search(r"2 replicates, 2 to train, \d+ at a time", done.stderr)
    first, second = (one["run"] for one in result["replicates"])
    for run in (first, second):
        assert re.search(rf"{run}: round 2 of 0–2 \(8x\) is finished", done.stderr)
        assert Run.attach(store.uri, run).is_finished
    for variant in result["variants"]:
        accuracies = [
            v["profile"]["validation_accuracy"]
            for one in result["replicates"]
            for v in one["variants"]
            if v["name"] == variant["name"]
        ]
        assert variant["n"] == len(accuracies) == 2
        assert variant["validation_accuracy"]["mean"] == pytest.approx(statistics.fmean(accuracies))

    again = go("--replicates", "2")
    assert "2 replicates, 0 to train" in again.stderr
    assert re.search(r"1x .* ± .* %", again.stdout)

    alone = Store.open(str(tmp_path / "alone"))
    command[-1] = alone.uri
    go("--set", "seed=6")
    key = Run(store, second).checkpoint_key(2)
    assert alone.read(key) == store.read(key)
