"""The digits: real images, split without leaks, refused with their index when they are bad."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from shifter.data import check_images, load
from shifter.data.splitting import split_indices
from shifter.data_spec import Digits
from shifter.errors import DataError

SPEC = Digits(name="digits", validation=0.1, test=0.2)
LABELS = load_digits().target.astype(np.int64)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.floats(0.02, 0.45), st.floats(0.02, 0.45))
def test_parts_are_disjoint_complete_and_stratified(seed, validation, test):
    parts = split_indices(LABELS, validation, test, seed)
    assert sorted(np.concatenate(parts)) == list(range(len(LABELS)))
    sizes = [len(part) for part in parts]
    assert sizes[1:] == [round(len(LABELS) * validation), round(len(LABELS) * test)]
    everywhere = np.bincount(LABELS) / len(LABELS)
    for part, size in zip(parts, sizes, strict=True):
        # Each class within two images of its share: stratification rounds twice.
        assert np.all(np.abs(np.bincount(LABELS[part], minlength=10) - everywhere * size) <= 2)


def test_the_split_follows_from_the_seed():
    first, same, other = (split_indices(LABELS, 0.1, 0.2, seed) for seed in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(first, same, strict=True))
    assert not np.array_equal(first[0], other[0])


def test_the_images_are_the_stored_ones():
    dataset = load(SPEC, 0)
    stored = {(image.tobytes(), int(label)) for image, label in zip(*_stored(), strict=True)}
    seen = [
        (image[0].astype(np.float64).tobytes(), int(label))
        for part in (dataset.train, dataset.validation, dataset.test)
        for image, label in zip(part.images, part.labels, strict=True)
    ]
    assert len(seen) == 1797
    assert set(seen) == stored


def _stored():
    digits = load_digits()
    return digits.images, digits.target


def test_what_the_network_reads_is_normalised_by_the_training_part():
    dataset = load(SPEC, 0)
    spec = dataset.input_spec
    assert spec.shape == (1, 8, 8)
    assert spec.classes == tuple("0123456789")
    inputs = spec.normalise(dataset.train.images)
    assert inputs.mean() == pytest.approx(0, abs=1e-4)
    assert inputs.std() == pytest.approx(1, abs=1e-4)
    assert abs(spec.normalise(dataset.test.images).mean()) > 1e-4, "the test part has no say in it"


@pytest.mark.parametrize("size", [4, 16, 20])
def test_resized_images_keep_their_range_and_mean(size):
    dataset = load(SPEC.model_copy(update={"size": size}), 0)
    images = dataset.train.images
    assert images.shape[1:] == (1, size, size)
    assert images.dtype == np.float32
    assert images.min() >= 0
    assert images.max() <= dataset.input_spec.pixel_max
    assert images.mean() == pytest.approx(load(SPEC, 0).train.images.mean(), rel=0.05)


def bad_images():
    return np.full((6, 1, 2, 2), 3.0, np.float32), np.arange(6, dtype=np.int64)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_unreadable_image_is_named(value):
    images, labels = bad_images()
    images[4, 0, 1, 0] = value
    images[5, 0, 0, 0] = value
    with pytest.raises(DataError, match=r"image 4 .* not finite"):
        check_images(images, labels, classes=10, pixel_max=16)


@pytest.mark.parametrize("value", [-0.5, 16.5])
def test_pixels_out_of_range_are_named(value):
    images, labels = bad_images()
    images[2, 0, 1, 1] = value
    with pytest.raises(DataError, match=rf"image 2 has pixels .*{value:g}.* between 0 and 16"):
        check_images(images, labels, classes=10, pixel_max=16)


@pytest.mark.parametrize("label", [-1, 10])
def test_a_label_out_of_range_is_named(label):
    images, labels = bad_images()
    labels[3] = label
    with pytest.raises(DataError, match=rf"image 3 has label {label}: labels go from 0 to 9"):
        check_images(images, labels, classes=10, pixel_max=16)


def test_an_image_without_a_label_is_refused():
    images, labels = bad_images()
    with pytest.raises(DataError, match="6 images have 5 labels"):
        check_images(images, labels[:5], classes=10, pixel_max=16)


def test_images_and_labels_may_reach_their_limits_and_go_no_further():
    images, labels = bad_images()
    images[0], images[1] = 0, 16
    labels[0], labels[1] = 0, 9
    check_images(images, labels, classes=10, pixel_max=16)
    images[1, 0, 0, 0] = np.nextafter(np.float32(16), np.float32(17))
    with pytest.raises(DataError, match="image 1 has pixels"):
        check_images(images, labels, classes=10, pixel_max=16)


def test_a_part_too_small_for_every_class_is_refused():
    with pytest.raises(DataError, match="leave a part of 4: each part needs at least 10"):
        split_indices(LABELS, 0.002, 0.2, 0)
