"""Several workers train one network: the same masks, the global batch's gradient, exact evaluation."""

import json
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

from shifter.data import Images
from shifter.run import Run
from shifter.sparse import SparseCheckpoint
from shifter.store import Store
from shifter.training.loop import evaluate

from . import one_of_several

SIZE = 2


@pytest.fixture(scope="module")
def folder(recipe, tmp_path_factory):
    """What the workers left."""
    folder = tmp_path_factory.mktemp("workers")
    (folder / "recipe.json").write_text(json.dumps(recipe.resolved()))
    Run.begin(Store.open(str(folder / "unbroken")), recipe, "run")
    command = [sys.executable, "-W", "error", one_of_several.__file__]
    workers = [
        subprocess.Popen([*command, str(rank), str(SIZE), str(folder)], stderr=subprocess.PIPE, text=True)
        for rank in range(SIZE)
    ]
    errors = [worker.communicate(timeout=200)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * SIZE, "\n".join(errors)
    return folder


@pytest.fixture(scope="module")
def results(folder):
    return [json.loads((folder / f"result-{rank}.json").read_text()) for rank in range(SIZE)]


def test_a_stopped_run_ends_where_an_unbroken_one_does(folder, recipe):
    unbroken, stopped = (Run.attach(str(folder / name), "run") for name in ("unbroken", "stopped"))
    assert unbroken.finished_rounds() == recipe.rounds
    for index in range(recipe.rounds):
        key = unbroken.checkpoint_key(index)
        assert unbroken.store.read(key) == stopped.store.read(key)


def test_checkpoints_are_of_a_trained_network(folder, recipe):
    run = Run.attach(str(folder / "unbroken"), "run")
    found = [SparseCheckpoint.open(run.store.read(run.checkpoint_key(i))) for i in range(recipe.rounds)]
    assert found[0].meta.test_accuracy > 0.5
    assert all(later.mask().is_within(earlier.mask()) for earlier, later in pairwise(found))


def test_the_gradient_is_that_of_the_global_batch(folder, recipe, dataset):
    """65 images on two workers: unequal parts, which still have to weigh the same each image."""
    alone = one_of_several.train_without_norm(recipe, dataset).tensors
    first, second = (dict(np.load(folder / f"without-norm-{rank}.npz")) for rank in range(SIZE))
    for name, tensor in alone.items():
        assert first[name].tobytes() == second[name].tobytes()
        np.testing.assert_allclose(first[name], tensor, rtol=1e-3, atol=1e-4)


def test_every_image_is_counted_once(results, dataset):
    data = Images.of(dataset.train, dataset.input_spec)
    expected = evaluate(one_of_several.WithoutNorm(), data)
    assert [result["accuracy"] for result in results] == [expected] * SIZE


@pytest.mark.parametrize("what", ["masks", "weights"])
def test_workers_that_are_apart_are_stopped(results, what):
    for result in results:
        assert f"the workers hold different {what} (worker 0: " in result[what]


def test_only_the_first_worker_reports(results):
    assert results[0]["events"]
    assert not results[1]["events"]
