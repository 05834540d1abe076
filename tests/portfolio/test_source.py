"""Where a portfolio is found, and how another one there is noticed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from shifter.errors import PackageError, StoreError
from shifter.portfolio import Portfolio
from shifter.portfolio.source import Source
from shifter.run import Run
from shifter.store import Store

from .. import s3


@pytest.fixture
def run(portfolio_bytes: bytes, store_uri: str) -> Run:
    """A run with a package, which is its current one."""
    run = Run(Store.open(store_uri), "digits")
    digest = Portfolio.open(portfolio_bytes).digest
    run.store.write(run.portfolio_key(digest), portfolio_bytes)
    name(run, digest)
    return run


def name(run: Run, digest: object) -> None:
    run.store.replace(run.portfolio_json, json.dumps({"current": digest, "previous": None}).encode())


def test_a_package_and_a_runs_current_package_are_found(run: Run, portfolio_bytes: bytes) -> None:
    uri, digest = run.store.uri, Portfolio.open(portfolio_bytes).digest
    key = run.portfolio_key(digest)
    for place in (f"{uri}/digits", f"{uri}/digits/", f"{uri}/{key}"):
        assert Portfolio.open(place).digest == digest
        assert Source(place).package() == f"{uri}/{key}"


def test_a_package_that_is_too_large_is_refused_before_it_is_read(run: Run, portfolio_bytes: bytes) -> None:
    source = Source(f"{run.store.uri}/digits")
    assert source.open(len(portfolio_bytes)).digest == Portfolio.open(portfolio_bytes).digest
    with pytest.raises(PackageError, match=f"has {len(portfolio_bytes)} bytes: there is room for 1000"):
        source.open(1000)


def test_where_a_known_package_lies_takes_no_reading(run: Run) -> None:
    source = Source(f"{run.store.uri}/digits", patience_s=0)
    package = source.package()
    digest = source.version()
    run.store.replace(run.portfolio_json, b"{")
    assert source.package(digest) == package


def test_no_portfolio_is_told_with_its_place(store_uri: str) -> None:
    store = Store.open(store_uri)
    store.write("broken.zip", b"PK no")
    store.write("folder/x", b"")
    for key in ("none.zip", "folder"):
        for attempt in (Source(f"{store_uri}/{key}").open, Source(f"{store_uri}/{key}").version):
            with pytest.raises(StoreError, match=f"{store_uri}/{key}"):
                attempt()
    with pytest.raises(PackageError, match=f"{store_uri}/broken.zip"):
        Portfolio.open(f"{store_uri}/broken.zip")
    for wrong in ("s3://", "s3:/bucket/run", "s3://bucket"):
        with pytest.raises(StoreError, match=r"s3://bucket/prefix|give s3://bucket"):
            Portfolio.open(wrong)
    for elsewhere in ("gs://bucket/x.zip", "GS://bucket/run"):
        with pytest.raises(StoreError, match="gs: is not supported"):
            Portfolio.open(elsewhere)


@pytest.mark.parametrize(
    "damaged",
    [b"{}", b"{", b"[]", b'{"current": null}', b'{"current": 7}', b'{"current": "../x"}', b"[" * 200_000],
)
def test_a_damaged_name_is_told_with_its_file(store_uri: str, damaged: bytes) -> None:
    Store.open(store_uri).replace("run/portfolio.json", damaged)
    with pytest.raises(PackageError, match=f"{store_uri}/run/portfolio.json is damaged"):
        Portfolio.open(f"{store_uri}/run")


def test_a_run_s_package_is_the_one_that_it_names(run: Run, portfolio_bytes: bytes) -> None:
    """Bytes that open well, under the name of others."""
    run.store.write(run.portfolio_key("0" * 64), portfolio_bytes)
    name(run, "0" * 64)
    with pytest.raises(PackageError, match=r"0000\.zip has sha256"):
        Portfolio.open(f"{run.store.uri}/digits")


def test_a_run_s_version_is_what_it_names(run: Run) -> None:
    source = Source(f"{run.store.uri}/digits")
    first = source.version()
    name(run, "1" * 64)
    assert source.version() == "1" * 64 != first
    name(run, first)
    assert source.version() == first


def test_a_file_has_another_version_once_it_is_replaced_or_written_anew(portfolio_path: Path) -> None:
    source = Source(str(portfolio_path))
    seen = [source.version()]
    assert source.version() == seen[0]
    other = portfolio_path.with_name("other.zip")
    other.write_bytes(portfolio_path.read_bytes())
    os.replace(other, portfolio_path)
    seen.append(source.version())
    portfolio_path.write_bytes(b"another")
    seen.append(source.version())
    assert len(set(seen)) == 3


def test_looking_for_another_version_in_a_bucket_reads_no_package(
    bucket: s3.Server, portfolio_bytes: bytes
) -> None:
    store = Store.open(f"s3://{bucket.bucket()}/edge")
    store.write("mine.zip", portfolio_bytes)
    source = Source(f"{store.uri}/mine.zip")
    bucket.play()
    first = source.version()
    assert source.version() == first
    assert bucket.done().get("bytes", 0) == 0
    store.delete("mine.zip")
    store.write("mine.zip", portfolio_bytes + b"more")
    assert source.version() != first


def test_storage_that_fails_is_waited_for_only_as_long_as_asked(
    bucket: s3.Server, portfolio_bytes: bytes
) -> None:
    store = Store.open(f"s3://{bucket.bucket()}/edge")
    store.write("mine.zip", portfolio_bytes)
    bucket.play(gone=True)
    try:
        with pytest.raises(StoreError, match=r"mine\.zip"):
            Source(f"{store.uri}/mine.zip", patience_s=0).version()
    finally:
        bucket.play()
