"""Calibrations as files: a round trip, and everything that is refused or passed over."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shifter.errors import CalibrationError, StoreError
from shifter.node import Node, cpu_model, this_node
from shifter.portfolio import Portfolio
from shifter.switching.calibration import Calibration, calibration_paths, find_calibration, mean_of
from shifter.switching.initialise import initialise
from shifter.switching.policies import Slo
from shifter.values import Profile

from .calibrations import DIGEST, NODE, calibration

POINTS = {"16x": [(1, 0.001), (4, 0.003)], "1x": [(1, 0.004), (4, 0.012)]}


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("SHIFTER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "calibrations"


@given(
    st.dictionaries(
        st.sampled_from(["1x", "2x", "a.b-c_d", "0"]),
        st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=4).map(lambda s: [*enumerate(s, start=1)]),
        min_size=1,
    ),
    st.lists(st.integers(1, 64), min_size=1, max_size=3, unique=True).map(sorted),
)
def test_a_round_trip_is_the_identity(points: dict[str, list[tuple[int, float]]], threads: list[int]) -> None:
    made = calibration(points, threads=threads)
    read = Calibration.from_json(made.to_json())
    assert read == made
    assert read.to_json() == made.to_json()
    assert read.threads == tuple(threads)
    assert read.for_threads(threads[-1]).threads == (threads[-1],)
    for name, some in points.items():
        images, seconds = zip(*read.seconds()[name], strict=True)
        assert images == tuple(images for images, _ in some)
        assert seconds == pytest.approx([seconds for _, seconds in some])


def changed(change: Callable[[dict[str, Any]], None]) -> bytes:
    told = json.loads(calibration(POINTS, threads=(1, 2)).to_json())
    change(told)
    return json.dumps(told).encode()


def put(*path: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    """Sets what lies under the keys of ``path``."""

    def change(told: Any) -> None:
        *first, last = path
        for key in first:
            told = told[key]
        told[last] = value

    return change


HOT = ("variants", 0, "times", 0, "hot")
P50 = (*HOT, 0, "latency", "p50_ms")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "no JSON"),
        (b"\xff\xfe{", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[]", "'format' is not 'shifter-calibration'"),
        (b'{"format": "shifter-portfolio", "version": 1}', "'format' is not 'shifter-calibration'"),
        (changed(put("version", value=2)), "format version 2, this release reads 1: calibrate again"),
        (changed(put("version", value=[1])), r"format version \[1\]"),
        (changed(put("portfolio", value="../../etc/passwd")), "portfolio"),
        (changed(put("node", value="x")), "node"),
        (changed(put("node", "cores", value="4")), "node.cores"),
        (changed(put("measured", value="yesterday")), "measured"),
        (changed(put("measured", value="2024-01-01T00:00:00")), "measured"),
        (changed(put("measured", value="2024-01-01T00:00:00+02:00")), "must be in UTC"),
        (changed(put("variants", value=[])), "variants"),
        (changed(put("variants", 0, "name", value="../x")), "variants.0.name"),
        (changed(put("variants", 1, "name", value="16x")), "different names"),
        (changed(put("variants", 0, "memory_bytes", value=-1)), "memory_bytes"),
        (changed(put("variants", 0, "memory_bytes", value=1.5)), "memory_bytes"),
        (changed(put("variants", 0, "more", value=1)), "variants.0.more"),
        (changed(put("variants", 0, "times", 1, "threads", value=1)), "threads of 16x must ascend"),
        (changed(put("variants", 0, "times", 1, "threads", value=3)), "the same threads"),
        (changed(put(*HOT, value=[])), "hot"),
        (changed(put(*HOT, 1, "images", value=1)), "batch sizes of 16x must ascend"),
        (changed(put(*HOT, 0, "images", value=2)), "begin with 2, not with 1"),
        (changed(put(*HOT, 1, "images", value=10**30)), "images"),
        (changed(put(*P50, value=0)), "not a latency"),
        (changed(put(*P50, value=-1.0)), "not a latency"),
        (changed(put(*P50, value=0.9)), "not a latency with its interval"),
        (changed(put(*P50, value=float("nan"))), "broken"),
        (changed(put(*HOT, 0, "latency", "p99_ms", value=float("inf"))), "broken"),
        (changed(put(*HOT, 0, "latency", value=dict.fromkeys(("p50_ms", "p99_ms"), 1e-300))), "broken"),
        (changed(put("variants", 0, "switch", "p99_ms", value=1e300)), "not a latency"),
        (changed(put("variants", 0, "switch", "p99_low_ms", value="1")), "switch"),
    ],
)
def test_what_is_broken_or_hostile_is_refused_with_the_place(text: bytes, says: str) -> None:
    with pytest.raises(CalibrationError, match=says):
        Calibration.from_json(text)


@given(st.data())
def test_a_changed_byte_is_refused_or_still_a_calibration(data: st.DataObject) -> None:
    text = bytearray(calibration(POINTS).to_json())
    for _ in range(data.draw(st.integers(1, 3))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    try:
        read = Calibration.from_json(bytes(text))
    except CalibrationError:
        return
    assert Calibration.from_json(read.to_json()) == read


def test_it_lies_beside_the_package_or_else_in_the_users_cache(tmp_path: Path, cache: Path) -> None:
    package = tmp_path / "folder" / "portfolio.zip"
    beside, cached = calibration_paths(DIGEST, str(package), NODE)
    assert beside.parent == package.parent
    assert cached == cache / beside.name
    assert DIGEST in beside.name
    for address in ("s3://bucket/portfolio.zip", "S3://bucket/portfolio.zip", "s3:/bucket/portfolio.zip"):
        assert calibration_paths(DIGEST, address, NODE) == [cached]
    odd = calibration_paths(DIGEST, str(tmp_path / "a://b" / "portfolio.zip"), NODE)
    assert odd[0].parent == tmp_path / "a:" / "b"
    other, _ = calibration_paths(DIGEST, str(package), replace(NODE, cores=8))
    assert other != beside


def test_where_a_folder_cannot_be_written_to_the_next_one_is_taken(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    refused, taken = tmp_path / "file" / "x.json", tmp_path / "new" / "folder" / "x.json"
    made = calibration(POINTS)
    assert made.write([refused, taken]) == taken
    assert Calibration.read(taken) == made
    assert [path.name for path in taken.parent.iterdir()] == ["x.json"]
    with pytest.raises(StoreError, match=r"cannot be written: .*/file/x\.json: "):
        made.write([refused])


def test_a_file_is_replaced_whole_and_a_failure_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.json"
    old, new = calibration(POINTS), calibration(POINTS, measured=datetime(2025, 1, 1, tzinfo=UTC))
    old.write([path])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match="No space left"):
            new.write([path])
    assert Calibration.read(path) == old
    new.write([path])
    assert Calibration.read(path) == new
    assert [each.name for each in tmp_path.iterdir()] == ["x.json"]


class Place:
    """A package that lies in a folder, and where its calibrations belong."""

    def __init__(self, folder: Path) -> None:
        self.package = str(folder / "portfolio.zip")
        self.beside, self.cached = calibration_paths(DIGEST, self.package, NODE)

    def find(self, threads: int = 1, node: Node = NODE) -> tuple[Calibration | None, str]:
        found = find_calibration(DIGEST, self.package, threads=threads, node=node)
        return found.calibration, found.reason


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_none_is_told_with_the_command_that_makes_one(place: Place) -> None:
    found, reason = place.find()
    assert found is None
    assert reason == f"not calibrated on this node: python -m jobs.calibrate {place.package}"


def test_what_is_found_has_the_services_threads_and_says_when_it_was_measured(place: Place) -> None:
    calibration(POINTS, threads=(1, 4)).write([place.beside])
    found, reason = place.find(threads=4)
    assert found is not None
    assert found.threads == (4,)
    assert reason == f"measured on this node on 2024-01-02 03:04 UTC ({place.beside})"
    found, reason = place.find(threads=2)
    assert found is None
    assert "measured with 1 and 4 threads, not 2: calibrate with --threads 2" in reason


def test_of_two_the_later_counts(place: Place) -> None:
    first = calibration(POINTS)
    second = calibration(POINTS, measured=first.measured + timedelta(days=1))
    for beside, cached in ((first, second), (second, first)):
        beside.write([place.beside])
        cached.write([place.cached])
        assert place.find()[0] == second


def test_another_engine_is_told_and_another_node_or_package_is_no_calibration(place: Place) -> None:
    calibration(POINTS).write([place.beside])
    found, reason = place.find(node=replace(NODE, engine="onnxruntime 2.0.0"))
    assert found is not None
    assert "with onnxruntime 1.0.0 and not onnxruntime 2.0.0: better calibrate again" in reason

    # As it happens when files are copied: the name is right, the content is another's.
    for other, says in (
        (calibration(POINTS, node=replace(NODE, cpu="another CPU")), "measured on another node (another CPU"),
        (calibration(POINTS, portfolio="f" * 64), f"of the package {'f' * 64}, not of {DIGEST}"),
    ):
        other.write([place.beside])
        found, reason = place.find()
        assert found is None
        assert reason.startswith(f"the calibration is not used. {place.beside}: it ")
        assert says in reason
        assert reason.count(str(place.beside)) == 1


def test_what_cannot_be_read_is_passed_over_with_the_reason(place: Place, tmp_path: Path) -> None:
    def pipe(path: Path) -> None:
        os.mkfifo(path)

    def folder(path: Path) -> None:
        path.mkdir()

    def dangling(path: Path) -> None:
        path.symlink_to(tmp_path / "nothing")

    def huge(path: Path) -> None:
        with path.open("wb") as file:
            file.truncate(5 << 20)

    def cut(path: Path) -> None:
        path.write_bytes(calibration(POINTS).to_json()[:-100])

    for make, says in (
        (pipe, "it is no file"),
        (folder, "it is no file"),
        (dangling, "it cannot be read: No such file"),
        (huge, "it is larger than"),
        (cut, "it is no JSON"),
    ):
        make(place.beside)
        found, reason = place.find()
        assert found is None
        assert f"{place.beside}: {says}" in reason
        # A good one elsewhere counts all the same.
        calibration(POINTS).write([place.cached])
        assert place.find()[0] is not None
        place.cached.unlink()
        if stat.S_ISDIR(place.beside.lstat().st_mode):
            place.beside.rmdir()
        else:
            place.beside.unlink()


def test_this_node_is_the_same_each_time_and_has_a_name() -> None:
    assert this_node() == this_node()
    assert cpu_model().strip() == cpu_model() != ""
    assert this_node().cores == os.cpu_count()
    assert this_node().engine.startswith("onnxruntime")


def test_capacity_follows_from_means_and_a_file_without_them_from_medians() -> None:
    made = calibration(POINTS)
    assert made.seconds()["1x"] == [(1, 0.004), (4, 0.012)]
    told = json.loads(made.to_json())
    told["variants"][1]["times"][0]["hot"][0]["mean_ms"] = 5.5
    with_mean = Calibration.from_json(json.dumps(told).encode())
    assert with_mean.seconds()["1x"] == [(1, 0.0055), (4, 0.012)]
    assert Calibration.from_json(with_mean.to_json()) == with_mean
    for variant in told["variants"]:  # as an older release wrote it
        for at in variant["times"][0]["hot"]:
            del at["mean_ms"]
    assert Calibration.from_json(json.dumps(told).encode()) == made


def test_a_stray_call_is_worth_five_in_a_mean() -> None:
    assert mean_of([1.0, 1.0, 4.0]) == 2.0
    assert mean_of([1.0, 1.0, 1000.0]) == pytest.approx(7 / 3)


def test_the_budget_is_of_the_memory_that_was_measured(make_profile: Callable[..., Profile]) -> None:
    profiles = {name: make_profile(1.0, 4.5, 0.9, memory_bytes=5000) for name in ("16x", "1x", "new")}
    known = calibration(POINTS)  # 1000 bytes
    assert {name: one.memory_bytes for name, one in known.apply(profiles).items()} == {
        "16x": 1000, "1x": 1000, "new": 5000,
    }  # fmt: skip
    told = json.loads(known.to_json())
    told["variants"][0]["memory_bytes"] = 0
    assert Calibration.from_json(json.dumps(told).encode()).apply(profiles)["16x"].memory_bytes == 400


def test_a_variant_that_is_larger_here_than_its_profile_says_is_left_out(package: bytes) -> None:
    portfolio = Portfolio.open(package)
    points = {name: [(1, 0.001)] for name in portfolio.names}
    told = json.loads(calibration(points, portfolio=portfolio.digest).to_json())
    told["variants"][4]["memory_bytes"] = 1 << 30
    known = Calibration.from_json(json.dumps(told).encode())
    budget = portfolio.deflated_bytes + (1 << 20)
    with initialise(portfolio, Slo(0.1), memory_bytes=budget) as host:
        assert host.status().usable == portfolio.names
    with initialise(portfolio, Slo(0.1), memory_bytes=budget, calibration=known) as host:
        assert host.status().usable == portfolio.names[:4]
        host.take_over(portfolio, known)
        assert host.status().usable == portfolio.names[:4]
