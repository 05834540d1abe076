"""Value types refuse nonsense when they are made."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shifter.values import (
    CompressionRatio,
    Exactness,
    InputSpec,
    Latency,
    LayerCost,
    Mask,
    Profile,
    Step,
    Variant,
)

SPEC = InputSpec(2, 3, 4, 16.0, (0.25, 0.5), (0.5, 2.0), ("zero", "one"))
LATENCY = Latency(1.0, 0.9, 1.1, 2.0, 50)
PROFILE = Profile(
    round=1,
    ratio=2.0,
    dense_parameters=100,
    nonzero_parameters=50,
    structural_parameters=70,
    tensor_bytes=280,
    memory_bytes=1000,
    validation_accuracy=0.9,
    test_accuracy=0.8,
    latency=LATENCY,
    batch_images=8,
    batch_latency=LATENCY,
    dense_latency=LATENCY,
    exactness=Exactness(1e-12, 1e-6, 1e-6, 64),
)

FULL_PROFILE = replace(
    PROFILE,
    alternating_latency=Latency(1.0, 0.9, 1.1, 2.0, 400, 1.8, 2.2),
    cores=2,
    all_cores_latency=LATENCY,
    layers=(LayerCost("conv", "Conv", 1000, 80, 40), LayerCost("fc", "Gemm", 24, 96, 12)),
)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("memory_bytes", -(10**12)),
        ("memory_bytes", 0),
        ("memory_bytes", 2**63),
        ("tensor_bytes", -1),
        ("nonzero_parameters", -1),
        ("dense_parameters", 0),
        ("validation_accuracy", 1e300),
        ("test_accuracy", -0.1),
        ("validation_accuracy", math.nan),
        ("ratio", math.inf),
        ("cores", 0),
    ],
)
def test_what_nobody_can_have_measured_is_no_profile(field: str, value: float) -> None:
    changed: dict[str, Any] = {field: value}
    with pytest.raises(ValueError, match=f"{field} of a profile cannot be"):
        replace(PROFILE, **changed)


@pytest.mark.parametrize("field", ["p50_low_ms", "p50_high_ms", "p99_ms", "p99_low_ms", "p99_high_ms"])
@pytest.mark.parametrize("value", [-1.0, 0.0, math.inf, math.nan])
def test_times_are_finite_and_more_than_nothing(field: str, value: float) -> None:
    changed: dict[str, Any] = {field: value}
    with pytest.raises(ValueError, match="not a latency"):
        replace(LATENCY, **changed)


def test_a_layer_costs_no_less_than_nothing() -> None:
    with pytest.raises(ValueError, match="weight_bytes of 'conv' cannot be -1"):
        LayerCost("conv", "Conv", 1000, -1, 40)


@given(st.integers(0, 10**9), st.integers(1, 10**6))
def test_steps_count_iterations(count: int, per_epoch: int) -> None:
    assert Step.parse(f"{count}it", per_epoch) == Step(count)
    assert Step.parse(f"{count}ep", per_epoch) == Step(count * per_epoch)


@pytest.mark.parametrize("text", ["", "5", "ep", "-1it", "1.5ep", "5 ep", "5eps"])
def test_what_is_no_step_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write iterations as"):
        Step.parse(text, 10)
    with pytest.raises(ValueError, match="negative"):
        Step(-1)


@pytest.mark.parametrize("value", [0.99, 0.0, -2.0, math.inf, math.nan])
def test_what_is_no_ratio_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        CompressionRatio(value)


@given(st.floats(1, 1e6), st.integers(1, 10**7))
def test_a_ratio_keeps_its_share_and_never_nothing(ratio: float, total: int) -> None:
    kept = CompressionRatio(ratio).kept(total)
    assert 1 <= kept <= total
    assert abs(kept - total / ratio) <= 1
    assert str(CompressionRatio(4.0)) == "4x"


@given(hnp.arrays(np.bool_, hnp.array_shapes(min_dims=0, min_side=0)), st.data())
def test_masks_count_shrink_and_have_a_digest(array: np.ndarray, data: st.DataObject) -> None:
    mask = Mask({"w": array})
    assert mask.total == array.size
    assert mask.kept == array.sum()
    smaller = Mask({"w": array & data.draw(hnp.arrays(np.bool_, array.shape))})
    assert smaller.is_within(mask)
    assert mask.is_within(smaller) == (smaller.kept == mask.kept) == (smaller.digest() == mask.digest())
    assert not mask.is_within(Mask({"v": array}))


def test_a_mask_is_a_copy_that_cannot_be_changed() -> None:
    array = np.ones((2, 2), np.bool_)
    mask = Mask({"w": array})
    array[:] = False
    assert mask["w"].all()
    with pytest.raises(ValueError, match="read-only"):
        mask["w"][0, 0] = False
    with pytest.raises(ValueError, match="not bool"):
        Mask({"w": np.ones(2)})  # type: ignore[dict-item]


def test_a_digest_knows_names_and_shapes() -> None:
    ones = np.ones(4, np.bool_)
    masks = [Mask({"a": ones}), Mask({"b": ones}), Mask({"a": ones.reshape(2, 2)}), Mask({"a": ones[:3]})]
    assert len({m.digest() for m in masks}) == len(masks)
    assert Mask({"a": ones, "b": ones}).digest() == Mask({"b": ones, "a": ones}).digest()


def test_pixels_are_normalised_per_channel() -> None:
    pixels = np.full((1, 2, 3, 4), 8, np.uint8)
    normal = SPEC.normalise(pixels)
    assert normal.dtype == np.float32
    assert normal.flags.c_contiguous
    assert (normal[0, 0] == (0.5 - 0.25) / 0.5).all()
    assert (normal[0, 1] == 0.0).all()


@pytest.mark.parametrize(
    "changes",
    [{"channels": 0}, {"mean": (0.0,)}, {"std": (1.0, 0.0)}, {"pixel_max": 0.0}, {"classes": ()}],
)
def test_an_input_that_cannot_be_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        replace(SPEC, **changes)


def test_what_is_written_as_json_is_read_back() -> None:
    assert InputSpec.from_json(json.loads(json.dumps(SPEC.to_json()))) == SPEC
    for one in (PROFILE, FULL_PROFILE):
        assert Profile.from_json(json.loads(json.dumps(one.to_json()))) == one


@pytest.mark.parametrize("changes", [{"samples": 0}, {"p50_ms": 0.0}, {"p50_ms": 3.0}])
def test_what_is_no_latency_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not a latency"):
        replace(LATENCY, **changes)


def test_a_profile_of_the_first_version_is_read() -> None:
    new = ("alternating_latency", "cores", "all_cores_latency", "layers")
    old = {key: value for key, value in PROFILE.to_json().items() if key not in new}
    for name in ("latency", "batch_latency", "dense_latency"):
        old[name] = {k: v for k, v in old[name].items() if k not in ("p99_low_ms", "p99_high_ms")}
    assert Profile.from_json(old) == PROFILE


def test_a_network_whose_layers_are_not_all_known_has_no_sum_of_macs() -> None:
    assert FULL_PROFILE.macs == 1024
    assert PROFILE.macs is None
    unknown = LayerCost("odd", "MatMul", None, 0, None)
    assert replace(FULL_PROFILE, layers=(*FULL_PROFILE.layers, unknown)).macs is None


@pytest.mark.parametrize("name", ["", "a/b", "..", "-x", "a b"])
def test_a_variant_needs_a_name_that_can_be_a_file(name: str) -> None:
    with pytest.raises(ValueError, match="cannot name a variant"):
        Variant(name, b"", {}, PROFILE)
    assert Variant("64x", b"", {}, PROFILE).name == "64x"
