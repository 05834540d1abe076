"""The whole way with real sets, where their files are at hand."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from shifter.data import Draw, Images, load
from shifter.data_spec import Augmentation, Parquet

SHARED = Path(os.environ.get("SHIFTER_SHARED_DATA", Path(__file__).parents[3] / "shared/data"))


def folder(name: str) -> str:
    path = SHARED / name
    if not path.is_dir():
        pytest.skip(f"{path} is not there; SHIFTER_SHARED_DATA names the folder that has {name}")
    return str(path)


@pytest.mark.parametrize(
    ("pattern", "images"),
    [("train-0.parquet", 10_000), pytest.param("train-*.parquet", 50_000, marks=pytest.mark.long)],
)
def test_cifar_10(pattern, images):
    spec = Parquet(
        name="parquet",
        folder=folder("cifar10"),
        size=32,
        files={"train": pattern, "validation": None, "test": "test.parquet"},
        augmentation=Augmentation(crop=4, flip=True),
    )
    dataset = load(spec, 0)
    sizes = [9 * images // 10, images // 10, 10_000]
    assert [len(s) for s in (dataset.train, dataset.validation, dataset.test)] == sizes
    for split, each in zip((dataset.train, dataset.validation, dataset.test), sizes, strict=True):
        assert np.bincount(split.labels).tolist() == [each // 10] * 10
    # As published by everyone who computed them, of all 50,000.
    assert dataset.input_spec.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=3e-3)
    assert dataset.input_spec.std == pytest.approx((0.2470, 0.2435, 0.2616), abs=3e-3)
    batch = Images.of(dataset.train, dataset.input_spec).read(
        torch.arange(256), Draw(spec.augmentation, 0, 0, 0)
    )
    assert batch.shape == (256, 3, 32, 32)
    assert batch.isfinite().all()


def test_tiny_imagenet():
    spec = Parquet(
        name="parquet",
        folder=folder("tiny_imagenet_reduced"),
        size=64,
        files={"validation": None, "test": "val.parquet"},
    )
    dataset = load(spec, 0)
    assert [len(s) for s in (dataset.train, dataset.validation, dataset.test)] == [13_500, 1_500, 3_000]
    assert dataset.input_spec.shape == (3, 64, 64)
    assert len(dataset.input_spec.classes) == 200
    assert set(np.bincount(dataset.test.labels)) == {15}
