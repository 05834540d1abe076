"""Ray Train runs the same algorithm: every round in one fit, on a cluster with no CPU to spare."""

from itertools import pairwise

import pytest
import ray

from shifter.errors import RecipeError, TrainingError
from shifter.run import Run
from shifter.sparse import SparseCheckpoint
from shifter.store import Store

pytestmark = [
    pytest.mark.ray,
]


@pytest.fixture(scope="module")
def train():
    from shifter.training import worker

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield worker.train
    ray.shutdown()


def test_two_workers_train_every_round_and_a_finished_run_none(recipe, tmp_path, train):
    run = Run.begin(Store.open(str(tmp_path)), recipe)
    events = []
    train(recipe, run.store.uri, run.name, events.append)

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
    train(recipe, run.store.uri, run.name, events.append)
    assert not events
    assert {key: run.store.read(key) for key in run.store.list()} == before


@pytest.mark.long  # a second fit
def test_a_workers_error_comes_out_as_it_was_raised(recipe, tmp_path, train):
    training = recipe.training.model_copy(update={"learning_rate": 1e30})
    bad = recipe.model_copy(update={"training": training})
    run = Run.begin(Store.open(str(tmp_path)), bad)
    with pytest.raises(TrainingError, match=r"^training diverged in round 0 \(1x\), epoch 1: "):
        train(bad, run.store.uri, run.name, lambda event: None)
    assert run.finished_rounds() == 0


def test_a_recipe_that_does_not_fit_starts_no_worker(recipe, tmp_path, train):
    pruning = recipe.pruning.model_copy(update={"exclude": ("nothing",)})
    bad = recipe.model_copy(update={"pruning": pruning})
    run = Run.begin(Store.open(str(tmp_path)), bad)
    with pytest.raises(RecipeError, match="no prunable tensor 'nothing'"):
        train(bad, run.store.uri, run.name, lambda event: None)
    assert run.store.list() == [run.record_key]
