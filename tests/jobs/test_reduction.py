"""The Ray tasks of phase 2: lost ones run again, few rounds are under way, a full cluster is waited for."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import cloudpickle

import jobs.reduction
from jobs.cluster import cluster
from jobs.console import Console, Style
from jobs.reduction import finished_rounds, reduce_rounds, reduce_rounds_here
from jobs.rounds import Facts
from jobs.stored import StoredTensors
from shifter.errors import CheckpointError, ShifterError
from shifter.run import Run

from . import runs
from .runs import Watched, evaluation_of, untrained, watched

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def two_cpus() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv("RAY_ADDRESS", raising=False)
        cloudpickle.register_pickle_by_value(runs)  # the workers' disks are of a class of the tests
        with cluster(2, lambda _: None):
            yield
        cloudpickle.unregister_pickle_by_value(runs)


def names_of(run: Run) -> dict[int, str]:
    return dict(enumerate(run.variant_names()))


def reduce(run: Run, on_event: Any = print) -> dict[str, Facts]:
    names = names_of(run)
    return dict(reduce_rounds(run, names, dict.fromkeys(names, 8), evaluation_of(run), on_event))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same run, reduced in one process."""
    run = untrained(tmp_path_factory.mktemp("unbroken"))
    names = names_of(run)
    list(reduce_rounds_here(run, names, dict.fromkeys(names, 8), evaluation_of(run), print))
    return run


def assert_same_variants(run: Run, other: Run) -> None:
    for name in run.variant_names():
        for file in ("graph.onnx", "tensors.safetensors", "plan.json"):
            key = run.variant_key(name, file)
            assert run.store.read(key) == other.store.read(key)


@pytest.mark.parametrize(
    ("fatal", "nth"),
    [
        (None, 1),
        ("open round-01.arrow", 1),  # its planner
        ("open round-01.arrow", 3),  # a rebuild
        ("create 2x/tensors.safetensors", 1),  # its proof, when half of it is written
    ],
)
def test_a_worker_that_is_killed_costs_its_own_task_only(
    tmp_path: Path, unbroken: Run, monkeypatch: pytest.MonkeyPatch, fatal: str | None, nth: int
) -> None:
    monkeypatch.setattr(jobs.reduction, "TASK_BYTES", 1)  # a task per layer: 4 of them
    disk = Watched(tmp_path / "log", fatal, nth)
    run = untrained(tmp_path / "store")
    facts = reduce(watched(run, disk))
    assert sorted(facts) == ["1x", "2x", "4x"]
    assert dict(finished_rounds(run, run.variant_names())) == facts
    assert_same_variants(run, unbroken)
    opened = [disk.lines().count(f"open round-0{index}.arrow") for index in range(3)]
    # Plan, four rebuilds, proof.
    assert opened == [6, 6 if fatal is None else 7, 6]


def test_a_task_that_is_lost_again_and_again_ends_the_reduction_and_keeps_what_is_done(
    tmp_path: Path, unbroken: Run
) -> None:
    run = untrained(tmp_path / "store")
    seen = watched(run, Watched(tmp_path / "log", "create 4x/graph.onnx", 0))
    with pytest.raises(ShifterError, match="lost the task that was to prove round 2, 4 times"):
        reduce(seen)
    kept = dict(finished_rounds(run, run.variant_names()))
    assert "4x" not in kept
    left = {index: name for index, name in names_of(run).items() if name not in kept}
    dict(reduce_rounds(run, left, dict.fromkeys(left, 8), evaluation_of(run), print))
    assert_same_variants(run, unbroken)


def test_few_rounds_are_under_way_at_a_time_however_many_there_are(tmp_path: Path) -> None:
    disk = Watched(tmp_path / "log")
    run = untrained(tmp_path / "store", rounds=6)
    assert len(reduce(watched(run, disk))) == 6
    under_way, most = set(), 0
    by_name = {name: index for index, name in names_of(run).items()}
    for line in disk.lines():
        if line.startswith("open round-"):
            under_way.add(int(line[len("open round-") :][:2]))
        elif line.endswith("/reduced.json"):
            under_way.discard(by_name[line.removeprefix("create ").partition("/")[0]])
        most = max(most, len(under_way))
    assert 1 <= most <= 2, "no more than the cluster has CPUs"


def test_a_truncated_checkpoint_is_told_as_in_one_process(tmp_path: Path) -> None:
    run = untrained(tmp_path)
    path = tmp_path / run.checkpoint_key(1)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError) as caught:
        reduce(run)
    assert "Traceback" not in str(caught.value)
    assert str(caught.value).startswith(f"{run.checkpoint_key(1)} in the store {tmp_path}: ")
    assert not run.store.list(f"{run.name}/variants/2x/")


@ray.remote(num_cpus=2)
class Tenant:
    """Another's, who has all CPUs."""

    def is_in(self) -> bool:
        return True


def test_a_cluster_whose_cpus_are_all_taken_is_waited_for_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(jobs.reduction, "QUIET_SECONDS", 0.5)
    run = untrained(tmp_path, rounds=2)
    tenant = Tenant.remote()
    assert ray.get(tenant.is_in.remote())
    events: list[dict[str, Any]] = []
    waited = threading.Event()

    def on_event(event: dict[str, Any]) -> None:
        events.append(event)
        waited.set()

    def leave() -> None:
        waited.wait(60)
        assert not run.store.list(f"{run.name}/variants/")
        ray.kill(tenant)

    leaving = threading.Thread(target=leave)
    leaving.start()
    began = time.monotonic()
    facts = reduce(run, on_event)
    leaving.join()
    assert list(facts) == ["1x", "2x"] or list(facts) == ["2x", "1x"]
    assert [(e["event"], e["cpus"], e["begun"]) for e in events] == [("waiting", 2, False)]
    assert time.monotonic() - began >= 0.5
    for style in (Style.PLAIN, Style.JSONL):
        with Console.open(style) as console:
            console.on_event(events[0])
    plain, line = capsys.readouterr().err.splitlines()
    assert "waiting for a CPU: all of the cluster's (2) are taken" in plain
    assert json.loads(line)["event"] == "waiting"


def test_a_cluster_that_fills_up_later_is_said_to_be_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(jobs.reduction, "SILENT_SECONDS", 0.5)
    run = untrained(tmp_path, rounds=6)
    names, events, tenants = names_of(run), list[dict[str, Any]](), list[Any]()

    def on_event(event: dict[str, Any]) -> None:
        if tenants:
            events.append(event)
            ray.kill(tenants.pop())

    rounds = reduce_rounds(run, names, dict.fromkeys(names, 8), evaluation_of(run), on_event)
    done = [next(rounds)[0]]
    tenants.append(Tenant.remote())
    assert ray.get(tenants[0].is_in.remote())  # what was under way has ended
    done += [name for name, _ in rounds]
    assert sorted(done) == sorted(run.variant_names())
    assert [(e["event"], e["cpus"], e["begun"]) for e in events] == [("waiting", 2, True)]
    with Console.open(Style.PLAIN) as console:
        console.on_event(events[0])
    assert "by this reduction's own tasks or by others" in capsys.readouterr().err


def test_tensors_of_a_reduced_round_are_in_the_store_alone(unbroken: Run) -> None:
    found = StoredTensors(unbroken.store, unbroken.variant_key("4x", "tensors.safetensors"))
    (facts,) = (f for name, f in finished_rounds(unbroken, unbroken.variant_names()) if name == "4x")
    assert sum(array.nbytes for array in found.values()) == facts.tensor_bytes
    assert sum(array.size for array in found.values()) == facts.structural_parameters
