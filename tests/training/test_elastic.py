"""An elastic run takes the workers that a node brings, and goes on without those that it takes away."""

from itertools import pairwise

import numpy as np
import pytest

from shifter.recipe import Recipe
from shifter.run import Run
from shifter.sparse import SparseCheckpoint
from shifter.store import Store

from . import networks, nodes

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(900), *nodes.ITS_WARNINGS]


@pytest.fixture
def cluster(monkeypatch):
    with nodes.cluster(monkeypatch) as cluster:
        yield cluster


def test_a_run_grows_with_a_node_and_outlives_its_loss(recipe, cluster, tmp_path, monkeypatch):
    from shifter.training import fit, on_ray

    monkeypatch.setattr(fit, "_RESIZE_SECONDS", 1.0)
    seen_enough = tmp_path / "seen-enough"
    data = recipe.resolved()
    elastic = Recipe.model_validate(
        {
            **data,
            "workers": {"min": 1, "max": 2},
            "model": {"name": f"{networks.__name__}:slow", "arguments": {"until": str(seen_enough)}},
            # Its state is saved where it has to be, and nowhere else.
            "training": data["training"] | {"epochs": 150, "save_every": "150ep", "milestones": []},
            "pruning": {"ratios": [2.0, 4.0], "rewind_to": "25it"},
        }
    )
    run = Run.begin(Store.open(str(tmp_path / "runs")), elastic)
    notes, joined, left = [], [], []

    def on_event(event):
        if event["event"] == "note":
            notes.append(event["text"])
        elif event["event"] == "epoch":
            if event["workers"] == 1 and not joined:
                joined.append(cluster.add_node(**nodes.ROOM))
            elif event["workers"] == 2 and not left:
                left.append(joined[0])
                cluster.remove_node(joined[0], allow_graceful=False)
            elif event["workers"] == 1 and left:
                seen_enough.touch()

    on_ray.train(elastic, run, on_event)

    attempts = run.record["attempts"]
    assert [attempt["workers"] for attempt in attempts] == [1, 2, 1]
    first, grown, shrunk = (attempt["iteration"] for attempt in attempts)
    assert first == 0 < grown, "who is to be joined by another saves first"
    assert shrunk == grown, "nothing was saved since"
    told = "not, bit for bit, the one it would have been (batch norm sees other parts of each batch)"
    for note in (
        f"training goes on with 2 instead of 1 (workers): its result is {told}",
        f"training goes on with 1 instead of 2 (workers): its result is {told}",
        f"round 0 goes on from step {grown}",
    ):
        assert note in notes, notes
    assert sum("a worker was lost" in note for note in notes) == 1, "growing takes no fit of its own"

    assert run.finished_rounds() == elastic.rounds
    rounds = [SparseCheckpoint.open(run.store.read(run.checkpoint_key(i))) for i in range(elastic.rounds)]
    masks = [found.mask() for found in rounds]
    assert all(later.is_within(earlier) for earlier, later in pairwise(masks))
    for ratio, found, mask in zip(elastic.ratio_of_round, rounds, masks, strict=True):
        assert mask.kept == round(mask.total / ratio)
        tensors = found.tensors()  # each held against its sha256
        assert all(np.isfinite(tensor).all() for tensor in tensors.values())
        assert not any(tensors[name][~kept].any() for name, kept in mask.items())
        assert found.meta.test_accuracy > 0.5
    assert not run.store.list(run.resume_key(""))
