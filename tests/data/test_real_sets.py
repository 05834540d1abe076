"""The whole way with real sets, where their files are at hand."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from shifter.data import Draw, Images, load
from shifter.recipe import Augmentation, Parquet

SHARED = Path(os.environ.get("SHIFTER_SHARED_DATA", Path(__file__).parents[3] / "shared/data"))


def folder(name: str) -> str:
    path = SHARED / name
    if not path.is_dir():
        pytest.skip(f"{path} is not there; SHIFTER_SHARED_DATA names the folder that has {name}")
    return str(path)


def test_cifar_10():
    spec = Parquet(
        name="parquet", folder=folder("cifar10"), size=32, augmentation=Augmentation(crop=4, flip=True)
    )
    dataset = load(spec, 0)
    assert [len(s) for s in (dataset.train, dataset.validation, dataset.test)] == [45_000, 5_000, 10_000]
    for split, each in ((dataset.train, 4500), (dataset.validation, 500), (dataset.test, 1000)):
        assert np.bincount(split.labels).tolist() == [each] * 10
    # As published by everyone who computed them, of all 50,000.
    assert dataset.input_spec.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=1e-3)
    assert dataset.input_spec.std == pytest.approx((0.2470, 0.2435, 0.2616), abs=1e-3)
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
