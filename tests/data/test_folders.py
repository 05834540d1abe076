"""Image files in folders: which is an image, which class it is of, which part it belongs to."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from shifter.data import load
from shifter.data_spec import ImageFolder, TinyImageNet
from shifter.errors import DataError


@pytest.fixture
def tree(tmp_path, pixels, encode):
    """Writes images of two classes into the given parts; returns what was written."""

    def write(**parts):
        held = {}
        for seed, (part, count) in enumerate(parts.items()):
            images = pixels(2 * count, 8, seed)
            held[part] = [(image, index % 2) for index, image in enumerate(images)]
            for index, (image, label) in enumerate(held[part]):
                path = tmp_path / "set" / part / ("cat", "dog")[label] / f"{index:03}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encode(image))
        return held

    return write


@pytest.fixture
def spec(tmp_path):
    return ImageFolder(name="image_folder", folder=str(tmp_path / "set"), size=8, validation=0.2, test=0.3)


def found(*splits):
    return sorted((i.tobytes(), int(n)) for s in splits for i, n in zip(s.images, s.labels, strict=True))


def given(held):
    return sorted((image.tobytes(), label) for image, label in held)


def test_parts_of_its_own_are_used_and_the_others_held_out(tree, spec):
    held = tree(train=20)
    dataset = load(spec, 0)
    assert found(dataset.train, dataset.validation, dataset.test) == given(held["train"])
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (20, 8, 12)
    held |= tree(train=20, test=5)
    dataset = load(spec, 0)
    assert found(dataset.test) == given(held["test"])
    assert found(dataset.train, dataset.validation) == given(held["train"])
    held |= tree(train=20, test=5, val=3)
    dataset = load(spec, 0)
    assert found(dataset.train) == given(held["train"])
    assert found(dataset.validation) == given(held["val"])
    assert dataset.input_spec.classes == ("cat", "dog")


def test_what_is_no_image_is_passed_over(tree, spec, tmp_path):
    held = tree(train=20)
    (tmp_path / "set/train/cat/Thumbs.db").write_bytes(b"x")
    (tmp_path / "set/train/cat/.hidden.png").write_bytes(b"x")
    (tmp_path / "set/train/.cache").mkdir()
    dataset = load(spec, 0)
    assert found(dataset.train, dataset.validation, dataset.test) == given(held["train"])


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_every_kind_of_colour_becomes_three_channels(tree, spec, tmp_path, mode):
    tree(train=20)
    image = Image.new("RGB", (8, 8), (255, 255, 255)).convert(mode)
    image.save(tmp_path / "set/train/cat/white.tiff")
    dataset = load(spec, 0)
    images = np.concatenate([s.images for s in (dataset.train, dataset.validation, dataset.test)])
    assert len(images) == 41
    assert (images == 255).all(axis=(1, 2, 3)).sum() == 1


def test_images_are_resized_to_the_recipes_size(tree, spec, tmp_path):
    tree(train=20)
    Image.new("RGB", (50, 20), (10, 20, 30)).save(tmp_path / "set/train/dog/wide.jpg", quality=95)
    dataset = load(spec.model_copy(update={"size": 16}), 0)
    assert dataset.input_spec.shape == (3, 16, 16)
    whole = np.concatenate([s.images for s in (dataset.train, dataset.validation, dataset.test)])
    plain = np.ptp(whole.reshape(len(whole), 3, -1), axis=2).max(axis=1) == 0
    assert plain.sum() == 1
    assert np.abs(whole[plain][0, :, 0, 0].astype(int) - (10, 20, 30)).max() <= 3


BAD = {
    "empty.png": b"",
    "text.jpg": b"this is no image",
    "cut.png": None,  # the first half of an image
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_image_is_refused_by_name_or_skipped_and_counted(tree, spec, tmp_path, encode, pixels, name):
    held = tree(train=20)
    whole = encode(pixels(1, 8)[0])
    data = BAD[name]
    (tmp_path / "set/train/dog" / name).write_bytes(whole[: len(whole) // 2] if data is None else data)
    with pytest.raises(DataError, match=rf"dog/{name}, image \d+: it cannot be decoded .*data\.bad_rows"):
        load(spec, 0)
    dataset = load(spec.model_copy(update={"bad_rows": "skip"}), 0)
    assert dataset.skipped.count == 1
    assert name in dataset.skipped.first[0]
    assert found(dataset.train, dataset.validation, dataset.test) == given(held["train"])


def test_sixteen_bits_per_colour_are_refused_rather_than_clipped(tree, spec, tmp_path):
    tree(train=20)
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(tmp_path / "set/train/cat/deep.png")
    with pytest.raises(DataError, match=r"deep\.png.*of the kind I;16: 8 bits per colour are needed"):
        load(spec, 0)


def test_a_class_that_does_not_train_is_a_bad_label(tree, spec, tmp_path, encode, pixels):
    tree(train=20, val=2)
    (tmp_path / "set/val/bird").mkdir()
    (tmp_path / "set/val/bird/a.png").write_bytes(encode(pixels(1, 8)[0]))
    with pytest.raises(DataError, match=r"bird/a\.png, image 0: its label 'bird' is none of the classes"):
        load(spec, 0)
    assert len(load(spec.model_copy(update={"bad_rows": "skip"}), 0).validation) == 4


def test_folders_without_images_are_refused(tree, spec, tmp_path):
    (tmp_path / "set").mkdir()
    with pytest.raises(DataError, match="has no folder train"):
        load(spec, 0)
    (tmp_path / "set/train").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        load(spec, 0)
    tree(train=20)
    (tmp_path / "set/train/ant").mkdir()
    with pytest.raises(DataError, match="train/ant holds no images"):
        load(spec, 0)


def test_too_few_images_of_a_class_to_hold_out_are_refused(tree, spec, tmp_path, encode, pixels):
    tree(train=20)
    (tmp_path / "set/train/ant").mkdir()
    (tmp_path / "set/train/ant/only.png").write_bytes(encode(pixels(1, 8)[0]))
    with pytest.raises(DataError, match="class 0 has only 1 image to hold out for the test part"):
        load(spec, 0)


WNIDS = ["n02", "n01", "n03"]


@pytest.fixture
def tiny(tmp_path, pixels, encode):
    """Tiny ImageNet, very tiny: the files as published, classes not in alphabetical order."""
    root = tmp_path / "tiny-imagenet-200"
    held = {"train": [], "val": []}
    (root / "val/images").mkdir(parents=True)
    (root / "wnids.txt").write_text("\n".join(WNIDS))
    lines = []
    for label, wnid in enumerate(sorted(WNIDS)):
        (root / "train" / wnid / "images").mkdir(parents=True)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("x\t0\t0\t62\t62\n")
        for index, image in enumerate(pixels(10, 64, label)):
            (root / "train" / wnid / "images" / f"{wnid}_{index}.JPEG").write_bytes(encode(image))
            held["train"].append((image, label))
        for index, image in enumerate(pixels(2, 64, 10 + label)):
            (root / "val/images" / f"val_{label}{index}.JPEG").write_bytes(encode(image))
            lines.append(f"val_{label}{index}.JPEG\t{wnid}\t0\t32\t44\t62")
            held["val"].append((image, label))
    (root / "val/val_annotations.txt").write_text("\n".join(reversed(lines)) + "\n")
    (root / "test/images").mkdir(parents=True)
    (root / "test/images/test_0.JPEG").write_bytes(encode(pixels(1, 64)[0]))
    return root, held


@pytest.mark.parametrize("parent", [False, True])
def test_tiny_imagenet(tiny, parent):
    root, held = tiny
    folder = str(root.parent if parent else root)
    dataset = load(TinyImageNet(name="tiny_imagenet", folder=folder, validation=0.2), 0)
    assert found(dataset.train, dataset.validation) == given(held["train"])
    assert found(dataset.test) == given(held["val"])
    assert np.bincount(dataset.validation.labels).tolist() == [2, 2, 2]
    assert dataset.input_spec.classes == ("n01", "n02", "n03")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("val_00.JPEG\tn99\t0", r"val_00\.JPEG, image 0: its label 'n99' is none of the classes"),
        ("", r"val_00\.JPEG, image 0: it has no label"),
        ("val_00.JPEG\tn01\nval_90.JPEG\tn01", r"val_90\.JPEG, image 6: it cannot be decoded .*No such file"),
    ],
)
def test_an_image_without_a_class_and_a_class_without_an_image_are_bad(tiny, line, message):
    root, _ = tiny
    path = root / "val/val_annotations.txt"
    path.write_text(path.read_text().replace("val_00.JPEG\tn01\t0\t32\t44\t62", line))
    spec = TinyImageNet(name="tiny_imagenet", folder=str(root))
    with pytest.raises(DataError, match=message):
        load(spec, 0)
    skipped = load(spec.model_copy(update={"bad_rows": "skip"}), 0)
    assert (skipped.skipped.count, len(skipped.test)) == (1, 6 if "val_90" in line else 5)


def test_what_is_not_tiny_imagenet_is_refused(tiny):
    root, _ = tiny
    (root / "val/val_annotations.txt").write_text("val_0.JPEG n01\n")
    with pytest.raises(DataError, match=r"val_annotations\.txt, line 1: 'val_0\.JPEG n01' should begin with"):
        load(TinyImageNet(name="tiny_imagenet", folder=str(root)), 0)
    (root / "val/val_annotations.txt").unlink()
    with pytest.raises(DataError, match=r"is not Tiny ImageNet: there is no val/val_annotations\.txt"):
        load(TinyImageNet(name="tiny_imagenet", folder=str(root)), 0)
