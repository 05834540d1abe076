"""Measuring a portfolio on this node, and what is refused."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from jobs.__main__ import app
from jobs.calibration_text import calibration_text
from jobs.node_times import Plan, batch_sizes, groups, measure_variants
from shifter.errors import EngineError
from shifter.node import this_node
from shifter.portfolio import Portfolio, pack
from shifter.run import Run
from shifter.store import Store
from shifter.switching.calibration import Calibration, find_calibration
from shifter.switching.engines import make_engine
from shifter.switching.initialise import initialise
from shifter.switching.policies import Slo
from shifter.values import Variant

QUICK = ("--samples", "10", "--batch-limit", "3")


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("SHIFTER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "calibrations"


def calibrate(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["calibrate", *map(str, arguments)])


def test_every_variant_is_measured_and_a_service_finds_it(portfolio_path: Path) -> None:
    before = set(portfolio_path.parent.iterdir())
    done = calibrate(portfolio_path, *QUICK, "--threads", 2, "--threads", 1, "--json")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    (written,) = set(portfolio_path.parent.iterdir()) - before
    assert told["written"] == str(written)
    assert told["refused"] == {}

    calibration = Calibration.read(written)
    assert json.loads(calibration.to_json()) == told["calibration"]
    portfolio = Portfolio.open(portfolio_path)
    assert calibration.portfolio == portfolio.digest
    assert calibration.node == this_node()
    assert [variant.name for variant in calibration.variants] == list(portfolio.names)
    assert calibration.threads == (1, 2)
    for variant in calibration.variants:
        assert variant.memory_bytes > 0
        assert variant.switch.p50_ms >= max(variant.inflate.p50_ms, variant.build.p50_ms)
        for times in variant.times:
            assert [at.images for at in times.hot] == [1, 2, 3]
            assert times.hot[0].latency.samples == 10
            assert all(at.mean_ms for at in times.hot)
            assert times.alternating is not None

    found = find_calibration(portfolio.digest, str(portfolio_path), threads=2)
    assert found.calibration == calibration.for_threads(2), found.reason
    with initialise(portfolio, Slo(0.1), build=make_engine(threads=2), calibration=found.calibration) as host:
        assert host.tick().variant in portfolio.names


def test_the_text_says_what_changes_and_where_it_was_written(portfolio_path: Path) -> None:
    done = calibrate(portfolio_path, *QUICK, "--threads", 1)
    assert done.exit_code == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("│")]
    assert [row.split("│")[1].strip() for row in rows] == ["16x", "4x", "1x"]
    assert [row.split("│")[2].strip() for row in rows] == ["0.200", "0.500", "1.000"]  # the profiles'
    assert re.search(r"one thread this node takes \d+\.\d\d times as long as the profiles say", done.stdout)
    assert re.search(rf"written +{re.escape(str(portfolio_path.parent))}/\S+\.json\n", done.stdout)
    assert "with threads: 1 that start on this node" in done.stdout
    for step in ("3 variants of tiny", "16x: ", "1 thread, 3 images: 16x", "1 thread, alternating: 16x"):
        assert step in done.stderr


def test_what_no_profile_speaks_of_is_compared_with_none(portfolio_path: Path) -> None:
    done = calibrate(portfolio_path, "--samples", 10, "--batch-limit", 1, "--threads", 3)
    assert done.exit_code == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("│")]
    assert [row.split("│")[2].strip() for row in rows] == ["–"] * 3
    assert "times as long" not in done.stdout
    assert "images (ms)" not in done.stdout


def test_a_package_in_a_bucket_is_calibrated_in_the_cache(
    portfolio_bytes: bytes, bucket: Any, tmp_path: Path, cache: Path
) -> None:
    place = f"s3://{bucket.bucket()}/runs"
    run = Run(Store.open(place), "mine")
    digest = Portfolio.open(portfolio_bytes).digest
    run.store.write(run.portfolio_key(digest), portfolio_bytes)
    run.store.replace(run.portfolio_json, json.dumps({"current": digest}).encode())
    done = calibrate(f"{place}/mine", *QUICK, "--threads", 1, "--json")
    assert done.exit_code == 0, done.stderr
    written = Path(json.loads(done.stdout)["written"])
    assert written.parent == cache
    found = find_calibration(digest, f"{place}/{run.portfolio_key(digest)}")
    assert found.calibration == Calibration.read(written)


def test_a_file_of_ones_own_is_the_only_one_written(portfolio_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "elsewhere" / "mine.json"
    before = set(portfolio_path.parent.iterdir())
    done = calibrate(portfolio_path, *QUICK, "--threads", 1, "--out", out)
    assert done.exit_code == 0, done.stderr
    assert Calibration.read(out).threads == (1,)
    assert set(portfolio_path.parent.iterdir()) - before == {out.parent}
    assert "look there" in done.stdout.splitlines()[-1]


def test_what_cannot_be_calibrated_is_told_and_nothing_is_written(
    portfolio_bytes: bytes, tmp_path: Path, cache: Path
) -> None:
    damaged = bytearray(portfolio_bytes)
    at = damaged.index(b"4x/graph.onnx") + len(b"4x/graph.onnx")
    damaged[at] ^= 0xFF
    (tmp_path / "damaged.zip").write_bytes(damaged)
    (tmp_path / "text.zip").write_text("no package")
    (tmp_path / "file").write_text("")
    (tmp_path / "good.zip").write_bytes(portfolio_bytes)
    before = set(tmp_path.rglob("*"))
    for arguments, says in (
        ([tmp_path / "none.zip"], "no portfolio can be read at"),
        ([tmp_path], "is no run with a portfolio"),
        ([tmp_path / "text.zip"], "text.zip: "),
        ([tmp_path / "damaged.zip"], "damaged.zip is damaged: entry '4x/graph.onnx'"),
        ([tmp_path / "good.zip", "--out", tmp_path / "file" / "x.json"], "cannot be written: "),
    ):
        done = calibrate(*arguments, *QUICK, "--threads", 1, "--progress", "none")
        assert (done.exit_code, done.stdout) == (1, ""), says
        assert done.stderr.startswith("error: ")
        assert says in done.stderr
        assert done.stderr.count("\n") == 1
    for wrong in (["--samples", 9], ["--threads", 0], ["--batch-limit", 0], ["--out", tmp_path]):
        assert calibrate(tmp_path / "good.zip", *wrong).exit_code == 2
    assert set(tmp_path.rglob("*")) == before


def test_what_is_only_vaguely_known_is_told(portfolio_path: Path) -> None:
    portfolio = Portfolio.open(portfolio_path)
    steady, _ = measure_variants(portfolio, Plan((1,), (1, 2), 10), lambda _: None)

    def told(spread: float) -> str:
        """As if every median were known to that, relative to it; of one batch size to twice that."""
        measured = Calibration(
            portfolio=portfolio.digest,
            node=this_node(),
            measured=datetime(2024, 1, 1, tzinfo=UTC),
            variants=steady,
        )
        data = json.loads(measured.to_json())
        for variant in data["variants"]:
            for at in variant["times"][0]["hot"]:
                wider = spread * (1 + (variant["name"] == "4x" and at["images"] == 2))
                low, high = (1 - wider) * at["latency"]["p50_ms"], (1 + wider) * at["latency"]["p50_ms"]
                at["latency"] |= {"p50_low_ms": low, "p50_high_ms": high}
        calibration = Calibration.from_json(json.dumps(data).encode())
        return calibration_text(portfolio, calibration, {}, portfolio_path, found_by_services=True)

    assert "4x with one thread and 2 images is only known to ± 60%" in told(0.3)
    assert "only known" not in told(0.05)


def broken(variant: Variant) -> Variant:
    """The variant without what its graph needs."""
    tensors = dict(variant.tensors)
    _, gone = tensors.popitem()
    profile = replace(variant.profile, tensor_bytes=variant.profile.tensor_bytes - gone.nbytes)
    return Variant(variant.name, variant.graph, tensors, profile)


def test_a_variant_that_does_not_run_here_is_left_out_and_told(portfolio_bytes: bytes) -> None:
    whole = Portfolio.open(portfolio_bytes)
    variants = [whole.inflate(name) for name in whole.names]
    said: list[str] = []

    def measure(*broken_ones: str) -> tuple[list[str], dict[str, str]]:
        packed = pack(
            [broken(v) if v.name in broken_ones else v for v in variants],
            whole.input_spec,
            model="tiny",
            provenance={},
        )
        plan = Plan((1,), (1,), 10)
        found, refused = measure_variants(Portfolio.open(packed), plan, said.append)
        return [variant.name for variant in found], refused

    names, refused = measure("4x")
    assert names == ["16x", "1x"]
    assert list(refused) == ["4x"]
    assert any(line.startswith("4x does not run here: ") for line in said)
    with pytest.raises(EngineError, match=r"no variant runs on this node: .*16x"):
        measure(*whole.names)


def test_what_does_not_fit_together_is_measured_apart(
    portfolio_bytes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.node_times.ROOM", 1)
    found, refused = measure_variants(Portfolio.open(portfolio_bytes), Plan((1,), (1, 2), 10), lambda _: None)
    assert refused == {}
    assert all(v.times[0].alternating is not None for v in found)  # with a neighbour
    assert all(len(v.times[0].hot) == 2 for v in found)


def test_groups_are_in_order_and_fit() -> None:
    sizes = {"a": 1, "b": 2, "c": 9, "d": 3, "e": 2}
    assert list(groups(sizes, 5)) == [["a", "b"], ["c"], ["d", "e"]]
    assert list(groups(sizes, 100)) == [list(sizes)]


def test_batch_sizes_double_up_to_the_limit() -> None:
    assert batch_sizes(1) == (1,)
    assert batch_sizes(8) == (1, 2, 4, 8)
    assert batch_sizes(12) == (1, 2, 4, 8, 12)


def test_a_busy_node_is_told(portfolio_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for load, told in ((3.2, True), (0.1, False)):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, load, load))
        done = calibrate(portfolio_path, "--samples", 10, "--batch-limit", 1, "--threads", 1)
        assert ("other programs keep 3.2 cores busy" in done.stderr) == told


def test_a_packages_texts_do_not_move_the_cursor(portfolio_path: Path) -> None:
    portfolio = Portfolio.open(portfolio_path)
    variants, _ = measure_variants(portfolio, Plan((1,), (1,), 10), lambda _: None)
    measured = datetime(2024, 1, 1, tzinfo=UTC)
    known = Calibration(portfolio=portfolio.digest, node=this_node(), measured=measured, variants=variants)
    refused = {"v9": "operator \x1b[2J is unknown"}
    text = calibration_text(portfolio, known, refused, portfolio_path, found_by_services=True)
    assert "v9 does not run here: operator \\x1b[2J is unknown" in text
    assert "\x1b" not in text
