"""The algorithm: masks shrink, rewinding is bitwise, a stopped run ends where an unbroken one does."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from shifter.data import load
from shifter.errors import RecipeError, RunError
from shifter.models import build, initialise, prunable_names
from shifter.recipe import Recipe
from shifter.run import Run
from shifter.sparse import SparseCheckpoint
from shifter.store import Store
from shifter.training import imp
from shifter.training.archive import Archive
from shifter.training.network_state import state_of
from shifter.training.ranking import rank_by_magnitude
from shifter.training.schedule import Schedule
from shifter.values import CompressionRatio, Step


def run_imp(recipe, dataset, store):
    """Trains what is left; the events, and each round as it was handed to the training loop."""
    run = Run.begin(Store.open(str(store)), recipe)
    events, rounds = [], []

    def train_round(network, data, round, *rest, **named):
        rounds.append(round)
        return original(network, data, round, *rest, **named)

    original = imp.train_round
    imp.train_round = train_round
    try:
        archive = Archive(run, recipe.digest())
        imp.iterative_magnitude_pruning(recipe, dataset, archive, events.append)
    finally:
        imp.train_round = original
    return run, events, rounds


@pytest.fixture(scope="module")
def unbroken(recipe, dataset, tmp_path_factory):
    return run_imp(recipe, dataset, tmp_path_factory.mktemp("unbroken"))


def checkpoint(run, index):
    return SparseCheckpoint.open(run.store.read(run.checkpoint_key(index)))


def artifacts(run):
    """Every artifact of training but the record of when it ran."""
    return {key: run.store.read(key) for key in run.store.list() if not key.endswith("run.json")}


def test_each_round_is_as_sparse_as_its_ratio_says(recipe, unbroken):
    run, _, _ = unbroken
    assert run.finished_rounds() == recipe.rounds == 4
    last = None
    for index, ratio in enumerate(recipe.ratio_of_round):
        found = checkpoint(run, index)
        mask = found.mask()
        assert found.meta.round == index
        assert found.meta.ratio == ratio
        assert found.meta.mask_digest == mask.digest()
        assert mask.kept == CompressionRatio(ratio).kept(mask.total)
        assert last is None or mask.is_within(last)
        last = mask


def test_each_mask_ranks_the_weights_that_the_round_before_trained(recipe, unbroken):
    run, _, _ = unbroken
    for index in range(1, recipe.rounds):
        before, ratio = checkpoint(run, index - 1), CompressionRatio(recipe.ratio_of_round[index])
        expected = rank_by_magnitude(before.tensors(), before.mask(), ratio)
        assert checkpoint(run, index).mask().digest() == expected.digest()


def test_every_sparse_round_starts_from_the_rewind_point_bit_for_bit(recipe, dataset, unbroken):
    run, _, rounds = unbroken
    point = safetensors.numpy.load(run.store.read(run.resume_key("rewind.safetensors")))
    schedule = Schedule.of(recipe, len(dataset.train))
    for round in rounds[1:]:
        assert round.first == schedule.rewind
        assert round.start.keys() == point.keys()
        assert all(round.start[name].tobytes() == point[name].tobytes() for name in point)
    first = build(recipe.model, classes=10, channels=1)
    initialise(first, recipe.seed)
    assert all(np.array_equal(rounds[0].start[n], a) for n, a in state_of(first).items())
    assert not np.array_equal(point["classifier.weight"], rounds[0].start["classifier.weight"])


def test_only_prunable_tensors_are_masked(recipe, unbroken):
    run, _, _ = unbroken
    network = build(recipe.model, classes=10, channels=1)
    found = checkpoint(run, recipe.rounds - 1)
    assert tuple(found.mask()) == prunable_names(network)
    assert set(found.names) == set(state_of(network))


@pytest.mark.parametrize("finished", [0, 1, 3])
def test_a_stopped_run_ends_where_an_unbroken_one_does(recipe, dataset, unbroken, tmp_path, finished):
    run, _, _ = unbroken
    stopped = shutil.copytree(run.store.uri, tmp_path / "stopped")
    for index in range(finished, recipe.rounds):
        (stopped / run.checkpoint_key(index)).unlink()
    resumed, events, rounds = run_imp(recipe, dataset, stopped)
    assert [round.index for round in rounds] == list(range(finished, recipe.rounds))
    assert {event["round"] for event in events} == set(range(finished, recipe.rounds))
    assert artifacts(resumed) == artifacts(run)


def test_epochs_tell_how_many_images_they_saw_and_how_many_are_left(recipe, dataset, unbroken, tmp_path):
    run, events, _ = unbroken
    schedule = Schedule.of(recipe, len(dataset.train))
    size = recipe.training.batch_size
    steps = [schedule.end.iteration - (schedule.rewind.iteration if i else 0) for i in range(recipe.rounds)]
    epochs = [event for event in events if event["event"] == "epoch"]
    left = sum(steps) * size
    for epoch in epochs:
        left -= epoch["images"]
        assert epoch["images"] > 0
        assert epoch["images_left"] == left
        assert (epoch["workers"], epoch["device"]) == (1, "cpu")
    assert left == 0
    # What is left of a run that is resumed is what its last rounds take, however much it has done.
    resumed = shutil.copytree(run.store.uri, tmp_path / "resumed")
    (resumed / run.checkpoint_key(recipe.rounds - 1)).unlink()
    (resumed / run.resume_key("round.safetensors")).unlink()
    _, again, _ = run_imp(recipe, dataset, resumed)
    first = next(event for event in again if event["event"] == "epoch")
    assert first["images"] + first["images_left"] == steps[-1] * size


def test_a_finished_run_trains_nothing(recipe, dataset, unbroken):
    _, events, rounds = run_imp(recipe, dataset, unbroken[0].store.uri)
    assert (events, rounds) == ([], [])


@pytest.mark.parametrize(("damage", "message"), [(None, "are gone"), (b"no tensors", "is damaged")])
def test_without_its_rewind_point_a_run_cannot_go_on(recipe, dataset, unbroken, tmp_path, damage, message):
    run, _, _ = unbroken
    stopped = shutil.copytree(run.store.uri, tmp_path / "stopped")
    (stopped / run.checkpoint_key(3)).unlink()
    point = stopped / run.resume_key("rewind.safetensors")
    point.unlink()
    if damage is not None:
        point.write_bytes(damage)
    with pytest.raises(RunError, match=rf"cannot go on: .*{message}.*another --name"):
        run_imp(recipe, dataset, stopped)
    assert not (stopped / run.checkpoint_key(3)).exists()


def test_events_tell_how_it_goes(recipe, unbroken):
    _, events, _ = unbroken
    epochs = [event for event in events if event["event"] == "epoch"]
    rounds = [event for event in events if event["event"] == "round"]
    # Rewound rounds begin in the second epoch.
    assert [(e["round"], e["epoch"]) for e in epochs] == [
        *((0, n) for n in (1, 2, 3)),
        *((r, n) for r in (1, 2, 3) for n in (2, 3)),
    ]
    assert [e["ratio"] for e in rounds] == [1, 2, 4, 16]
    (attempt,) = (event for event in events if event["event"] == "attempt")
    assert attempt.pop("threads") >= 1
    assert attempt == {"event": "attempt", "workers": 1, "device": "cpu", "round": 0, "iteration": 0}
    for event in [*epochs, *rounds]:
        assert 0 <= event["validation_accuracy"] <= 1
        assert event["rounds"] == 4


def test_excluded_tensors_stay_dense(recipe, dataset, tmp_path):
    pruning = recipe.pruning.model_copy(update={"exclude": ("classifier.weight",), "ratios": (4.0,)})
    training = recipe.training.model_copy(update={"epochs": 3})
    run, _, _ = run_imp(
        recipe.model_copy(update={"pruning": pruning, "training": training}), dataset, tmp_path
    )
    found = checkpoint(run, 1)
    assert "classifier.weight" not in found.mask()
    assert np.all(found.read("classifier.weight") != 0)


def test_with_learning_rate_rewinding_a_round_goes_on_with_the_weights_of_the_last(recipe, dataset, tmp_path):
    pruning = recipe.pruning.model_copy(update={"rewind": "learning-rate", "ratios": (2.0, 4.0)})
    run, _, rounds = run_imp(recipe.model_copy(update={"pruning": pruning}), dataset, tmp_path)
    schedule = Schedule.of(recipe, len(dataset.train))
    assert [round.first for round in rounds] == [Step(0), schedule.rewind, schedule.rewind]
    for index in (1, 2):
        trained = checkpoint(run, index - 1).tensors()
        assert all(rounds[index].start[name].tobytes() == trained[name].tobytes() for name in trained)
    assert not run.store.list(run.resume_key("rewind"))


def test_a_run_ends_with_the_first_round_below_the_floor(recipe, dataset, unbroken, tmp_path):
    accuracies = [event["validation_accuracy"] for event in unbroken[1] if event["event"] == "round"]
    fell = int(np.argmin(accuracies))
    assert fell > 0, "pruned networks know less"
    pruning = recipe.pruning.model_copy(update={"accuracy_floor": accuracies[fell] + 1e-9})
    floored = recipe.model_copy(update={"pruning": pruning})
    first = next(i for i, accuracy in enumerate(accuracies) if accuracy <= accuracies[fell])
    for trained in (first + 1, 0):  # and started again, nothing is trained
        run, events, rounds = run_imp(floored, dataset, tmp_path)
        assert len(rounds) == trained
        (note,) = [event for event in events if event["event"] == "note"]
        assert f"{accuracies[first]:.2%}, below the floor of" in note["text"]
    assert run.finished_rounds() == first + 1
    assert run.rounds() == first


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("pruning", {"exclude": ("classifer.weight",)}, r"did you mean classifier\.weight"),
        (
            "pruning",
            {"ratios": (2.0, 1e6)},
            r"ratios: 1000000x would leave less than one of the network's 1,0",
        ),
        ("pruning", {"rewind_to": "9999it"}, "9999it is not before the end of a round"),
        ("training", {"batch_size": 5000}, "5000 is more than the"),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused_before_anything_is_written(
    recipe, dataset, tmp_path, part, changes, message
):
    bad = recipe.model_copy(update={part: getattr(recipe, part).model_copy(update=changes)})
    with pytest.raises(RecipeError, match=message):
        imp.check(bad, dataset)
    with pytest.raises(RecipeError, match=message):
        run_imp(bad, dataset, tmp_path)
    assert [key.rpartition("/")[2] for key in Store.open(str(tmp_path)).list()] == ["run.json"]


def test_check_gives_the_schedule_of_a_recipe_that_fits(recipe, dataset):
    schedule = imp.check(recipe, dataset)
    assert schedule.end.iteration == 3 * (len(dataset.train) // 65)


def test_the_embedded_recipe_fits_its_data():
    embedded = Recipe.load(Path(__file__).parents[2] / "jobs" / "recipes" / "digits.yaml")
    schedule = imp.check(embedded, load(embedded.data, embedded.seed))
    assert schedule.rewind < schedule.end
    # The portfolio's promise: at least seven rounds that prune, to a ratio of 64 or beyond.
    assert len(embedded.pruning.ratios) >= 7
    assert embedded.pruning.ratios[-1] >= 64
