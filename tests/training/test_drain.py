"""A node that is to be taken away: its workers save and end at once, and training goes on elsewhere."""

import time

import pytest

from shifter.recipe import Recipe
from shifter.run import Run
from shifter.store import Store

from . import nodes

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(600), *nodes.ITS_WARNINGS]
PREEMPTION = 2
"""The reason, as Ray's autoscaler gives it."""


@pytest.fixture
def cluster(monkeypatch):
    monkeypatch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "0.2")
    with nodes.cluster(monkeypatch) as cluster:
        cluster.add_node(**nodes.ROOM)
        yield cluster


def test_training_leaves_a_node_that_is_drained(recipe, cluster, tmp_path):
    from ray._raylet import GcsClient

    from shifter.training.on_ray import train

    data = recipe.resolved()
    training = data["training"] | {"epochs": 120, "save_every": "120ep"}
    long = Recipe.model_validate({**data, "training": training, "pruning": {"ratios": [4.0]}})
    notes, drained = [], []

    def on_event(event):
        if event["event"] == "note":
            notes.append(event["text"])
        elif event["event"] == "epoch" and event["epoch"] == 5 and not drained:
            node = cluster.list_all_nodes()[-1].node_id
            deadline = int(1000 * (time.time() + 600))
            drained.append(GcsClient(address=cluster.address).drain_node(node, PREEMPTION, "spot", deadline))
            cluster.add_node(**nodes.ROOM)

    runs = [Run.begin(Store.open(str(tmp_path)), long, name) for name in ("unbroken", "drained")]
    train(long, runs[0], lambda event: None)
    train(long, runs[1], on_event)
    assert [accepted for accepted, _ in drained] == [True]
    assert notes[0] == "a worker was asked to stop: training goes on from what was saved last"
    assert notes[1].startswith("round 0 goes on from step ")
    assert [attempt["workers"] for attempt in runs[1].record["attempts"]] == [2, 2]
    for index in range(long.rounds):
        first, second = (run.store.read(run.checkpoint_key(index)) for run in runs)
        assert first == second
