"""A run that is killed at any moment ends, byte for byte, where an unbroken one does."""

import multiprocessing
import random
import signal
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shifter.data import load
from shifter.errors import RunError, StoppedError, StoreError
from shifter.recipe import Recipe
from shifter.run import Run
from shifter.store import Store
from shifter.training.archive import Archive, forget_unfinished
from shifter.training.imp import iterative_magnitude_pruning
from shifter.training.progress import Own, Progress
from shifter.training.schedule import Schedule
from shifter.training.writer import Writer
from shifter.values import Step

from . import networks, one_run


class Kill(BaseException):
    """No ``except Exception`` may survive it."""


class Moments:
    """Counts what a process does, and kills it at the n-th; after that it does nothing more."""

    def __init__(self, last=10**9):
        self.count = 0
        self.last = last

    def pass_one(self):
        self.count += 1
        if self.count >= self.last:
            raise Kill


class Mortal:
    """A store whose every operation is a moment before it, and one after."""

    def __init__(self, store, moments):
        self._store = store
        self._moments = moments

    def __getattr__(self, name):
        found = getattr(self._store, name)
        if not callable(found):
            return found

        def operate(*arguments):
            self._moments.pass_one()
            result = found(*arguments)
            self._moments.pass_one()
            return result

        return operate


@pytest.fixture(scope="module")
def recipe(recipe):
    """With dropout, a state at every twentieth iteration, and one worker."""
    return Recipe.model_validate(
        {
            **recipe.resolved(),
            "workers": 1,
            "model": {"name": f"{networks.__name__}:small"},
            "training": {**recipe.resolved()["training"], "epochs": 2, "milestones": [], "save_every": "7it"},
            "pruning": {"ratios": [2.0, 8.0], "rewind_to": "10it"},
        }
    )


@pytest.fixture(scope="module")
def dataset(recipe):
    return load(recipe.data, recipe.seed)


def go(recipe, dataset, folder, moments=None):
    """The run as one process does it; its notes."""
    moments = moments or Moments()
    run = Run.begin(Store.open(str(folder)), recipe, "run")
    mortal = Run(Mortal(run.store, moments), run.name)
    events = []
    original = Schedule.learning_rate_at

    def learning_rate_at(schedule, step):  # asked for at every iteration
        moments.pass_one()
        return original(schedule, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Schedule, "learning_rate_at", learning_rate_at)
        iterative_magnitude_pruning(recipe, dataset, Archive(mortal, recipe.digest()), events.append)
        forget_unfinished(mortal)
    return [event["text"] for event in events if event["event"] == "note"]


def artifacts(folder):
    store = Store.open(str(folder))
    return {key: store.read(key) for key in store.list() if not key.endswith("run.json")}


@pytest.fixture(scope="module")
def unbroken(recipe, dataset, tmp_path_factory):
    """What an unbroken run leaves, and how many moments it has."""
    folder, moments = tmp_path_factory.mktemp("unbroken"), Moments()
    assert go(recipe, dataset, folder, moments) == []
    return artifacts(folder), moments.count


def test_killed_at_random_moments_it_ends_where_the_unbroken_run_does(recipe, dataset, unbroken, tmp_path):
    expected, moments = unbroken
    assert len(expected) == 1 + recipe.rounds, "the architecture and the rounds; no mid-round state"
    chance = random.Random(7)
    kills, notes, folder = 0, [], 0
    while kills < 20:
        folder += 1
        finished = False
        while not finished:
            try:
                notes += go(recipe, dataset, tmp_path / str(folder), Moments(chance.randint(1, moments)))
                finished = True
            except Kill:
                kills += 1
        assert artifacts(tmp_path / str(folder)) == expected
    assert any("goes on from step" in note for note in notes)
    assert all("goes on from step" in note for note in notes), "no state was unusable"


@pytest.fixture(scope="module")
def processes():
    """Makes processes that have everything imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2]))
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([one_run.__name__, networks.__name__, "torch.onnx"])
        yield context


def run_workers(processes, recipe, folder, victim=0, iterations=0):
    """Each worker a process; the ``victim`` kills itself after so many iterations.

    If they are negative, it only asks to stop. Their exit statuses.
    """
    Run.begin(Store.open(str(folder)), recipe, "run")
    folder.with_name(f"{folder.name}-meeting").unlink(missing_ok=True)
    size = recipe.workers
    started = [
        processes.Process(target=one_run.main, args=(rank, size, folder, iterations if rank == victim else 0))
        for rank in range(size)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(100)
    return [process.exitcode for process in started]


@pytest.mark.parametrize("workers", [2, pytest.param(3, marks=pytest.mark.long)])
def test_workers_killed_at_random_moments_end_where_unbroken_ones_do(processes, recipe, tmp_path, workers):
    recipe = Recipe.model_validate({**recipe.resolved(), "workers": workers})
    assert run_workers(processes, recipe, tmp_path / "unbroken") == [0] * workers
    assert (tmp_path / "unbroken-notes").read_text() == ""

    chance = random.Random(workers)
    for _ in range(3 if workers == 2 else 6):
        victim = chance.randrange(workers)
        codes = run_workers(processes, recipe, tmp_path / "killed", victim, chance.randint(1, 25))
        assert codes[victim] == -signal.SIGKILL
        assert all(code != 0 for code in codes), "nobody goes on without it"
    assert run_workers(processes, recipe, tmp_path / "killed") == [0] * workers
    assert "goes on from step" in (tmp_path / "killed-notes").read_text()
    expected = artifacts(tmp_path / "unbroken")
    assert len(expected) == 1 + recipe.rounds
    assert artifacts(tmp_path / "killed") == expected


@pytest.fixture
def stopped(recipe, dataset, unbroken, tmp_path):
    """A run that was killed in the middle of its last round."""
    with pytest.raises(Kill):
        go(recipe, dataset, tmp_path / "run", Moments(unbroken[1] - 15))
    run = Run.attach(str(tmp_path / "run"), "run")
    key = run.resume_key("round.safetensors")
    state = Progress.from_bytes(run.store.read(key), recipe.digest())
    assert state.round == run.finished_rounds() == 2
    return run, key, state


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: b"", "it is damaged"),
        (lambda data: data[: len(data) // 2], "it is damaged"),
        (lambda data: data[:-5] + bytes([data[-5] ^ 1]) + data[-4:], "do not match their sha256"),
        (lambda data: b"\xff" * 8 + data[8:], "it is damaged"),
        (lambda data: data.replace(b'\\"format\\": 1', b'\\"format\\": 9'), "it has format 9"),
    ],
)
def test_a_damaged_state_is_told_of_and_the_round_begins_anew(
    recipe, dataset, unbroken, stopped, damage, reason
):
    run, key, _ = stopped
    run.store.replace(key, damage(run.store.read(key)))
    (note,) = go(recipe, dataset, run.store.uri)
    assert reason in note
    assert note.endswith(": round 2 begins anew")
    assert artifacts(run.store.uri) == unbroken[0]


def test_a_state_of_another_recipe_or_network_is_not_used(recipe, dataset, unbroken, stopped):
    run, key, state = stopped
    run.store.replace(key, state.to_bytes("another recipe"))
    (note,) = go(recipe, dataset, run.store.uri)
    assert "it belongs to the recipe another recipe" in note
    assert artifacts(run.store.uri) == unbroken[0]


def test_a_state_that_does_not_fit_the_network_is_not_used(recipe, dataset, unbroken, stopped):
    run, key, state = stopped
    weights = dict(state.weights)
    weights["0.weight"] = weights["0.weight"][:5]
    run.store.replace(key, replace(state, weights=weights).to_bytes(recipe.digest()))
    (note,) = go(recipe, dataset, run.store.uri)
    assert note == "the mid-round state is of another network: round 2 begins anew"
    assert artifacts(run.store.uri) == unbroken[0]


def test_with_another_number_of_workers_it_goes_on(recipe, dataset, stopped):
    run, key, state = stopped
    run.store.replace(key, replace(state, workers=state.workers * 2).to_bytes(recipe.digest()))
    (note,) = go(recipe, dataset, run.store.uri)
    assert note.startswith("round 2 goes on from step ")
    assert run.finished_rounds() == recipe.rounds


def test_who_is_asked_to_stop_saves_that_very_step_and_goes_on_from_there(
    recipe, dataset, unbroken, tmp_path
):
    run, chances = Run.begin(Store.open(str(tmp_path)), recipe, "run"), iter([False] * 50 + [True])
    with pytest.raises(StoppedError, match="stopped in round 1 at step 23"):
        iterative_magnitude_pruning(
            recipe,
            dataset,
            Archive(run, recipe.digest()),
            lambda event: None,
            asked_to_stop=lambda: next(chances),
        )
    assert go(recipe, dataset, tmp_path) == ["round 1 goes on from step 23"]
    assert artifacts(tmp_path) == unbroken[0]


def test_one_worker_that_is_asked_stops_all(processes, recipe, tmp_path):
    recipe = Recipe.model_validate({**recipe.resolved(), "workers": 2})
    assert run_workers(processes, recipe, tmp_path / "unbroken") == [0, 0]
    assert run_workers(processes, recipe, tmp_path / "asked", 1, -25) == [one_run.STOPPED] * 2
    assert run_workers(processes, recipe, tmp_path / "asked") == [0, 0]
    assert (tmp_path / "asked-notes").read_text() == "round 0 goes on from step 25"
    assert artifacts(tmp_path / "asked") == artifacts(tmp_path / "unbroken")


def test_how_often_it_saves_may_change_and_changes_nothing(recipe, dataset, unbroken, stopped):
    run, _, _ = stopped
    training = recipe.training.model_copy(update={"save_every": "1ep"})
    changed = recipe.model_copy(update={"training": training})
    assert changed.digest() == recipe.digest()
    (note,) = go(changed, dataset, run.store.uri)
    assert "goes on from step" in note
    assert artifacts(run.store.uri) == unbroken[0]


def test_a_state_is_the_same_after_a_round_trip():
    tensors = {"a.weight": np.array([[-0.0, np.nan]], np.float32), "b": np.zeros((0, 3), np.float32)}
    own = Own({"mean": np.array(2.5, np.float32)}, {"cpu": np.arange(9, dtype=np.uint8)}, 0.1)
    other = Own({"mean": np.array(3.5, np.float32)}, {"cpu": np.arange(9, dtype=np.uint8)}, -7.25)
    state = Progress(3, Step(17), tensors, {}, (own, other))
    read = Progress.from_bytes(state.to_bytes("recipe"), "recipe")
    assert read.to_bytes("recipe") == state.to_bytes("recipe")
    assert (read.round, read.step, read.momentum) == (3, Step(17), {})
    assert [worker.loss for worker in read.workers] == [0.1, -7.25]
    assert read.weights["a.weight"].tobytes() == tensors["a.weight"].tobytes()


def test_what_is_written_is_read_back(recipe, dataset, tmp_path):
    """A store that takes a checkpoint and gives other bytes is found out, and the run can go on."""

    class Rotten(Store):
        def read(self, key):
            data = super().read(key)
            return data[:-1] + b"?" if key.endswith("round-00.arrow") else data

    run = Run.begin(Store.open(str(tmp_path)), recipe, "run")
    rotten = Run(Rotten(run.store.place), run.name)
    with pytest.raises(StoreError, match=r"round-00\.arrow .* does not read as it was written"):
        iterative_magnitude_pruning(recipe, dataset, Archive(rotten, recipe.digest()), lambda event: None)
    assert run.finished_rounds() == 0


@pytest.mark.parametrize("same", [True, False])
def test_a_checkpoint_that_came_from_elsewhere_meanwhile_has_to_be_the_same(
    recipe, dataset, unbroken, tmp_path, same
):
    """As a worker that was taken for lost, but was not, would write it."""
    run = Run.begin(Store.open(str(tmp_path)), recipe, "run")
    key = run.checkpoint_key(0)

    def on_event(event):
        if event["event"] == "attempt":
            run.store.write(key, unbroken[0][key] if same else b"another result")

    def train():
        iterative_magnitude_pruning(recipe, dataset, Archive(run, recipe.digest()), on_event)

    if same:
        train()
        assert run.store.read(run.checkpoint_key(2)) == unbroken[0][run.checkpoint_key(2)]
    else:
        with pytest.raises(StoreError, match=r"round-00\.arrow .* was written by another process"):
            train()
        assert run.store.exists(key), "it is not ours to delete"


def test_training_goes_on_while_a_checkpoint_is_written(recipe, dataset, tmp_path):
    """The store takes the first round's checkpoint only when the second round is under way."""
    under_way = threading.Event()

    class Slow(Store):
        def write(self, key, data):
            if key.endswith("round-00.arrow"):
                assert under_way.wait(60)
            super().write(key, data)

    def on_event(event):
        if event["event"] == "epoch" and event["round"] == 1:
            under_way.set()

    run = Run.begin(Store.open(str(tmp_path)), recipe, "run")
    slow = Run(Slow(run.store.place), run.name)
    # Without mid-round states, which would wait for the checkpoint.
    training = recipe.training.model_copy(update={"save_every": "99ep"})
    rarely = recipe.model_copy(update={"training": training})
    iterative_magnitude_pruning(rarely, dataset, Archive(slow, recipe.digest()), on_event)
    assert run.finished_rounds() == recipe.rounds


def test_an_error_in_the_background_is_raised_where_the_work_is_waited_for():
    def fail():
        raise StoreError("full")

    def write(*jobs):
        with Writer() as writer:
            for job in jobs:
                writer.submit(job)

    def write_and_fail():
        with Writer() as writer:
            writer.submit(fail)
            raise RunError("before")

    done = []
    with pytest.raises(StoreError, match="full"):
        write(lambda: done.append(1), fail, lambda: done.append(2))
    assert done == [1]
    with pytest.raises(StoreError, match="full"):
        write(fail)
    with pytest.raises(RunError, match="before"):
        write_and_fail()
