"""Training on storage that fails for a while, or for good."""

from dataclasses import replace

import pytest

from shifter.errors import StoreError
from shifter.patience import Patience
from shifter.run import Run
from shifter.sparse import SparseCheckpoint
from shifter.store import Store
from shifter.training.archive import Archive
from shifter.training.imp import iterative_magnitude_pruning

from ..faults import HASTY, FaultyDisk, on


def train(recipe, dataset, store):
    run = Run.begin(store, recipe, "run")
    iterative_magnitude_pruning(recipe, dataset, Archive(run, recipe.digest()), lambda event: None)


def artifacts(store):
    return {key: store.read(key) for key in store.list() if not key.endswith("run.json")}


@pytest.fixture(scope="module")
def unbroken(recipe, dataset, tmp_path_factory):
    store = Store.open(str(tmp_path_factory.mktemp("unbroken")))
    train(recipe, dataset, store)
    return artifacts(store)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_fifth_of_all_calls_may_fail(recipe, dataset, unbroken, tmp_path, seed):
    store, disk = Store.open(str(tmp_path)), FaultyDisk(0.2, seed)
    train(recipe, dataset, on(disk, store))
    assert sum(disk.faults.values()) > 5
    assert artifacts(store) == unbroken


@pytest.mark.parametrize("calls", [5, 25, 45])
def test_a_store_that_is_gone_ends_it_and_the_same_call_resumes(recipe, dataset, unbroken, tmp_path, calls):
    class Going(FaultyDisk):
        def _call(self, *arguments, **named):
            self.gone = sum(self.calls.values()) >= calls
            return super()._call(*arguments, **named)

    store, disk = Store.open(str(tmp_path)), Going(0)
    with pytest.raises(StoreError, match="when the storage is back, the same command goes on"):
        train(recipe, dataset, on(disk, store, Patience(limit_s=0.05, first_pause_s=0.01)))
    assert sum(disk.calls.values()) > calls
    train(recipe, dataset, store)
    assert artifacts(store) == unbroken
    assert not list(tmp_path.rglob(".*"))


def test_a_checkpoint_that_cannot_be_read_for_now_is_not_called_damaged(recipe, unbroken, tmp_path):
    store, disk = Store.open(str(tmp_path)), FaultyDisk(0)
    key = next(key for key in unbroken if key.endswith("round-00.arrow"))
    store.write(key, unbroken[key])
    with on(disk, store, Patience(limit_s=0.01)).open_file(key) as file:
        checkpoint = SparseCheckpoint.open(file)
        disk.gone = True
        with pytest.raises(StoreError, match="the same command goes on"):
            checkpoint.tensors()
    with on(FaultyDisk(0.2), store, HASTY).open_file(key) as file:
        assert checkpoint.names == SparseCheckpoint.open(file).names
        assert SparseCheckpoint.open(file).tensors().keys() == set(checkpoint.names)


def test_a_run_in_a_bucket_is_the_folders(recipe, dataset, unbroken, bucket):
    """Interrupted within each round, on a server of which a fifth of all requests fail."""
    store = replace(Store.open(f"s3://{bucket.bucket()}/runs"), patience=HASTY)
    bucket.play(share=0.2, seed=1)
    for finished in range(3):

        def interrupt(event, finished=finished):
            if event["event"] == "epoch" and event["round"] == finished + 1:
                raise KeyboardInterrupt

        run = Run.begin(store, recipe, "run")
        assert run.finished_rounds() == finished
        with pytest.raises(KeyboardInterrupt):
            iterative_magnitude_pruning(recipe, dataset, Archive(run, finished), interrupt)
    train(recipe, dataset, store)
    assert bucket.done()["sound"] < sum(bucket.done()[verb] for verb in ("GET", "HEAD", "PUT"))
    bucket.play()
    assert artifacts(store) == unbroken


def test_a_bucket_that_is_gone_ends_it_and_the_same_call_resumes(recipe, dataset, unbroken, bucket):
    store = Store.open(f"s3://{bucket.bucket()}/runs")

    def go(event):
        bucket.play(gone=True)

    run = Run.begin(replace(store, patience=Patience(0.05, 0.01)), recipe, "run")
    with pytest.raises(StoreError, match="when the storage is back, the same command goes on"):
        iterative_magnitude_pruning(recipe, dataset, Archive(run, 0), go)
    bucket.play()
    train(recipe, dataset, store)
    assert artifacts(store) == unbroken
