"""What the demonstration refuses at once, and what it shows at the end. That it runs is the README's test."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from jobs.__main__ import app
from jobs.demo import RECIPE
from jobs.outcome import Outcome, Trial
from jobs.records import Record, Recording, summarise
from shifter.portfolio import Portfolio
from shifter.recipe import Recipe
from shifter.run import Run
from shifter.store import Store


def test_a_name_taken_by_another_recipe_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    store = Store.open(str(tmp_path))
    run = Run.begin(store, Recipe.load(RECIPE), "mine")
    before = store.read(run.record_key)
    result = CliRunner().invoke(app, ["demo", "--store", str(tmp_path), "--name", "mine", "--set", "seed=4"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        f"error: the run mine in the store {tmp_path} has another recipe (give another --name, or none):\n"
        "  seed: the run has 0, the recipe says 4\n"
    )
    assert store.read(run.record_key) == before


def record(second: float, variant: str) -> Record:
    return Record(second, 0.0, 0.02, 200, variant, (0,), None)


def switch(at: str, before: str, after: str) -> dict[str, Any]:
    return {"at": at, "from": before, "to": after, "ms": 1.5, "reason": f"{after} it is", "error": None}


def test_the_load_and_the_switches_are_told_on_one_clock(portfolio_bytes: bytes) -> None:
    portfolio = Portfolio.open(portfolio_bytes)
    variants = [
        {"name": name, "kept": True, "discarded": None, "profile": profile.to_json()}
        for name, profile in portfolio.profiles.items()
    ]
    told = {"run": "r", "store": "s", "portfolio": "p.zip", "report": "r.html", "variants": variants}
    status = {
        "active": "16x",
        "switches": [
            switch("1970-01-01T00:16:35.500+00:00", "4x", "1x"),
            switch("1970-01-01T00:16:41.250+00:00", "1x", "16x"),
        ],
    }
    records = [record(0.5, "1x"), record(1.1, "1x"), record(1.4, "16x")]
    trials = [
        Trial(name, Recording(1000.0, records), summarise(records, 0.1), status)
        for name in ("fixed-1x", "switching")
    ]
    outcome = Outcome(told, trials, objective_s=0.1, checked=3)
    lines = [" ".join(line.replace("│", "").split()) for line in outcome.text().splitlines()]
    assert "0 1 20 100% 1x" in lines
    assert "1 2 20 100% 1x → 16x" in lines
    start = next(i for i, line in enumerate(lines) if line.startswith("4x the start: the variant of median"))
    assert lines[start + 1 : start + 3] == ["-4.5 4x → 1x 1.5 1x it is", "1.2 1x → 16x 1.5 16x it is"]
    assert "s/p.zip" in lines[-2]

    never = dataclasses.replace(trials[1], status={"active": "4x", "switches": []})
    text = dataclasses.replace(outcome, trials=[trials[0], never]).text()
    assert "the start: the variant of median size" in text
