"""CIFAR's published folders: read to the last pixel, and never by running what a pickle asks for."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from shifter.data import load
from shifter.data.unpickling import read_pickle
from shifter.data_spec import Cifar10, Cifar100
from shifter.errors import DataError

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
PER_FILE = 100


def python_2(value: object) -> bytes:
    """``value`` as cPickle of Python 2 writes it (protocol 2), which is what is published."""
    match value:
        case bool():
            raise TypeError(value)
        case int():
            return b"J" + struct.pack("<i", value)
        case str():
            data = value.encode()
            return b"U" + bytes([len(data)]) + data
        case list():
            return b"](" + b"".join(map(python_2, value)) + b"e"
        case dict():
            return b"}(" + b"".join(python_2(k) + python_2(v) for k, v in value.items()) + b"u"
        case np.ndarray():
            rows, columns = value.shape
            return (
                b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
                + b"(K\x01"
                + python_2(rows)
                + python_2(columns)
                + b"\x86"
                + b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
                + b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
                + b"\x89T"
                + struct.pack("<i", value.size)
                + value.tobytes()
                + b"tb"
            )
    raise TypeError(value)


def pickled_by_2(value: object) -> bytes:
    return b"\x80\x02" + python_2(value) + b"."


def pickled_by_3(value: object) -> bytes:
    return pickle.dumps(value, protocol=2)


def pickled_now(value: object) -> bytes:
    return pickle.dumps(value, protocol=4)


def batches(pixels, files):
    """Per file (images, labels), every class alike often."""
    return {
        name: (pixels(PER_FILE, seed=seed), [(seed + i) % 10 for i in range(PER_FILE)])
        for seed, name in enumerate(files)
    }


TEN = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


def write_python(root: Path, held, dump, key="labels", meta="batches.meta", names="label_names"):
    root.mkdir()
    for name, (images, labels) in held.items():
        batch = {
            "batch_label": name,
            key: labels,
            "data": images.reshape(len(images), -1),
            "filenames": ["a"],
        }
        (root / name).write_bytes(dump(batch))
    (root / meta).write_bytes(dump({"num_vis": 3072, names: NAMES}))


def write_binary(root: Path, held, before=b"", names="batches.meta.txt"):
    root.mkdir()
    for name, (images, labels) in held.items():
        records = [
            before + bytes([label]) + image.tobytes() for image, label in zip(images, labels, strict=True)
        ]
        (root / f"{name}.bin").write_bytes(b"".join(records))
    (root / names).write_text("\n".join([*NAMES, ""]))


def found(*splits):
    return sorted((i.tobytes(), int(n)) for s in splits for i, n in zip(s.images, s.labels, strict=True))


def given(held, names):
    return sorted((i.tobytes(), n) for name in names for i, n in zip(*held[name], strict=True))


def check(dataset, held, train, test):
    assert found(dataset.train, dataset.validation) == given(held, train)
    assert found(dataset.test) == given(held, [test])
    assert dataset.test.images.dtype == np.uint8
    assert np.array_equal(dataset.test.images, held[test][0]), "the test part keeps its order"
    assert dataset.input_spec.classes == tuple(NAMES)
    assert dataset.input_spec.pixel_max == 255
    assert len(dataset.validation) == round(0.1 * PER_FILE * len(train))


@pytest.mark.parametrize("dump", [pickled_by_2, pickled_by_3, pickled_now])
@pytest.mark.parametrize("parent", [False, True])
def test_cifar_10_for_python(tmp_path, pixels, dump, parent):
    held = batches(pixels, TEN)
    root = tmp_path / "cifar-10-batches-py"
    write_python(root, held, dump)
    check(load(Cifar10(name="cifar10", folder=str(tmp_path if parent else root)), 1), held, TEN[:5], TEN[5])


def test_cifar_10_binary(tmp_path, pixels):
    held = batches(pixels, TEN)
    write_binary(tmp_path / "cifar-10-batches-bin", held)
    check(load(Cifar10(name="cifar10", folder=str(tmp_path)), 1), held, TEN[:5], TEN[5])


def test_cifar_100_in_both_forms_by_its_fine_labels(tmp_path, pixels):
    held = batches(pixels, ["train", "test"])
    write_python(tmp_path / "cifar-100-python", held, pickled_by_2, "fine_labels", "meta", "fine_label_names")
    write_binary(tmp_path / "cifar-100-binary", held, b"\x13", "fine_label_names.txt")
    for form in ("cifar-100-python", "cifar-100-binary"):
        check(load(Cifar100(name="cifar100", folder=str(tmp_path / form)), 1), held, ["train"], "test")


def test_images_of_another_size_are_resized(tmp_path, pixels):
    held = {name: (images // 4 * 0 + 200, labels) for name, (images, labels) in batches(pixels, TEN).items()}
    held["data_batch_1"][0][:, :, :16] = 100
    write_binary(tmp_path / "cifar-10-batches-bin", held)
    dataset = load(Cifar10(name="cifar10", folder=str(tmp_path), size=8), 0)
    assert dataset.train.images.shape[1:] == (3, 8, 8)
    assert np.all(dataset.test.images == 200), "the test images are all of one colour"
    assert {100, 200} <= set(np.unique(dataset.train.images))


class Hostile:
    """What unpickling blindly would run."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("place", ["whole", "value", "key"])
def test_a_hostile_pickle_is_refused_and_not_run(tmp_path, protocol, place):
    mark = tmp_path / "was here"
    attack = Hostile(Path.touch, mark) if place != "key" else Hostile(exec, f"open({str(mark)!r}, 'w')")
    whole = {"whole": attack, "value": {"data": [attack]}, "key": {attack: 1}}[place]
    path = tmp_path / "data_batch_1"
    path.write_bytes(pickle.dumps(whole, protocol))
    with pytest.raises(DataError, match=r"data_batch_1 is refused: it asks for \w+"):
        read_pickle(path)
    assert not mark.exists()
    pickle.loads(path.read_bytes()) if place != "key" else None
    assert mark.exists() or place == "key", "the attack is a real one"


@pytest.mark.parametrize(
    "name",
    ["os\nsystem", "builtins\neval", "numpy\nload", "numpy.core.multiarray\nscalar", "_codecs\ndecode",
     "numpy\nndarray.tofile", "numpy.core.multiarray\n_reconstruct.__globals__"],
)  # fmt: skip
def test_no_other_name_is_looked_up(tmp_path, name):
    path = tmp_path / "batch"
    path.write_bytes(b"\x80\x02c" + name.encode() + b"\n(tR.")
    with pytest.raises(DataError, match="is refused: it asks for"):
        read_pickle(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is refused: "),
        (b"not a pickle", "is refused: "),
        (pickle.dumps([1, 2]), "holds a list, not a dictionary"),
        (pickle.dumps({"data": np.zeros(3, np.float32)}), "an array of 'f4', not of bytes"),
        (pickle.dumps({"data": np.array([print])}, 2), "an array of 'O8', not of bytes"),
        (pickled_by_2({"data": np.zeros((2, 3072), np.uint8)})[:-900], "is refused: "),
        (pickled_by_2({"data": np.zeros((2, 4), np.uint8)}).replace(b"T\x08", b"T\x07"), "is refused: "),
        (b"\x80\x02cnumpy\nndarray\nq\x00(K\x01tb.", "is refused: "),
    ],
)
def test_what_is_no_plain_data_is_refused(tmp_path, data, message):
    path = tmp_path / "batch"
    path.write_bytes(data)
    with pytest.raises(DataError, match=message):
        read_pickle(path)


def test_a_folder_that_is_not_cifar_is_named_with_what_would_be_right(tmp_path, pixels):
    with pytest.raises(DataError, match="holds no cifar10; it should be cifar-10-batches-py or cifar-10-b"):
        load(Cifar10(name="cifar10", folder=str(tmp_path)), 0)
    with pytest.raises(DataError, match=r"data\.folder: there is no folder .*nowhere"):
        load(Cifar10(name="cifar10", folder=str(tmp_path / "nowhere")), 0)
    write_binary(tmp_path / "c", batches(pixels, TEN))
    (tmp_path / "c" / "data_batch_3.bin").unlink()
    with pytest.raises(DataError, match=r"is incomplete: it lacks data_batch_3\.bin"):
        load(Cifar10(name="cifar10", folder=str(tmp_path / "c")), 0)


def test_a_relative_folder_is_below_the_environments(tmp_path, pixels, monkeypatch):
    held = batches(pixels, TEN)
    write_binary(tmp_path / "cifar-10-batches-bin", held)
    monkeypatch.setenv("SHIFTER_DATA", str(tmp_path))
    check(load(Cifar10(name="cifar10", folder="cifar-10-batches-bin"), 1), held, TEN[:5], TEN[5])


@pytest.mark.parametrize("form", ["python", "binary"])
def test_a_bad_label_is_refused_with_file_and_index_or_skipped_and_counted(tmp_path, pixels, form):
    held = batches(pixels, TEN)
    held["data_batch_2"][1][17] = 10
    held["test_batch"][1][3] = 99
    write = write_binary if form == "binary" else lambda root, held: write_python(root, held, pickled_by_2)
    write(tmp_path / "c", held)
    spec = Cifar10(name="cifar10", folder=str(tmp_path / "c"))
    with pytest.raises(DataError, match=r"data_batch_2\S*, image 17: its label is 10: labels go from 0 to 9"):
        load(spec, 0)
    dataset = load(spec.model_copy(update={"bad_rows": "skip"}), 0)
    assert dataset.skipped.count == 2
    assert "image 17" in dataset.skipped.first[0]
    assert "test_batch" in dataset.skipped.first[1]
    assert len(dataset.train) + len(dataset.validation) == 5 * PER_FILE - 1
    assert len(dataset.test) == PER_FILE - 1


def test_a_binary_file_that_is_cut_off_is_refused(tmp_path, pixels):
    write_binary(tmp_path / "c", batches(pixels, TEN))
    path = tmp_path / "c" / "data_batch_1.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        DataError, match=r"data_batch_1\.bin has 307,299 bytes, which is no multiple of 3,073"
    ):
        load(Cifar10(name="cifar10", folder=str(tmp_path / "c")), 0)


def test_pickles_without_images_or_labels_are_refused(tmp_path, pixels):
    held = batches(pixels, TEN)
    write_python(tmp_path / "c", held, pickled_by_3)
    path = tmp_path / "c" / "data_batch_4"
    spec = Cifar10(name="cifar10", folder=str(tmp_path / "c"))
    path.write_bytes(pickle.dumps({"labels": [1], "data": np.zeros((1, 7), np.uint8)}))
    with pytest.raises(DataError, match="data_batch_4 is no batch of CIFAR: its data are not rows of 3072"):
        load(spec, 0)
    path.write_bytes(pickle.dumps({"labels": [1], "data": np.zeros((2, 3072), np.uint8)}))
    with pytest.raises(DataError, match="has no labels, one for each image"):
        load(spec, 0)
