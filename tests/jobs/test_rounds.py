"""Rounds are reduced, proved and written one by one; what is written is not done again."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

import jobs.reduction
from jobs.profiling import choose_round_to, groups
from jobs.reduction import reduce_run
from jobs.rounds import batches, reduce_round
from jobs.stored import StoredTensors
from shifter.errors import CheckpointError
from shifter.pruning.network import Layer
from shifter.pruning.plan import LayerPlan, ParameterPlan, PrunePlan
from shifter.pruning.rebuild import other_tensors, rebuild_graph
from shifter.pruning.rounding import CANDIDATES, WHOLE, choose_multiple
from shifter.run import Run
from shifter.store import Store
from shifter.values import Latency, Mask

from ..pruning.families import family, mask
from .runs import Watched, begun, evaluation_of, untrained, watched, write_checkpoint

FILES = ("graph.onnx", "tensors.safetensors", "plan.json", "reduced.json")


def part(index: int, out: int, into: int) -> LayerPlan:
    layer = Layer(f"l{index}", "Gemm", f"l{index}.weight", None, None, padded=False)
    return LayerPlan(layer, (out, into), (0,), (0,))


@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), max_size=12),
    st.lists(st.integers(1, 50), max_size=4),
    st.integers(1, 5000),
)
def test_every_part_is_in_exactly_one_batch_and_no_batch_goes_on_when_it_is_full(sizes, kept, task_bytes):
    layers = [part(i, *size) for i, size in enumerate(sizes)]
    slices = [ParameterPlan(f"p{i}", 0, tuple(range(count))) for i, count in enumerate(kept)]
    plan = PrunePlan(tuple(layers), tuple(slices))
    found = list(batches(plan, task_bytes))
    assert [one for batch in found for one in batch] == [*layers, *slices]
    weights = [
        [4 * (len(p.kept) if isinstance(p, ParameterPlan) else p.widths[0] * p.widths[1]) for p in batch]
        for batch in found
    ]
    assert all(sum(w[:-1]) < task_bytes for w in weights), "a batch ends with the part that fills it"
    assert all(sum(w) >= task_bytes for w in weights[:-1]), "only the last may be small"


def reduce_here(run: Run) -> tuple[list[Any], list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []
    return reduce_run(run, run.recipe, events.append, local=True), events


def test_a_run_is_reduced_in_this_process_and_only_once(tmp_path: Path, monkeypatch) -> None:
    run = untrained(tmp_path)
    variants, events = reduce_here(run)
    assert [v.name for v in variants] == ["1x", "2x", "4x"]
    assert [(e["event"], e.get("variant"), e.get("done")) for e in events] == [
        *(("reduced", name, i + 1) for i, name in enumerate(("1x", "2x", "4x"))),
        ("profiling", None, None),
    ]
    sizes = [v.profile.structural_parameters for v in variants]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 1.5 * sizes[2], "filters that are zero are gone"
    for variant in variants:
        profile = variant.profile
        assert profile.exactness.float64 <= 1e-10
        assert profile.macs is not None
        assert profile.alternating_latency is not None
        assert profile.cores is not None
        assert profile.dense_latency == variants[0].profile.latency
        assert profile.tensor_bytes == sum(array.nbytes for array in variant.tensors.values())

    monkeypatch.setattr(jobs.reduction, "reduce_round", None)
    monkeypatch.setattr(jobs.reduction, "profile_variants", None)
    again, nothing = reduce_here(run)
    assert [v.profile for v in again] == [v.profile for v in variants]
    assert nothing == []


def test_what_was_reduced_before_an_interruption_is_kept_and_not_done_again(tmp_path, monkeypatch) -> None:
    run = untrained(tmp_path, rounds=4)

    def interrupt(event: dict[str, Any]) -> None:
        if event.get("done") == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reduce_run(run, run.recipe, interrupt, local=True)
    written = run.store.list(f"{run.name}/variants/")
    assert written == sorted(run.variant_key(n, f) for n in ("1x", "2x") for f in FILES)
    before = {key: run.store.read(key) for key in written}

    # What a round that was cut off has left is not trusted.
    run.store.write(run.variant_key("4x", "graph.onnx"), b"half of it")
    reduced = []

    def counted(run, index, *others):
        reduced.append(index)
        return reduce_round(run, index, *others)

    monkeypatch.setattr(jobs.reduction, "reduce_round", counted)
    variants, events = reduce_here(run)
    assert reduced == [2, 3]
    assert [(e["variant"], e["done"]) for e in events[:-1]] == [("4x", 3), ("8x", 4)]
    assert {key: run.store.read(key) for key in written} == before
    whole = untrained(tmp_path / "unbroken", rounds=4)
    for one, other in zip(variants, reduce_here(whole)[0], strict=True):
        assert one.graph == other.graph
        assert dict(one.tensors).keys() == dict(other.tensors).keys()
        assert all(np.array_equal(one.tensors[name], other.tensors[name]) for name in one.tensors)


@pytest.mark.parametrize("left", [0.3, 0.95])
def test_a_truncated_checkpoint_is_one_clear_error_and_nothing_of_it_is_published(tmp_path, left) -> None:
    run = untrained(tmp_path)
    path = tmp_path / run.checkpoint_key(1)
    data = path.read_bytes()
    path.write_bytes(data[: int(left * len(data))])
    with pytest.raises(CheckpointError, match=r"rounds/round-01\.arrow in the store .*: .*damaged"):
        reduce_here(run)
    assert not run.store.list(f"{run.name}/variants/2x/")
    assert not [key for key in run.store.list(f"{run.name}/") if key.endswith("profile.json")]


def test_a_rebuild_reads_only_its_layers(tmp_path) -> None:
    run = untrained(tmp_path, rounds=2)
    plan = jobs.rounds.plan_checkpoint(run, 1, 8)
    log = Watched(tmp_path / "log")
    seen = watched(run, log)
    sizes = []
    for layer in plan.layers:
        sizes.append(sum(a.size for a in jobs.rounds.rebuild_batch(seen, 1, [layer]).values()))
    assert log.lines() == ["open round-01.arrow"] * len(plan.layers)
    assert all(sizes)


tensor = st.sampled_from([(3,), (2, 3), (), (0, 4)]).map(
    lambda shape: np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
)


@given(st.dictionaries(st.text("ab.c", min_size=1, max_size=4), tensor, min_size=1, max_size=5))
def test_tensors_that_stay_in_the_store_are_those_of_the_file(tmp_path_factory, tensors) -> None:
    store = Store.open(str(tmp_path_factory.mktemp("store")))
    store.write("t", save_tensors(tensors))
    stored = StoredTensors(store, "t")
    expected = load_tensors(store.read("t"))
    assert set(stored) == set(expected)
    assert len(stored) == len(expected)
    for name, array in expected.items():
        assert stored[name].dtype == array.dtype
        assert np.array_equal(stored[name], array)


def test_a_file_of_tensors_that_is_cut_short_is_told(tmp_path) -> None:
    store = Store.open(str(tmp_path))
    whole = save_tensors({"a": np.ones((20, 20), np.float32)})
    for length in (4, 20, len(whole) - 1):
        store.write(f"cut-{length}", whole[:length])
        with pytest.raises(CheckpointError, match="ends too early"):
            StoredTensors(store, f"cut-{length}")["a"]
    store.write("text", (5).to_bytes(8, "little") + b"hello")
    with pytest.raises(CheckpointError, match="no JSON"):
        list(StoredTensors(store, "text"))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=12), st.integers(1, 120))
def test_each_group_has_the_dense_variant_and_what_fits_beside_it(sizes, room):
    named = {f"v{i}": size for i, size in enumerate(sizes)}
    found = list(groups(named, room))
    assert all(group[0] == "v0" for group in found)
    assert [name for group in found for name in group[1:]] == list(named)[1:]
    for group in found:
        # One that does not fit even alone is measured all the same.
        assert len(group) <= 2 or sum(named[name] for name in group) <= room
    assert all(len(group) > 1 for group in found) or len(named) == 1


def latency(p50: float, spread: float = 0.0) -> Latency:
    return Latency(p50, p50 - spread, p50 + spread, 2 * p50, 50)


@pytest.mark.parametrize(
    ("eight", "sixteen", "whole", "chosen"),
    [
        (latency(1.0), latency(2.0), latency(3.0), 8),
        (latency(2.0), latency(1.0), latency(3.0), 16),
        (latency(1.1, 0.2), latency(1.0, 0.2), latency(3.0), 8),  # not told apart: the smaller
        (latency(3.0), latency(2.5), latency(2.0), WHOLE),  # reducing made it slower
        (latency(3.0), latency(2.0, 0.2), latency(2.0), 16),
        (latency(2.0, 0.5), latency(1.2, 0.4), latency(1.0, 0.2), 16),
    ],
)
def test_the_multiple_is_the_fastest_that_is_no_slower_than_the_whole(eight, sixteen, whole, chosen):
    assert choose_multiple({8: eight, 16: sixteen, WHOLE: whole}) == chosen


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 3)), min_size=3, max_size=3))
def test_the_chosen_multiple_is_never_slower(figures):
    found = {m: latency(10 + p50, spread) for m, (p50, spread) in zip((8, 16, WHOLE), figures, strict=True)}
    chosen = choose_multiple(found)
    assert not found[chosen].is_slower_than(found[WHOLE])
    if chosen != WHOLE:
        assert not any(found[chosen].is_slower_than(found[other]) for other in CANDIDATES if other != WHOLE
                       and not found[other].is_slower_than(found[WHOLE]))  # fmt: skip


class Paced:
    """An engine that takes as long as ``pace`` says of its first layer's width, by a clock of its own."""

    now = 0.0

    def __init__(self, width: int, pace: dict[int, float]) -> None:
        self.seconds = pace[width]

    def run(self, images):
        Paced.now += self.seconds
        return images


@pytest.mark.parametrize(
    ("pace", "chosen"),
    [
        ({24: 1e-3, 32: 2e-3, 40: 3e-3}, 8),
        ({24: 2e-3, 32: 1e-3, 40: 3e-3}, 16),
        ({24: 3e-3, 32: 3e-3, 40: 2e-3}, WHOLE),
    ],
)
def test_the_multiple_follows_what_is_measured(tmp_path, pace, chosen) -> None:
    run = untrained(tmp_path, rounds=3)  # of round 2, half of 40 filters are zero: 24, 32, or all

    def load(graph, tensors):
        (width,) = {len(a) for name, a in tensors.items() if name == "l0.weight"}
        return Paced(width, pace)

    images = np.zeros((1, 1, 8, 8), np.float32)
    assert choose_round_to(run, 2, images, 20, load, lambda: Paced.now) == chosen
    # Nothing is gone in the dense round: there is nothing to choose, and nothing is measured.
    assert choose_round_to(run, 0, images, 20, load, None) == CANDIDATES[0]


@pytest.mark.parametrize("chosen", [16, WHOLE])
def test_auto_is_measured_once_per_variant_and_what_it_chose_is_built(tmp_path, monkeypatch, chosen) -> None:
    run = untrained(tmp_path, reduction={"round_to": "auto"})
    asked = itertools.count()
    monkeypatch.setattr(
        jobs.reduction, "choose_round_to", lambda run, index, *others: (next(asked), chosen)[1]
    )
    reduce_here(run)
    reduce_here(run)
    assert next(asked) == 3
    for name, kept in (
        ("1x", 40),
        ("2x", 40 if chosen == WHOLE else 32),
        ("4x", 40 if chosen == WHOLE else 32),
    ):
        assert json.loads(run.store.read(run.variant_key(name, "reduced.json")))["round_to"] == chosen
        plan = PrunePlan.from_json(json.loads(run.store.read(run.variant_key(name, "plan.json"))))
        assert len(plan.layers[0].outputs) == kept


def test_an_old_fact_or_a_new_one_differs_in_no_profile(tmp_path) -> None:
    run = untrained(tmp_path, rounds=2)
    facts = reduce_round(run, 1, "2x", 8, evaluation_of(run))
    assert type(facts).from_json(json.loads(json.dumps(facts.to_json()))) == facts
    assert replace(facts, round_to=16).for_profile() == facts.for_profile()


@pytest.mark.parametrize("name", ["densenet", "shufflenet", "mobilenet-v3", "convnext", "vit"])
def test_batches_together_make_all_that_a_plan_of_any_family_wants(tmp_path, name) -> None:
    """Sliced parameters and layers of all kinds, each from no more than its own tensors."""
    member = family(name)
    tensors = mask(member.tensors, np.random.default_rng(0), aligned=True)
    run = begun(tmp_path, rounds=2)
    run.store.write(run.architecture_key, member.architecture)
    write_checkpoint(run, 0, tensors, Mask({}))
    plan = jobs.rounds.plan_checkpoint(run, 0, 8)
    made: dict[str, Any] = {}
    for batch in batches(plan, 10_000):
        arrays = jobs.rounds.rebuild_batch(run, 0, batch)
        assert not made.keys() & arrays.keys()
        made |= arrays
    graph, expected = jobs.rounds.candidate(run, 0, 8)
    assert graph == rebuild_graph(member.architecture, plan)
    rest = {*other_tensors(member.architecture, plan), *(part.name for part in plan.constants)}
    assert made.keys() | rest == expected.keys()
    assert all(np.array_equal(made[key].astype(np.float32), expected[key]) for key in made)
