"""The selection keeps exactly what nothing beats."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shifter.errors import InexactError
from shifter.pruning.select import select
from shifter.values import Exactness, Latency, Profile


def profile(size: int, milliseconds: float, accuracy: float, spread: float = 0.0) -> Profile:
    latency = Latency(milliseconds, milliseconds - spread, milliseconds + spread, milliseconds * 2, 100)
    return Profile(
        round=0, ratio=1.0, dense_parameters=size, nonzero_parameters=size, structural_parameters=size,
        tensor_bytes=size, memory_bytes=size, validation_accuracy=accuracy, test_accuracy=1 - accuracy,
        latency=latency, batch_images=8, batch_latency=latency, dense_latency=latency,
        exactness=Exactness(0.0, 0.0, 0.0, 8),
    )  # fmt: skip


measured = st.builds(
    profile, st.integers(1, 6), st.integers(1, 6).map(float), st.integers(0, 6).map(lambda x: x / 6)
)
portfolios = st.lists(measured, min_size=1, max_size=8).map(lambda ps: {f"v{i}": p for i, p in enumerate(ps)})


def beats(one: Profile, other: Profile) -> bool:
    left = (-one.tensor_bytes, -one.latency.p50_ms, one.validation_accuracy)
    right = (-other.tensor_bytes, -other.latency.p50_ms, other.validation_accuracy)
    return left != right and all(a >= b for a, b in zip(left, right, strict=True))


@given(portfolios)
def test_kept_is_the_pareto_front_of_distinct_variants(profiles):
    kept, discarded = select(profiles)
    front = [n for n, p in profiles.items() if not any(beats(o, p) for o in profiles.values())]
    assert set(kept) <= set(front)
    figures = {(p.tensor_bytes, p.validation_accuracy) for p in (profiles[n] for n in kept)}
    assert len(figures) == len(kept), "twins are kept once"
    assert {(profiles[n].tensor_bytes, profiles[n].validation_accuracy) for n in front} == figures
    assert sorted([*kept, *(d.name for d in discarded)]) == sorted(profiles)
    assert all(d.beaten_by in profiles and d.beaten_by != d.name for d in discarded)
    sizes = [profiles[n].tensor_bytes for n in kept]
    assert sizes == sorted(sizes, reverse=True)


def test_what_beats_a_variant_is_named_with_what_it_is_better_at():
    profiles = {"1x": profile(100, 9.0, 0.9), "2x": profile(60, 5.0, 0.95), "4x": profile(50, 4.0, 0.8)}
    kept, (gone,) = select(profiles)
    assert kept == ("2x", "4x")
    assert (gone.name, gone.beaten_by) == ("1x", "2x")
    assert gone.reason == "2x is smaller, faster and more accurate"


def test_latencies_whose_intervals_overlap_are_not_told_apart():
    noisy = {"1x": profile(100, 5.0, 0.9, spread=1.0), "2x": profile(60, 5.5, 0.9, spread=1.0)}
    assert select(noisy)[0] == ("2x",)
    clear = {"1x": profile(100, 5.0, 0.9, spread=0.1), "2x": profile(60, 5.5, 0.9, spread=0.1)}
    assert select(clear)[0] == ("1x", "2x")


def test_of_near_twins_the_more_accurate_stays():
    profiles = {
        "1x": profile(100, 5.0, 0.90, spread=1.0),
        "2x": profile(98, 4.0, 0.899, spread=1.0),
        "4x": profile(50, 3.0, 0.8),
    }
    assert select(profiles)[0] == ("1x", "2x", "4x")
    kept, (gone,) = select(profiles, accuracy_tolerance=0.002, size_tolerance=0.05)
    assert kept == ("1x", "4x")
    assert (gone.name, gone.beaten_by) == ("2x", "1x")


def test_a_faster_variant_is_no_twin():
    profiles = {"1x": profile(100, 5.0, 0.90), "2x": profile(98, 2.0, 0.899)}
    assert select(profiles, accuracy_tolerance=0.002, size_tolerance=0.05)[0] == ("1x", "2x")


def test_what_beats_a_variant_is_itself_kept():
    """Intervals overlap in a chain: the smallest beats the middle one, but is slower than the largest."""
    chain = {
        "1x": profile(300, 1.5, 0.9, spread=0.5),
        "2x": profile(200, 2.25, 0.9, spread=0.75),
        "4x": profile(100, 3.25, 0.9, spread=0.75),
    }
    kept, (gone,) = select(chain)
    assert kept == ("1x", "4x")
    assert (gone.name, gone.beaten_by) == ("2x", "4x")


def test_test_images_have_no_say():
    one = {"1x": profile(100, 5.0, 0.9), "2x": profile(60, 4.0, 0.9)}
    other = {name: replace(p, test_accuracy=0.123) for name, p in one.items()}
    assert select(one) == select(other)


def inexact(one: Profile, **errors: float) -> Profile:
    return replace(one, exactness=replace(one.exactness, **errors))


@pytest.mark.parametrize(
    ("errors", "reason"),
    [
        ({"float64": 2e-10}, r"2\.0e-10 in float64, more than 1\.0e-10"),
        ({"float32": 5e-6, "sparse_float32": 1e-6}, r"5\.0e-06 in float32, more than 4\.0e-06"),
        ({"float32": 2e-4, "sparse_float32": 9e-5}, r"2\.0e-04 in float32, more than 1\.0e-04"),
        ({"float64": 1e-3, "float32": 3e-3, "sparse_float32": 2e-3}, r"float32 by itself is 2\.0e-03 away"),
        ({"float32": float("nan")}, "nan in float32"),
    ],
)
def test_what_is_not_exact_is_no_candidate_however_good(errors, reason):
    profiles = {"1x": profile(100, 9.0, 0.8), "2x": inexact(profile(50, 1.0, 0.9), **errors)}
    kept, (gone,) = select(profiles)
    assert kept == ("1x",)
    assert (gone.name, gone.beaten_by) == ("2x", None)
    assert re.search(reason, gone.reason)
    with pytest.raises(InexactError, match="no variant can be published: 2x"):
        select({"2x": profiles["2x"]})
