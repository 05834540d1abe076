"""The cache: built once, whole or not at all, found again by content, in bounded memory."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from shifter.data import cache as caching
from shifter.data.cache import decoded
from shifter.data.source import Row, Source, local_file
from shifter.errors import DataError


@pytest.fixture
def source(tmp_path, pixels):
    """Of one file; counts how often its rows are read."""
    path = tmp_path / "images.bin"
    path.write_bytes(b"1")
    images = pixels(150, 4)
    read = []

    def rows(bad=()):
        read.append(1)
        for index, image in enumerate(images):
            yield Row("images.bin", index, b"" if index in bad else image, index % 2)

    def make(bad=(), classes=("a", "b"), **settings):
        return Source(settings, classes, [local_file(path, tmp_path)], {"train": lambda: rows(bad)})

    make.images, make.read, make.path = images, read, path
    return make


def build(source, folder, size=4, bad_rows="refuse", memory_limit=2**30):
    return decoded(source, size=size, bad_rows=bad_rows, folder=folder, memory_limit=memory_limit)


def sets(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir() and path.name != "contents"]


@pytest.mark.parametrize("memory_limit", [0, 2**30])
def test_pixels_are_exact_and_decoded_once(source, cache, memory_limit):
    for _ in range(2):
        part = build(source(), cache, memory_limit=memory_limit).parts["train"]
        assert np.array_equal(part.images, source.images)
        assert part.labels.tolist() == [0, 1] * 75
        assert not part.images.flags.writeable
        assert np.array_equal(part.sums[:, 0], source.images.sum(axis=(2, 3)))
    assert len(source.read) == 1


def test_the_files_are_ordinary_arrays(source, cache):
    build(source(), cache)
    (folder,) = sets(cache)
    assert np.array_equal(np.load(folder / "train.npy", mmap_mode="r"), source.images)
    assert np.load(folder / "train-labels.npy").dtype == np.int64


@pytest.mark.parametrize("count", [1, 99, 10**9, 2**62])
def test_the_header_has_one_length_whatever_it_says(count):
    header = caching._header(count, 1024)
    assert len(header) == caching._HEADER_BYTES
    assert header.endswith(b"\n")


def test_what_changes_the_pixels_changes_the_key(source, cache, tmp_path):
    build(source(), cache)
    build(source(), cache, size=8)
    build(source(other=1), cache)
    build(source(classes=("a", "b", "c")), cache)
    assert len(sets(cache)) == 4
    build(source(classes=("x", "y")), cache)
    assert len(sets(cache)) == 4, "names are not pixels"
    before = source.path.stat()
    source.path.write_bytes(b"2")
    os.utime(source.path, ns=(before.st_atime_ns, before.st_mtime_ns))
    build(source(), cache)
    assert len(sets(cache)) == 5, "content, not its time stamp"
    source.path.rename(tmp_path / "moved")
    (tmp_path / "moved").rename(source.path)
    build(source(), cache)
    assert len(sets(cache)) == 5, "the same content in another place"


def test_files_are_read_again_only_if_they_changed(source, cache, monkeypatch):
    build(source(), cache)
    assert not (cache / "contents").exists(), "a file as young as this may change unseen"
    monkeypatch.setattr(caching, "_SETTLED_SECONDS", -3600)
    build(source(), cache)
    assert len(list((cache / "contents").iterdir())) == 1
    monkeypatch.setattr(caching, "_file_digest", lambda file: pytest.fail("it was read again"))
    build(source(), cache)
    monkeypatch.undo()
    time.sleep(0.02)  # longer than the clock of the file system ticks
    source.path.write_bytes(b"3")
    build(source(), cache)
    assert len(sets(cache)) == 2


def test_bad_rows_that_were_skipped_are_refused_later(source, cache):
    found = build(source(bad=(3, 70, 149)), cache, bad_rows="skip")
    assert found.skipped.count == 3
    assert np.array_equal(found.parts["train"].images, np.delete(source.images, [3, 70, 149], axis=0))
    with pytest.raises(DataError, match=r"images\.bin, image 3: it cannot be decoded"):
        build(source(bad=(3, 70, 149)), cache)


def test_a_refused_set_leaves_nothing(source, cache):
    with pytest.raises(DataError, match="image 70"):
        build(source(bad=(70, 149)), cache)
    assert sets(cache) == []


def test_the_number_of_complaints_is_bounded(source, cache):
    found = build(source(bad=range(100)), cache, bad_rows="skip")
    assert (found.skipped.count, len(found.skipped.first)) == (100, 20)


def test_a_damaged_set_is_decoded_again(source, cache):
    build(source(), cache)
    (folder,) = sets(cache)
    for damage in (
        lambda: os.truncate(folder / "train.npy", 500),
        lambda: (folder / "train-labels.npy").unlink(),
        lambda: (folder / "manifest.json").write_text("{"),
    ):
        damage()
        assert np.array_equal(build(source(), cache).parts["train"].images, source.images)
    assert len(source.read) == 4


def test_a_map_outlives_its_files(source, cache):
    first = build(source(), cache).parts["train"].images
    (folder,) = sets(cache)
    (folder / "manifest.json").unlink()
    build(source(), cache)
    assert np.array_equal(first, source.images)


def test_decoding_takes_memory_for_a_window_not_for_the_set(cache, tmp_path):
    count, size = 2000, 32
    image = np.zeros((3, size, size), np.uint8)

    def rows():
        for index in range(count):
            yield Row("", index, image + np.uint8(index % 256), 0)

    everything = Source({}, ("a",), [], {"train": rows})
    tracemalloc.start()
    try:
        build(everything, cache, size=size)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < count * image.nbytes / 4


def test_of_builders_at_the_same_time_one_builds_and_the_others_wait(source, cache):
    """The lock belongs to an open file: threads keep each other out just as processes do."""
    everything = source()
    begun = threading.Barrier(4)

    def one(_):
        begun.wait(60)
        return build(everything, cache).parts["train"].images

    with ThreadPoolExecutor(4) as pool:
        for images in pool.map(one, range(4)):
            assert np.array_equal(images, source.images)
    assert len(source.read) == 1
    assert len(sets(cache)) == 1


BUILDER = """
import sys, time
from pathlib import Path
import numpy as np
from shifter.data.cache import decoded
from shifter.data.source import Row, Source

def rows():
    for index in range(200):
        if index == 100:
            print("half", flush=True)
            time.sleep(600)
        yield Row("", index, np.full((3, 4, 4), index, np.uint8), 0)

source = Source({}, ("a",), [], {"train": rows})
decoded(source, size=4, bad_rows="refuse", folder=Path(sys.argv[1]), memory_limit=0)
"""


def test_what_a_killed_builder_left_is_swept_and_built_again(cache):
    root = Path(__file__).parents[2]
    builder = subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(cache)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    assert builder.stdout.readline() == "half\n"
    builder.kill()
    builder.communicate(timeout=60)
    assert [path.name.endswith(".part") for path in sets(cache)] == [True]

    images = np.random.default_rng(0).integers(0, 256, (200, 3, 4, 4), np.uint8)
    rows = [Row("", index, image, 0) for index, image in enumerate(images)]
    found = build(Source({}, ("a",), [], {"train": lambda: iter(rows)}), cache)
    assert np.array_equal(found.parts["train"].images, images)
    (left,) = sets(cache)
    assert not left.name.endswith(".part"), "it has the killed one's key"


def test_a_cache_that_cannot_be_written_is_named(source, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"/file cannot be used: .*data\.cache or \$SHIFTER_CACHE"):
        build(source(), tmp_path / "file")
