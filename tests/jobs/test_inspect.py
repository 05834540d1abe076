"""What a portfolio is shown as, whole or damaged."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from typer.testing import CliRunner, Result

from jobs.__main__ import app
from shifter.portfolio import Portfolio, pack
from shifter.run import Run
from shifter.store import Store


def inspect(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["inspect", *map(str, arguments)])


@pytest.fixture
def run(portfolio_bytes: bytes, tmp_path: Path) -> Path:
    """A run's folder with a package."""
    run = Run(Store.open(str(tmp_path / "runs")), "mine")
    digest = Portfolio.open(portfolio_bytes).digest
    run.store.write(run.portfolio_key(digest), portfolio_bytes)
    run.store.replace(run.portfolio_json, json.dumps({"current": digest}).encode())
    return tmp_path / "runs" / "mine"


def test_a_run_and_its_package_are_shown_alike(run: Path) -> None:
    (package,) = run.glob("portfolio/*.zip")
    for arguments in ([run], [run, "--json"]):
        assert inspect(*arguments).exit_code == 0
        assert inspect(*arguments).stdout == inspect(package, *arguments[1:]).stdout


def test_a_run_in_a_bucket_is_shown_as_one_in_a_folder(portfolio_bytes: bytes, store_uri: str) -> None:
    run = Run(Store.open(store_uri), "mine")
    digest = Portfolio.open(portfolio_bytes).digest
    run.store.write(run.portfolio_key(digest), portfolio_bytes)
    run.store.replace(run.portfolio_json, json.dumps({"current": digest}).encode())
    shown = inspect(f"{store_uri}/mine", "--json")
    assert json.loads(shown.stdout)["digest"] == digest, shown.output


def test_the_table_is_as_wide_as_it_needs_where_there_is_no_terminal(
    portfolio_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    text = inspect(portfolio_path).stdout
    assert "integrity  every entry matches its sha256" in text
    table = [line for line in text.splitlines() if line.startswith("│")]
    assert [line.split("│")[1].strip() for line in table] == ["16x", "4x", "1x"] * 2
    assert [len({len(line) for line in part}) for part in (table[:3], table[3:])] == [1, 1]
    assert "error (float32)" in text
    assert "in float64 at most 1e-14" in text


def test_it_tells_how_each_variant_is_stored_and_what_it_reads(
    portfolio_path: Path, portfolio_bytes: bytes
) -> None:
    told = json.loads(inspect(portfolio_path, "--json").stdout)
    with zipfile.ZipFile(portfolio_path) as archive:
        sizes = {info.filename: info.compress_size for info in archive.infolist()}
    for variant in told["variants"]:
        deflated = sum(size for entry, size in sizes.items() if entry.startswith(f"{variant['name']}/"))
        assert variant["deflated_bytes"] == deflated
        codings = variant["codings"].values()
        weights = deflated - sizes[f"{variant['name']}/graph.onnx"]
        assert sum(sums["deflated_bytes"] for sums in codings) == weights
        assert sum(sums["tensors"] for sums in codings) == 4
        assert sum(sums["inflated_bytes"] for sums in codings) == variant["profile"]["tensor_bytes"]
    assert (told["format_version"], told["deflated_bytes"]) == (2, len(portfolio_bytes))
    text = inspect(portfolio_path).stdout
    assert "images     1 x 8 x 8, pixels 0 to 16, mean 0.3, deviation 0.4\n" in text
    assert "classes    3: zero, one, two" in text
    assert "whole: codings of tensors" in text


def test_what_would_move_a_terminals_cursor_is_not_printed(portfolio_bytes: bytes, tmp_path: Path) -> None:
    old = Portfolio.open(portfolio_bytes)
    variants = [old.inflate(name) for name in old.names]
    hostile = pack(variants, old.input_spec, model="\x1b[2Jmödel", provenance={"a\nb": "\u202e"})
    (tmp_path / "hostile.zip").write_bytes(hostile)
    text = inspect(tmp_path / "hostile.zip").stdout
    assert "\\x1b[2Jmödel" in text
    assert "a\\nb" in text
    assert not set(text) & {"\x1b", "\u202e"}


def test_what_is_damaged_is_named_with_its_file(portfolio_bytes: bytes, tmp_path: Path) -> None:
    place = tmp_path / "damaged.zip"
    for inside, says in {
        b"manifest.json": "entry 'manifest.json'",
        b"4x/graph.onnx": "entry '4x/graph.onnx'",
        b"1x/tensors/0001.bin": "tensor 'conv2.weight': entry '1x/tensors/0001.bin'",
    }.items():
        data = bytearray(portfolio_bytes)
        # The first byte after an entry's name is the first of its content.
        data[data.index(inside) + len(inside)] ^= 0xFF
        place.write_bytes(data)
        result = inspect(place)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith(f"error: {place}")
        assert says in result.stderr
        assert result.stderr.count("\n") == 1


def test_what_is_no_portfolio_is_told_with_its_place(tmp_path: Path) -> None:
    for missing in (tmp_path, tmp_path / "none.zip"):
        result = inspect(missing)
        assert result.exit_code == 1
        assert str(missing) in result.stderr


def test_a_graph_that_no_engine_would_be_given_is_told(portfolio_bytes: bytes, tmp_path: Path) -> None:
    portfolio = Portfolio.open(portfolio_bytes)
    variants = [portfolio.inflate(name) for name in portfolio.names]
    foreign = onnx.ModelProto.FromString(variants[1].graph)
    foreign.graph.node[1].domain = "com.microsoft"
    variants[1] = replace(variants[1], graph=foreign.SerializeToString())
    package = tmp_path / "foreign.zip"
    package.write_bytes(pack(variants, portfolio.input_spec, model="vgg", provenance={}))
    shown = inspect(package)
    assert shown.exit_code == 1
    assert f"the graph of variant {portfolio.names[1]!r}: " in shown.stderr
    assert "com.microsoft" in shown.stderr
