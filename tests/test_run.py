"""Runs: one name, one recipe, and a record of where it came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shifter.errors import RunError, TrainingError
from shifter.recipe import Recipe
from shifter.run import Run, flat
from shifter.sparse import CheckpointMeta, encode
from shifter.store import Store
from shifter.values import Mask


def recipe(**changes: Any) -> Recipe:
    data = {
        "name": "small",
        "model": {"name": "vgg", "stages": [[8]]},
        "data": {"name": "digits"},
        "training": {"epochs": 1, "batch_size": 32, "learning_rate": 0.1},
        "pruning": {"ratios": [2]},
    }
    return Recipe.model_validate({**data, **changes})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path))


def test_a_new_run_records_its_recipe_and_origin(store: Store) -> None:
    run = Run.begin(store, recipe(seed=7))
    assert run.name == recipe(seed=7).run_name()
    assert run.state == "training"
    assert run.recipe == recipe(seed=7)
    assert run.record["digest"] == recipe(seed=7).digest()
    origin = run.record["provenance"]
    assert origin["seed"] == 7
    assert {"python", "numpy"} <= origin["versions"].keys()
    assert "cores" in origin["device"]
    assert run.record["ended"] is None


def test_the_same_recipe_goes_on_with_the_same_run(store: Store) -> None:
    first = Run.begin(store, recipe())
    first.advance("reducing")
    again = Run.begin(store, recipe())
    assert again == first
    assert again.state == "reducing"
    assert again.record["started"] == first.record["started"]
    assert len(again.record["resumed"]) == 1


def test_weights_that_moved_are_the_same_run_and_changed_ones_another(store: Store, tmp_path: Path) -> None:
    def with_weights(place: str, content: bytes) -> Recipe:
        (tmp_path / place).write_bytes(content)
        weights = str(tmp_path / place)
        return recipe(model={"name": "vgg", "stages": [[8]], "weights": weights})

    run = Run.begin(store, with_weights("a.pt", b"one"), "mine")
    assert Run.begin(store, with_weights("b.pt", b"one"), "mine") == run
    with pytest.raises(
        RunError, match=r"model\.weights\.sha256: the run has 7692c3ad.*, the recipe says 3fc4"
    ):
        Run.begin(store, with_weights("a.pt", b"two"), "mine")


def test_a_name_given_by_the_user_is_used(store: Store) -> None:
    assert Run.begin(store, recipe(), "mine").name == "mine"
    assert store.list() == ["mine/run.json"]


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "a b"])
def test_a_name_that_cannot_be_a_folder_is_refused(store: Store, name: str) -> None:
    with pytest.raises(RunError, match="cannot name a run"):
        Run.begin(store, recipe(), name)
    assert store.list() == []


def test_the_same_name_with_another_recipe_shows_every_difference(store: Store) -> None:
    Run.begin(store, recipe(), "mine")
    before = store.read("mine/run.json")
    other = recipe(seed=3, model={"name": "resnet", "widths": [4], "blocks": 1})
    with pytest.raises(RunError) as caught:
        Run.begin(store, other, "mine")
    assert str(caught.value).splitlines()[1:] == [
        "  seed: the run has 0, the recipe says 3",
        "  model.name: the run has vgg, the recipe says resnet",
        "  model.stages: the run has [[8]], the recipe says nothing",
        "  model.widths: the run has nothing, the recipe says [4]",
        "  model.blocks: the run has nothing, the recipe says 1",
    ]
    assert store.read("mine/run.json") == before


def test_a_folder_that_is_no_run_is_left_alone(store: Store) -> None:
    store.write("mine/holiday.txt", b"")
    with pytest.raises(RunError, match=r"folder with files but no run\.json"):
        Run.begin(store, recipe(), "mine")
    assert store.list() == ["mine/holiday.txt"]


def test_a_run_of_another_version_is_refused(store: Store) -> None:
    run = Run.begin(store, recipe())
    store.replace(run.record_key, json.dumps({**run.record, "format": 99}).encode())
    for attempt in (lambda: Run.begin(store, recipe()), lambda: Run.attach(store.uri, run.name)):
        with pytest.raises(RunError, match="format 99"):
            attempt()


def test_attaching_finds_a_run_and_only_a_run(store: Store) -> None:
    run = Run.begin(store, recipe())
    assert Run.attach(store.uri, run.name) == run
    with pytest.raises(RunError, match="there is no run 'other'"):
        Run.attach(store.uri, "other")


def test_states_are_recorded_with_the_reason_of_a_failure(store: Store) -> None:
    run = Run.begin(store, recipe())
    run.advance("failed", "the disk is full")
    assert run.state == "failed"
    assert run.record["failure"] == "the disk is full"
    assert run.record["ended"] is not None
    run.advance("packing")
    assert (run.record["failure"], run.record["ended"]) == (None, None)
    with pytest.raises(AssertionError, match="has a reason"):
        run.advance("failed")
    with pytest.raises(AssertionError, match="resting"):
        run.advance("resting")  # type: ignore[arg-type]
    run.advance("finished")
    assert run.record["ended"] is not None
    with pytest.raises(AssertionError, match="stays finished"):
        run.advance("packing")


def test_a_finished_run_begun_again_is_not_touched(store: Store) -> None:
    run = Run.begin(store, recipe())
    run.advance("finished")
    before = store.read(run.record_key)
    assert Run.begin(store, recipe()).state == "finished"
    assert store.read(run.record_key) == before


def test_finished_rounds_are_those_without_a_gap(store: Store) -> None:
    run = Run.begin(store, recipe())
    assert run.finished_rounds() == 0
    for index, found in ((0, 1), (2, 1), (1, 3)):
        store.write(run.checkpoint_key(index), b"")
        assert run.finished_rounds() == found


def test_every_artifact_has_its_place(store: Store) -> None:
    run = Run(store, "r")
    assert run.record_key == "r/run.json"
    assert run.architecture_key == "r/architecture.onnx"
    assert run.checkpoint_key(7) == "r/rounds/round-07.arrow"
    assert run.resume_key("rewind.safetensors") == "r/resume/rewind.safetensors"
    assert run.variant_key("4x", "graph.onnx") == "r/variants/4x/graph.onnx"
    assert run.portfolio_key("abc") == "r/portfolio/abc.zip"
    assert run.portfolio_json == "r/portfolio.json"
    assert run.report_key == "r/report.html"


def test_what_a_killed_writer_left_is_gone_after_resuming(store: Store) -> None:
    run = Run.begin(store, recipe())
    left = Path(store.uri, run.name) / "rounds/.round-00.arrow.abc.part"
    left.parent.mkdir()
    left.write_bytes(b"half")
    Run.begin(store, recipe())
    assert not left.exists()


def test_provenance_can_be_told_as_text() -> None:
    told = flat({"git_commit": None, "seed": 3, "versions": {"numpy": "2.0"}, "device": "abacus"})
    assert told == {"seed": "3", "device": "abacus", "version.numpy": "2.0"}


def checkpoint(round: int, accuracy: float) -> bytes:
    weights, mask = np.ones(4, np.float32), Mask({"weight": np.ones(4, np.bool_)})
    meta = CheckpointMeta(round, 10, 2.0**round, accuracy, accuracy, mask.digest())
    return encode({"weight": weights}, mask, meta)


def floored(store: Store, floor: float | None, *accuracies: float) -> Run:
    """A run whose rounds had these accuracies."""
    floors = {} if floor is None else {"accuracy_floor": floor}
    run = Run.begin(store, recipe(pruning={"ratios": [2, 4, 8], **floors}), "floored")
    for index, accuracy in enumerate(accuracies):
        store.write(run.checkpoint_key(index), checkpoint(index, accuracy))
    return run


@pytest.mark.parametrize(
    ("floor", "accuracies", "rounds"),
    [
        (None, [0.9, 0.1], 4),
        (0.8, [], 4),
        (0.8, [0.9, 0.8], 4),
        (0.8, [0.9, 0.85, 0.7], 2),
        (0.8, [0.9, 0.85, 0.82, 0.81], 4),
        (0.8, [0.9, 0.85, 0.82, 0.79], 3),
    ],
)
def test_the_round_that_fell_below_the_floor_is_no_variant(
    store: Store, floor: float | None, accuracies: list[float], rounds: int
) -> None:
    run = floored(store, floor, *accuracies)
    assert run.rounds() == rounds
    run.note_early_end()
    if rounds < 4:
        assert run.record["ended_early"] == {
            "round": rounds,
            "ratio": 2.0**rounds,
            "validation_accuracy": accuracies[-1],
            "accuracy_floor": floor,
        }
    else:
        assert "ended_early" not in run.record


def test_a_dense_network_below_the_floor_is_an_error(store: Store) -> None:
    run = floored(store, 0.8, 0.5)
    with pytest.raises(TrainingError, match=r"accuracy of 50\.00%, below the floor of 80\.00%: train longer"):
        run.rounds()
