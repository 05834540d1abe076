"""The main job: refuses early, tells what it would do, survives an interruption, does nothing twice."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from jobs.__main__ import app
from jobs.console import Console, Style
from jobs.generate import failure_recorded, storage_troubles_shown
from shifter.errors import RecipeError, StoreError
from shifter.lease import Lease
from shifter.portfolio import Portfolio
from shifter.recipe import Recipe
from shifter.run import Run
from shifter.sparse import SparseCheckpoint
from shifter.store import Store

from .runs import untrained

TINY: dict[str, Any] = {
    "name": "tiny",
    "workers": 2,
    "model": {"name": "vgg", "stages": [[16], [16]]},
    "data": {"name": "digits"},
    "training": {"epochs": 2, "batch_size": 64, "learning_rate": 0.1},
    "pruning": {"ratios": [2, 8, 64], "rewind_to": "5it"},
    "profile": {"samples": 20},
}


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    file.write_text(yaml.safe_dump(TINY))
    return file


def shifter(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def refused(result: Result, status: int = 1) -> str:
    assert result.exit_code == status, result.output
    assert result.stdout == ""
    return result.stderr


def test_a_dry_run_tells_everything_and_writes_nothing(recipe_file: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    result = shifter("generate", recipe_file, "--store", store, "--dry-run", "--set", "training.epochs=3")
    assert result.exit_code == 0, result.output
    for told in ("epochs: 3", "ratios: [2.0, 8.0, 64.0]", "workers   2", "rounds    4", "storage   at most"):
        assert told in result.stdout
    # 1797 images, of which 1168 train: 18 batches of 64 an epoch; rounds 1 to 3 begin at step 5.
    assert f"{54 + 3 * 49} optimiser steps" in result.stdout
    assert not store.exists()


def test_a_dry_run_refuses_what_training_would(recipe_file: Path) -> None:
    result = shifter(
        "generate", recipe_file, "--dry-run", "--set", "pruning.exclude=[stages.0.0.conv.wieght]"
    )
    assert "did you mean stages.0.0.conv.weight?" in refused(result)


def test_a_dry_run_says_where_the_run_would_go_and_from_where_on(recipe_file: Path, tmp_path: Path) -> None:
    def standing() -> str:
        result = shifter("generate", recipe_file, "--dry-run", "--store", tmp_path / "s", "--name", "mine")
        assert result.exit_code == 0, result.output
        (line,) = (line for line in result.stdout.splitlines() if line.startswith("run "))
        return line.removeprefix(f"run       mine in {tmp_path / 's'}: it ")

    assert standing() == "would begin"
    assert not (tmp_path / "s").exists()
    run = Run.begin(Store.open(str(tmp_path / "s")), Recipe.load(recipe_file), "mine")
    assert standing() == "would resume with round 0"
    for index in range(4):
        run.store.write(run.checkpoint_key(index), b"")
        assert index == 3 or standing() == f"would resume with round {index + 1}"
    assert standing() == "would resume with what comes after training"
    run.advance("finished")
    assert standing() == "is finished: nothing would be done"


def test_a_dry_run_refuses_a_name_that_is_taken(recipe_file: Path, tmp_path: Path) -> None:
    Run.begin(Store.open(str(tmp_path)), Recipe.load(recipe_file), "mine")
    arguments = ["--store", tmp_path, "--name", "mine", "--set", "seed=4", "--dry-run"]
    assert "the run has 0, the recipe says 4" in refused(shifter("generate", recipe_file, *arguments))


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_name_that_cannot_be_one_is_refused_and_leaves_nothing(
    recipe_file: Path, tmp_path: Path, dry: list[str]
) -> None:
    store = tmp_path / "store"
    error = refused(shifter("generate", recipe_file, "--store", store, "--name", "a/b", *dry))
    assert error == "error: 'a/b' cannot name a run: letters, digits, '.', '_' and '-' only\n"
    assert not store.exists()


@pytest.mark.parametrize("arguments", [["generate"], ["generate", "r.yaml", "--epochs", "3"], ["forge"]])
def test_a_wrong_command_line_has_a_status_of_its_own(arguments: list[str]) -> None:
    assert shifter(*arguments).exit_code == 2


def test_a_wrong_recipe_is_one_clear_error(recipe_file: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    result = shifter("generate", recipe_file, "--store", store, "--set", "training.epoch=3")
    assert (
        refused(result)
        == f"error: recipe {recipe_file}:\n  training.epoch: unknown key; did you mean epochs?\n"
    )
    assert "cannot be read: No such file" in refused(shifter("generate", "nowhere.yaml", "--store", store))
    assert not store.exists()


def test_a_store_that_cannot_be_written_is_refused_before_training(recipe_file: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    assert "cannot be written to" in refused(shifter("generate", recipe_file, "--store", blocked))
    assert "gs: is not supported" in refused(shifter("generate", recipe_file, "--store", "gs://bucket"))


def test_a_name_taken_by_another_recipe_shows_both(recipe_file: Path, tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    run = Run.begin(store, Recipe.load(recipe_file), "mine")
    before = store.read(run.record_key)
    error = refused(
        shifter("generate", recipe_file, "--store", tmp_path, "--name", "mine", "--set", "seed=4")
    )
    assert "seed: the run has 0, the recipe says 4" in error
    assert store.read(run.record_key) == before
    assert store.list() == [run.record_key]


def test_a_run_that_has_a_driver_is_refused_untouched(recipe_file: Path, tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    run = Run.begin(store, Recipe.load(recipe_file), "mine")
    before, half = store.read(run.record_key), tmp_path / "mine" / ".x.part"
    half.touch()
    with Lease.hold(store, run.lease_folder, period_s=0.25):
        error = refused(shifter("generate", recipe_file, "--store", tmp_path, "--name", "mine"))
    assert f"being carried out by another driver, process {os.getpid()} on" in error
    assert store.read(run.record_key) == before
    assert half.exists(), "it may be what the driver is writing"


def test_a_driver_whose_run_is_taken_over_stops_with_an_error(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold = Lease.hold
    monkeypatch.setattr(Lease, "hold", lambda *arguments: hold(*arguments, period_s=0.25))

    def taken_over(store: Store, recipe: Recipe, name: str, console: Console, local: bool) -> None:
        run = Run.begin(store, recipe, name)
        (key,) = store.list(f"{run.lease_folder}/")
        other = json.loads(store.read(key)) | {"token": "another's"}
        Store.at(str(tmp_path)).write(f"{run.lease_folder}/000002.json", json.dumps(other).encode())
        time.sleep(60)

    monkeypatch.setattr("jobs.generate._carry_out", taken_over)
    error = refused(shifter("generate", recipe_file, "--store", tmp_path, "--name", "mine"))
    assert "error: the lease mine/lease" in error
    assert "was taken over by process" in error
    assert "interrupted" not in error
    assert Run(Store.at(str(tmp_path)), "mine").state == "training"


def test_storage_that_does_not_answer_is_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    with Console.open(Style.PLAIN) as console, storage_troubles_shown(console):
        logging.getLogger("shifter.store").warning("storage does not answer, waiting")
    assert capsys.readouterr().err.endswith(" s  storage does not answer, waiting\n")


def test_a_failure_is_recorded_but_not_an_interruption_or_a_store_that_is_gone(
    recipe_file: Path, tmp_path: Path
) -> None:
    run = Run.begin(Store.open(str(tmp_path)), Recipe.load(recipe_file))
    with pytest.raises(KeyboardInterrupt), failure_recorded(run):
        raise KeyboardInterrupt
    assert run.state == "training"
    with pytest.raises(StoreError), failure_recorded(run):
        raise StoreError("it does not answer")
    assert run.state == "training"
    with pytest.raises(RecipeError), failure_recorded(run):
        raise RecipeError("no such thing")
    assert (run.state, run.record["failure"]) == ("failed", "RecipeError: no such thing")


def test_a_trained_run_is_completed_in_one_process_without_a_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = untrained(tmp_path / "store")
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(run.recipe.resolved()))
    monkeypatch.setattr("jobs.cluster.cluster", None)
    result = shifter("generate", file, "--store", tmp_path / "store", "--local", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["state"] == "finished"
    assert [v["name"] for v in told["variants"]] == ["1x", "2x", "4x"]
    kept = {v["name"] for v in told["variants"] if v["kept"]}
    assert set(Portfolio.open(tmp_path / "store" / told["portfolio"]).names) == kept
    page = (tmp_path / "store" / told["report"]).read_text()
    assert "search efficiency" in page
    assert page.count("<summary>") == 3, "the layers of each variant"


def test_replicates_are_not_local(recipe_file: Path, tmp_path: Path) -> None:
    error = refused(
        shifter("generate", recipe_file, "--store", tmp_path / "s", "--replicates", 2, "--local"), 2
    )
    assert "leave one of the two out" in " ".join(error.replace("│", " ").split())
    assert not (tmp_path / "s").exists()


class Finished:
    """A real run: interrupted after a round, continued by the same command, and started once more."""

    def __init__(self, recipe_file: Path, folder: Path) -> None:
        self.store = folder / "store"
        self.command = [sys.executable, "-m", "jobs.generate", str(recipe_file), "--store", str(self.store)]
        self.recipe = Recipe.load(recipe_file)
        self.run = Run(Store.at(str(self.store)), self.recipe.run_name())
        self.interrupted = self._interrupt()
        self.rounds_after_interruption = self.run.finished_rounds()
        self.state_after_interruption = self.run.state
        self.resumed = self._go()
        self.record = self.run.record
        self.lease = self.leases()
        self.repeated = self._go()

    def leases(self) -> dict[str, bytes]:
        return {key: self.run.store.read(key) for key in self.run.store.list(f"{self.run.lease_folder}/")}

    def _go(self) -> subprocess.CompletedProcess[str]:
        command = [*self.command, "--json"]
        return subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)

    def _interrupt(self) -> int:
        """Ctrl-C, which every process of the terminal's foreground group gets, after the first round."""
        process = subprocess.Popen(self.command, stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            while not self.run.store.exists(self.run.checkpoint_key(0)):
                assert process.poll() is None, "it ended before a round was finished"
                time.sleep(0.02)
            os.killpg(process.pid, signal.SIGINT)
            return process.wait(120)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@pytest.fixture(scope="module")
def finished(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return Finished(recipe_file, tmp_path_factory.mktemp("finished"))


@pytest.mark.ray
@pytest.mark.timeout(1000)
class TestAWholeRun:
    def test_an_interruption_keeps_what_is_finished(self, finished: Finished) -> None:
        assert finished.interrupted == 130
        assert 1 <= finished.rounds_after_interruption < finished.recipe.rounds
        assert finished.state_after_interruption == "training"

    def test_the_same_command_goes_on_and_says_so(self, finished: Finished) -> None:
        assert finished.resumed.returncode == 0, finished.resumed.stderr
        rounds = finished.rounds_after_interruption
        which = "round 0 is" if rounds == 1 else f"rounds 0–{rounds - 1} are"
        assert f"resuming {finished.run.name}: {which} finished" in finished.resumed.stderr
        assert "round 0 of 0–3 (1x) is finished" not in finished.resumed.stderr
        assert "round 3 of 0–3 (64x) is finished" in finished.resumed.stderr

    def test_stdout_is_one_json_document(self, finished: Finished) -> None:
        told = json.loads(finished.resumed.stdout)
        assert told["run"] == finished.run.name
        assert told["state"] == "finished"
        assert [v["name"] for v in told["variants"]] == ["1x", "2x", "8x", "64x"]
        for variant in told["variants"]:
            assert variant["kept"] == (variant["discarded"] is None)
            assert variant["profile"]["exactness"]["float64"] <= 1e-10

    def test_a_finished_run_repeated_does_nothing_and_says_so(self, finished: Finished) -> None:
        assert finished.repeated.returncode == 0, finished.repeated.stderr
        assert "is finished already: nothing to do" in finished.repeated.stderr
        assert "cluster" not in finished.repeated.stderr
        assert json.loads(finished.repeated.stdout) == json.loads(finished.resumed.stdout)
        assert finished.run.record == finished.record
        assert finished.leases() == finished.lease

    def test_every_artifact_is_in_its_place_and_nothing_else_is_left(self, finished: Finished) -> None:
        run, named = finished.run, json.loads(finished.run.store.read(finished.run.portfolio_json))
        assert named["previous"] is None
        keys = run.store.list(f"{run.name}/")
        assert {
            run.record_key,
            run.architecture_key,
            run.portfolio_json,
            run.portfolio_key(named["current"]),
            run.report_key,
            *(run.checkpoint_key(i) for i in range(4)),
            *(run.variant_key(n, "profile.json") for n in ("1x", "2x", "8x", "64x")),
        } <= set(keys)
        assert not [k for k in keys if "/resume/" in k]
        lying = [p for p in finished.store.rglob("*") if p.is_file()]
        assert len(lying) == len(run.store.list())

    def test_the_dry_run_foretold_it(self, finished: Finished) -> None:
        result = shifter("generate", finished.command[3], "--dry-run", "--json")
        told = json.loads(result.stdout)
        assert told["run"] == finished.run.name
        for expected in told["estimate"]["rounds"]:
            data = finished.run.store.read(finished.run.checkpoint_key(expected["round"]))
            checkpoint = SparseCheckpoint.open(data)
            assert checkpoint.meta.ratio == expected["ratio"]
            assert checkpoint.mask().kept == expected["nonzero_weights"]
            assert 0.5 * expected["checkpoint_bytes"] < len(data) <= expected["checkpoint_bytes"]

    def test_the_portfolio_can_be_inspected(self, finished: Finished) -> None:
        told = json.loads(finished.resumed.stdout)
        package = finished.store / told["portfolio"]
        text = shifter("inspect", package)
        assert text.exit_code == 0, text.output
        assert "matches its sha256" in text.stdout
        inspected = json.loads(shifter("inspect", package, "--json").stdout)
        assert inspected["digest"] == package.stem
        assert inspected["provenance"]["run"] == finished.run.name
        kept = {v["name"]: v["profile"] for v in told["variants"] if v["kept"]}
        assert {v["name"]: v["profile"] for v in inspected["variants"]} == kept

    def test_a_damaged_portfolio_is_refused(self, finished: Finished, tmp_path: Path) -> None:
        package = finished.store / json.loads(finished.resumed.stdout)["portfolio"]
        data = bytearray(package.read_bytes())
        data[len(data) // 2] ^= 1
        damaged = tmp_path / "damaged.zip"
        damaged.write_bytes(data)
        assert refused(shifter("inspect", damaged)).startswith("error: ")
        assert "nowhere.zip: No such file" in refused(shifter("inspect", tmp_path / "nowhere.zip"))
