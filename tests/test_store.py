"""The store: keys appear whole or not at all, and are not overwritten."""

from __future__ import annotations

import os
import pickle
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from shifter.disk import Disk
from shifter.errors import StoreError
from shifter.store import Store

from .s3 import everything


@pytest.fixture
def store(store_uri: str) -> Store:
    return Store.open(store_uri)


@pytest.fixture
def folder(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "artifacts"))


def test_opening_creates_the_folder(folder: Store) -> None:
    assert Path(folder.uri).is_dir()


def test_opening_leaves_nothing_behind(store: Store) -> None:
    assert everything(store) == []
    assert Store.open(store.uri) == store
    assert Store.at(store.uri + "/") == store
    assert pickle.loads(pickle.dumps(store)) == store


def test_a_relative_folder_is_the_same_store_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store.open("here")
    monkeypatch.chdir("/")
    store.write("a", b"1")
    assert (tmp_path / "here/a").read_bytes() == b"1"
    assert pickle.loads(pickle.dumps(store)) == store


def test_what_is_written_is_read(store: Store) -> None:
    store.write("run/rounds/round-00.arrow", b"0123456789")
    assert store.read("run/rounds/round-00.arrow") == b"0123456789"
    with store.open_file("run/rounds/round-00.arrow") as file:
        file.seek(4)
        assert file.read(2) == b"45"


def test_a_key_has_another_version_once_it_holds_other_bytes(store: Store) -> None:
    store.replace("run/portfolio.json", b"first")
    first = store.version("run/portfolio.json")
    assert store.version("run/portfolio.json") == first
    store.replace("run/portfolio.json", b"other")
    assert store.version("run/portfolio.json") != first
    with pytest.raises(StoreError, match="there is no run/none in the store"):
        store.version("run/none")


def test_a_key_is_not_overwritten(store: Store) -> None:
    store.write("run/a", b"first")
    with pytest.raises(StoreError, match="run/a is already in the store"):
        store.write("run/a", b"second")
    assert store.read("run/a") == b"first"
    assert everything(store) == ["run/a"]


def test_of_many_writers_of_one_key_exactly_one_wins(store: Store) -> None:
    def attempt(i: int) -> int | None:
        try:
            store.write("run/a", b"%d" % i * 1000)
        except StoreError:
            return None
        return i

    with ThreadPoolExecutor(8) as threads:
        (winner,) = (i for i in threads.map(attempt, range(32)) if i is not None)
    assert store.read("run/a") == b"%d" % winner * 1000
    assert everything(store) == ["run/a"]


def test_a_rival_s_key_is_told_from_a_failure(store: Store) -> None:
    assert store.create("run/a", b"ours")
    assert store.create("run/a", b"ours")
    assert not store.create("run/a", b"theirs")
    assert everything(store) == ["run/a"]


def test_a_rival_s_key_may_be_gone_again_at_once(folder: Store) -> None:
    class Fleeting(Disk):
        """The rival's key is deleted as soon as it was in the way."""

        def link(self, path: Path, name: Path) -> None:
            raise FileExistsError

    place = replace(folder.place, disk=Fleeting())
    assert not replace(folder, place=place).create("run/b", b"ours")
    assert everything(folder) == []


@pytest.mark.parametrize("key", ["r/run.json", "r/portfolio.json", "r/report.html", "r/resume/x"])
def test_what_names_other_things_can_be_replaced(store: Store, key: str) -> None:
    store.replace(key, b"first")
    store.replace(key, b"second")
    assert store.read(key) == b"second"
    assert everything(store) == [key]


@pytest.mark.parametrize(
    "key",
    [
        *("r/rounds/round-00.arrow", "r/portfolio/abc.zip", "resume"),
        *("resume/rounds/round-00.arrow", "lease/x", "r/rounds/run.json"),
    ],
)
def test_nothing_else_can(store: Store, key: str) -> None:
    with pytest.raises(AssertionError, match="immutable"):
        store.replace(key, b"")


@pytest.mark.parametrize("key", ["", "/etc/x", "a//b", "../x", "a/../b", "a/.hidden", ".x"])
def test_what_leads_elsewhere_is_no_key(store: Store, key: str) -> None:
    with pytest.raises(AssertionError, match="no key"):
        store.write(key, b"")


def test_listing_finds_keys_by_prefix_in_order(store: Store) -> None:
    for key in ("b/2", "b/1", "b/deep/3", "bc/4", "a"):
        store.write(key, b"")
    assert store.list() == ["a", "b/1", "b/2", "b/deep/3", "bc/4"]
    assert store.list("b/") == ["b/1", "b/2", "b/deep/3"]
    assert store.list("b") == ["b/1", "b/2", "b/deep/3", "bc/4"]
    assert store.list("nowhere/") == []


def test_a_key_that_is_not_there(store: Store) -> None:
    assert not store.exists("a")
    with pytest.raises(StoreError, match=f"there is no a in the store {store.uri}"):
        store.read("a")
    store.delete("a")
    store.write("a", b"")
    assert store.exists("a")
    store.delete("a")
    assert not store.exists("a")


def test_a_writer_killed_in_the_middle_leaves_no_key(folder: Store) -> None:
    """Killed after its bytes are on disk, and before they have their name."""
    script = (
        "import os, signal, sys\n"
        "from shifter.store import Store\n"
        "os.link = os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"store = Store.at({folder.uri!r})\n"
        "getattr(store, sys.argv[1])('run/run.json', b'half')\n"
    )
    for verb in ("write", "replace"):
        ended = subprocess.run([sys.executable, "-c", script, verb], check=False)
        assert ended.returncode == -signal.SIGKILL
    assert len(everything(folder)) == 2, "the temporary files are there"
    assert folder.list() == []
    assert not folder.exists("run/run.json")
    folder.sweep("run")
    assert everything(folder) == []


def test_a_disk_that_refuses_leaves_no_key(folder: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"cannot write run/a in the store .*: No space left on device"):
        folder.write("run/a", b"x")
    assert everything(folder) == []


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("gs://bucket/runs", "gs: is not supported, give a folder or s3://bucket/prefix"),
        ("file:///runs", "file: is not supported"),
        ("s3://", "give s3://bucket or s3://bucket/prefix"),
        ("s3:/bucket/runs", "give s3://bucket or s3://bucket/prefix"),
        ("s3:///runs", "give s3://bucket or s3://bucket/prefix"),
        ("s3://bucket//runs", "give s3://bucket or s3://bucket/prefix"),
        ("s3://bucket/../runs", "give s3://bucket or s3://bucket/prefix"),
        ("s3://bucket/.runs", "give s3://bucket or s3://bucket/prefix"),
        ("", "give a folder or s3://bucket/prefix"),
    ],
)
def test_what_names_no_store_is_refused(uri: str, told: str) -> None:
    with pytest.raises(StoreError, match=re.escape(told)):
        Store.at(uri)


def test_a_store_that_cannot_be_written_is_refused_when_it_is_opened(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for place in (file, file / "inside"):
        with pytest.raises(StoreError, match=r"cannot be written to: .*give a folder"):
            Store.open(str(place))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StoreError, match="Permission denied"):
            Store.open(str(tmp_path))
    finally:
        tmp_path.chmod(0o700)
