"""Batches: exact pixels, and chances that depend on seed, round, epoch and image alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shifter.data import Draw, Images, Split
from shifter.data.images import augment
from shifter.data_spec import Augmentation
from shifter.values import InputSpec

SPEC = InputSpec(3, 6, 6, 255.0, (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616), ("a", "b"))
BOTH = Augmentation(crop=2, flip=True)


@pytest.fixture
def split(pixels):
    """Every second image of an array, from the last to the first."""
    where = np.arange(59, 0, -2)
    return Split(pixels(60, 6), where, where % 2)


def test_what_a_network_reads_is_what_the_edge_would_make_of_it(split):
    images = Images.of(split, SPEC)
    chosen = np.array([3, 0, 29, 3])
    batch = images.read(torch.from_numpy(chosen))
    assert batch.dtype == torch.float32
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert np.array_equal(batch.numpy(), SPEC.normalise(split.stored[split.where[chosen]]))
    assert np.array_equal(split.take(chosen), split.images[chosen])
    assert torch.equal(images.labels, torch.from_numpy(split.labels))
    assert split.nbytes == split.images.nbytes


def test_a_batch_is_a_copy(split):
    before = split.stored.copy()
    Images.of(split, SPEC).read(torch.arange(30)).zero_()
    one_channel = Split.of(np.ones((2, 1, 6, 6), np.float32), np.zeros(2, np.int64))
    grey = InputSpec(1, 6, 6, 16.0, (0.5,), (0.5,), ("a",))
    Images.of(one_channel, grey).read(torch.arange(2)).zero_()
    assert np.array_equal(split.stored, before)
    assert (one_channel.stored == 1).all()


def test_an_image_is_varied_alike_in_any_batch(split):
    images = Images.of(split, SPEC)
    draw = Draw(BOTH, seed=3, round=1, epoch=5)
    whole = images.read(torch.arange(30), draw)
    order = torch.randperm(30)
    for parts in (1, 2, 3, 30):
        shared = torch.cat([images.read(part, draw) for part in order.tensor_split(parts)])
        assert torch.equal(shared, whole[order])


def test_images_vary_from_epoch_to_epoch_round_to_round_and_seed_to_seed(split):
    images = Images.of(split, SPEC)
    base = {"seed": 3, "round": 1, "epoch": 5}
    first = images.read(torch.arange(30), Draw(BOTH, **base))
    assert torch.equal(first, images.read(torch.arange(30), Draw(BOTH, **base)))
    for key in base:
        other = images.read(torch.arange(30), Draw(BOTH, **base | {key: base[key] + 1}))
        same = (first == other).all(dim=(1, 2, 3)).float().mean()
        assert same < 0.5, key


def test_without_augmentation_images_are_as_they_are(split):
    images = Images.of(split, SPEC)
    plain = images.read(torch.arange(30))
    assert torch.equal(images.read(torch.arange(30), Draw(Augmentation(), 1, 2, 3)), plain)


@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 9),
    st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    st.integers(0, 5),
    st.booleans(),
)
def test_a_window_is_cut_out_of_the_bordered_image_and_mirrored(seed, epoch, shape, crop, flip):
    """Against the same done image by image with numpy."""
    stored = np.random.default_rng(seed).integers(1, 256, (12, *shape), np.uint8)
    drawn = Draw(Augmentation(crop=crop, flip=flip), seed, 0, epoch).of(np.arange(12))
    cut = augment(torch.from_numpy(stored), torch.from_numpy(drawn), crop).numpy()
    _, height, width = shape
    for image, (down, right, mirrored), found in zip(stored, drawn, cut, strict=True):
        assert 0 <= min(down, right) <= max(down, right) <= 2 * crop
        assert mirrored in ((0, 1) if flip else (0,))
        bordered = np.pad(image, ((0, 0), (crop, crop), (crop, crop)))
        window = bordered[:, down : down + height, right : right + width]
        assert np.array_equal(found, window[:, :, ::-1] if mirrored else window)


def test_every_place_and_both_sides_are_equally_likely():
    """Chi-squared of 10,000 images over 5 x 5 windows, mirrored or not."""
    drawn = Draw(BOTH, seed=0, round=0, epoch=0).of(np.arange(10_000))
    cells = drawn @ (10, 2, 1)
    counts = np.bincount(cells, minlength=50)
    assert ((counts - 200) ** 2 / 200).sum() < 94.6, "0.9999 quantile of 49 degrees of freedom"


def test_neighbouring_images_and_epochs_are_drawn_independently():
    by_epoch = np.stack([Draw(BOTH, 0, 0, e).of(np.arange(2000)).astype(float) for e in range(3)])
    for a, b in ((by_epoch[:, :-1], by_epoch[:, 1:]), (by_epoch[:-1], by_epoch[1:])):
        for column in range(3):
            assert abs(np.corrcoef(a[..., column].ravel(), b[..., column].ravel())[0, 1]) < 0.06
    assert abs(np.corrcoef(by_epoch.reshape(-1, 3).T) - np.eye(3)).max() < 0.06


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator")
@pytest.mark.parametrize("memory_limit", [0, 2**30])
def test_on_an_accelerator_batches_are_the_same_held_or_streamed(split, memory_limit):
    images = Images.of(split, SPEC, device="cuda", memory_limit=memory_limit)
    assert (images.held is None) == (memory_limit == 0)
    draw = Draw(BOTH, 1, 2, 3)
    batch = images.read(torch.arange(30), draw)
    assert batch.device.type == "cuda"
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(batch.cpu(), Images.of(split, SPEC).read(torch.arange(30), draw))
