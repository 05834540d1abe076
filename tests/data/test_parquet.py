"""Parquet: columns, parts, classes, and rows that are no good."""

from __future__ import annotations

import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from shifter.data import load
from shifter.data_spec import Parquet, ParquetFiles
from shifter.errors import DataError
from shifter.store import Store


@pytest.fixture
def write(tmp_path, pixels, encode):
    """Writes a file of ``count`` images of three classes; changes name rows to exchange."""

    def write(name, count, *, seed=0, image="image", label="label", struct=False, metadata=None, changes=()):
        images = pixels(count, 8, seed)
        encoded = [encode(i) for i in images]
        labels = [i % 3 for i in range(count)]
        for row, column, value in changes:
            (encoded if column == "image" else labels)[row] = value
        column = [e if e is None else {"bytes": e, "path": None} for e in encoded] if struct else encoded
        table = pyarrow.table({label: pyarrow.array(labels, pyarrow.int64()), image: column, "more": encoded})
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(
            table.replace_schema_metadata(metadata), path, row_group_size=max(1, count // 3)
        )
        return sorted((i.tobytes(), n) for i, n in zip(images, labels, strict=True))

    return write


@pytest.fixture
def spec(tmp_path):
    return Parquet(name="parquet", folder=str(tmp_path / "set"), size=8, validation=0.2, test=0.2)


def found(*splits):
    return sorted((i.tobytes(), int(n)) for s in splits for i, n in zip(s.images, s.labels, strict=True))


def changed(spec, **changes):
    return Parquet.model_validate(spec.model_dump() | changes)


@pytest.mark.parametrize("struct", [False, True])
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_pixels_and_labels_are_exact(write, spec, struct, scheme):
    train = sorted(write("train-0.parquet", 70, struct=struct) + write("train-1.parquet", 80, seed=1))
    test = write("test.parquet", 12, seed=2, struct=struct)
    dataset = load(changed(spec, folder=scheme + spec.folder), 0)
    assert found(dataset.train, dataset.validation) == train
    assert found(dataset.test) == test
    assert len(dataset.validation) == 30
    assert dataset.input_spec.classes == ("0", "1", "2")


def test_columns_files_and_classes_are_the_recipes(write, spec):
    train = write("a/part.parquet", 60, image="picture", label="kind")
    validation = write("b/part.parquet", 9, image="picture", label="kind")
    given = {
        "image": "picture",
        "label": "kind",
        "classes": ("x", "y", "z"),
        "files": {"train": "a/*", "validation": "b/*", "test": None},
    }
    dataset = load(changed(spec, **given), 0)
    assert found(dataset.train, dataset.test) == train
    assert found(dataset.validation) == validation
    assert dataset.input_spec.classes == ("x", "y", "z")


def test_classes_that_the_files_name_are_taken(write, spec):
    features = {"label": {"names": ["ant", "bee", "cow", "dog"], "_type": "ClassLabel"}}
    write("train.parquet", 60, metadata={"huggingface": json.dumps({"info": {"features": features}})})
    assert load(spec, 0).input_spec.classes == ("ant", "bee", "cow", "dog")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((41, "image", b"no image"), "it cannot be decoded"),
        ((41, "image", None), "it has no image"),
        ((41, "label", None), "it has no label"),
        ((41, "label", 3), "its label is 3: labels go from 0 to 2"),
        ((41, "label", -1), "its label is -1: labels go from 0"),
        ((41, "label", 2**40), "its label is 1099511627776: labels go from 0"),
    ],
)
@pytest.mark.parametrize("struct", [False, True])
def test_a_bad_row_is_refused_with_file_and_index_or_skipped_and_counted(
    write, spec, change, message, struct
):
    write("train-0.parquet", 60)
    write("train-1.parquet", 60, seed=1, struct=struct, changes=[change])
    spec = changed(spec, classes=("x", "y", "z"))
    with pytest.raises(DataError, match=rf"train-1\.parquet, image 41: {message}"):
        load(spec, 0)
    dataset = load(changed(spec, bad_rows="skip"), 0)
    assert dataset.skipped.count == 1
    assert len(dataset.train) + len(dataset.validation) + len(dataset.test) == 119


def test_without_a_list_the_training_labels_are_the_classes(write, spec):
    write("train.parquet", 60)
    write("test.parquet", 9, changes=[(4, "label", 3)])
    with pytest.raises(DataError, match=r"test\.parquet, image 4: its label is 3: labels go from 0 to 2"):
        load(spec, 0)
    write("train.parquet", 60, changes=[(4, "label", 2**40)])
    with pytest.raises(DataError, match=r"train\.parquet, image 4: its label is 1099511627776"):
        load(spec, 0)


def test_a_set_of_only_bad_rows_is_refused(write, spec):
    write("train.parquet", 6, changes=[(i, "image", b"") for i in range(6)])
    with pytest.raises(DataError, match="the train part holds no image that can be used"):
        load(changed(spec, bad_rows="skip"), 0)


def test_a_file_in_two_parts_is_refused(write, spec):
    write("train.parquet", 60)
    write("val.parquet", 9)
    with pytest.raises(DataError, match=r"val\.parquet would be in both the validation and the test part"):
        load(changed(spec, files=ParquetFiles(test="val.parquet").model_dump()), 0)


def test_what_cannot_be_used_is_named_with_what_would_be_right(write, spec, tmp_path):
    with pytest.raises(DataError, match="there is no folder"):
        load(spec, 0)
    write("data.parquet", 60)
    with pytest.raises(DataError, match=r"no file in .* matches 'train\*\.parquet'; there are data\.parquet"):
        load(spec, 0)
    write("train.parquet", 60)
    with pytest.raises(DataError, match=r"data\.image: train\.parquet has no column 'img'; it has label, im"):
        load(changed(spec, image="img"), 0)
    with pytest.raises(DataError, match=r"data\.label: 'more' of train\.parquet holds binary"):
        load(changed(spec, label="more"), 0)
    with pytest.raises(DataError, match=r"data\.image: 'label' of train\.parquet holds int64"):
        load(changed(spec, image="label"), 0)
    (tmp_path / "set/train.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match=r"train\.parquet in .* is no Parquet file"):
        load(spec, 0)
    with pytest.raises(DataError, match="'nfs://somewhere' cannot be used"):
        load(changed(spec, folder="nfs://somewhere"), 0)


def test_a_damaged_file_is_refused(write, spec, tmp_path):
    write("train.parquet", 60)
    path = tmp_path / "set/train.parquet"
    data = bytearray(path.read_bytes())
    data[100:2000] = bytes(1900)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"train\.parquet"):
        load(spec, 0)


def test_pixels_are_bytes(write, spec):
    write("train.parquet", 60)
    dataset = load(spec, 0)
    assert dataset.train.images.dtype == np.uint8
    assert dataset.input_spec.pixel_max == 255


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"])
def test_a_bucket_is_found_by_the_settings_that_a_store_uses(
    write, spec, tmp_path, bucket, variable, monkeypatch
):
    expected = write("train.parquet", 60)
    store = Store.open(f"s3://{bucket.bucket()}")
    store.write("images/train.parquet", (tmp_path / "set/train.parquet").read_bytes())
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    monkeypatch.setenv(variable, bucket.url)
    dataset = load(changed(spec, folder=f"{store.uri}/images"), 0)
    assert found(dataset.train, dataset.validation, dataset.test) == sorted(expected)
