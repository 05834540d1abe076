"""Ray Train runs the same algorithm: every round in one fit, on a cluster with no CPU to spare."""

import os
import signal
from itertools import pairwise
from pathlib import Path

import pytest
import ray

from shifter.errors import RecipeError, TrainingError
from shifter.recipe import Recipe
from shifter.run import Run
from shifter.sparse import SparseCheckpoint
from shifter.store import Store

pytestmark = [
    pytest.mark.ray,
]


@pytest.fixture(scope="module")
def train():
    from shifter.training import on_ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield on_ray.train
    ray.shutdown()


def test_two_workers_train_every_round_and_a_finished_run_none(recipe, tmp_path, train):
    run = Run.begin(Store.open(str(tmp_path)), recipe)
    events = []
    train(recipe, run, events.append)

    assert run.finished_rounds() == recipe.rounds
    rounds = [
        SparseCheckpoint.open(run.store.read(run.checkpoint_key(index))) for index in range(recipe.rounds)
    ]
    assert [found.meta.ratio for found in rounds] == list(recipe.ratio_of_round)
    assert all(later.mask().is_within(earlier.mask()) for earlier, later in pairwise(rounds))
    assert rounds[0].meta.test_accuracy > 0.5
    assert run.store.exists(run.architecture_key)
    assert not run.store.list(run.resume_key("")), "nothing is left that only an unfinished run needs"
    assert [e["round"] for e in events if e["event"] == "round"] == list(range(recipe.rounds))
    assert sum(e["event"] == "epoch" for e in events) == 3 + 3 * 2

    before = {key: run.store.read(key) for key in run.store.list()}
    events.clear()
    train(recipe, run, events.append)
    assert not events
    assert {key: run.store.read(key) for key in run.store.list()} == before


def worker_processes():
    """Pids of Ray Train's workers that descend from this process."""
    parents, workers = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue  # it has just ended
        if command.startswith(b"ray::") and b"TrainWorker" in command:
            workers.append(int(folder.name))

    def is_ours(pid):
        while pid > 1 and pid != os.getpid():
            pid = parents.get(pid, 0)
        return pid == os.getpid()

    return [pid for pid in workers if is_ours(pid)]


@pytest.fixture(scope="module")
def longer(recipe):
    """Saves often, and has rounds long enough to be hit in."""
    data = recipe.resolved()
    training = data["training"] | {"epochs": 20, "save_every": "10it"}
    return Recipe.model_validate({**data, "training": training, "pruning": {"ratios": [4.0]}})


@pytest.fixture(scope="module")
def unbroken(longer, train, tmp_path_factory):
    run = Run.begin(Store.open(str(tmp_path_factory.mktemp("unbroken"))), longer)
    train(longer, run, lambda event: None)
    (attempt,) = run.record["attempts"]
    assert (attempt["workers"], attempt["round"], attempt["iteration"]) == (2, 0, 0)
    return run


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("number", "what"), [(signal.SIGKILL, "was lost"), (signal.SIGTERM, "was asked to stop")]
)
def test_without_one_of_its_workers_training_ends_with_the_same_bits(
    longer, unbroken, train, tmp_path, number, what
):
    run = Run.begin(Store.open(str(tmp_path)), longer)
    notes, hit = [], []

    def on_event(event):
        if event["event"] == "note":
            notes.append(event["text"])
        # In the middle of each round, once: the first worker, then the other.
        elif event["event"] == "epoch" and event["epoch"] == 7 and event["round"] not in hit:
            workers = sorted(worker_processes())
            assert len(workers) == 2
            hit.append(event["round"])
            os.kill(workers[event["round"]], number)

    train(longer, run, on_event)
    assert hit == [0, 1]
    assert sum(what in note for note in notes) == 2, notes
    assert [note.partition(" goes on from step")[0] for note in notes if note.startswith("round")] == [
        "round 0",
        "round 1",
    ]
    for index in range(longer.rounds):
        key = run.checkpoint_key(index)
        assert run.store.read(key) == unbroken.store.read(unbroken.checkpoint_key(index))
    assert [attempt["round"] for attempt in run.record["attempts"]] == [0, 0, 1]
    assert not run.store.list(run.resume_key(""))


@pytest.mark.long
@pytest.mark.timeout(600)
def test_elastic_training_takes_the_workers_that_there_is_room_for(recipe, train, tmp_path):
    elastic = Recipe.model_validate({**recipe.resolved(), "workers": {"min": 1, "max": 3}})
    run = Run.begin(Store.open(str(tmp_path)), elastic)
    train(elastic, run, lambda event: None)
    assert run.finished_rounds() == recipe.rounds
    assert [attempt["workers"] for attempt in run.record["attempts"]] == [2], "the cluster has two CPUs"


def test_workers_that_fail_again_and_again_get_no_further_chance(recipe, tmp_path, monkeypatch):
    from shifter.training import on_ray
    from shifter.training.fit import LostError

    steps, waited, notes = iter([0, 7, 7, 7, 7, 9]), [], []

    def fit(recipe, run, on_event):
        where = {"workers": 2, "device": "cpu", "threads": 1}
        on_event({"event": "attempt", **where, "round": 0, "iteration": next(steps)})
        raise LostError("many lines\nthe last one")

    monkeypatch.setattr(on_ray, "fit", fit)
    monkeypatch.setattr(on_ray.time, "sleep", waited.append)
    run = Run.begin(Store.open(str(tmp_path)), recipe)
    with pytest.raises(TrainingError, match=r"failed 4 times without getting any further(.|\n)*last one"):
        on_ray.train(recipe, run, notes.append)
    assert waited == [1, 1, 2, 3]
    assert notes[0]["text"].startswith("a worker was lost (the last one): training goes on")
    assert [attempt["iteration"] for attempt in run.record["attempts"]] == [0, 7, 7, 7, 7]


@pytest.mark.long  # a second fit
def test_a_workers_error_comes_out_as_it_was_raised(recipe, tmp_path, train):
    training = recipe.training.model_copy(update={"learning_rate": 1e30})
    bad = recipe.model_copy(update={"training": training})
    run = Run.begin(Store.open(str(tmp_path)), bad)
    with pytest.raises(TrainingError, match=r"^training diverged in round 0 \(1x\), epoch 1: "):
        train(bad, run, lambda event: None)
    assert run.finished_rounds() == 0


def test_a_recipe_that_does_not_fit_starts_no_worker(recipe, tmp_path, train):
    pruning = recipe.pruning.model_copy(update={"exclude": ("nothing",)})
    bad = recipe.model_copy(update={"pruning": pruning})
    run = Run.begin(Store.open(str(tmp_path)), bad)
    with pytest.raises(RecipeError, match="no prunable tensor 'nothing'"):
        train(bad, run, lambda event: None)
    assert run.store.list() == [run.record_key]
