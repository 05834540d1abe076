"""Packages of the version before are read; ``version-1.zip`` was written by a release that wrote it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from shifter.errors import PackageError
from shifter.portfolio import Portfolio, container, pack
from shifter.portfolio.container import Entry
from shifter.values import Variant

PLACE = Path(__file__).with_name("version-1.zip")
# As they were when they were packed: names, dtypes, shapes and bytes.
CONTENT = {
    "16x": "282acb5a66b6d4b0bfd07cc7ca6ba15a023c884a8793ae46a814d489ea41bc06",
    "1x": "5ca8db41270fd5c64abfd4881f9e734e6df1c9b88d829d84a5077a2b12f6980e",
}


def content(variant: Variant) -> str:
    found = hashlib.sha256()
    for name in sorted(variant.tensors):
        tensor = variant.tensors[name]
        found.update(f"{name} {tensor.dtype} {tensor.shape} ".encode() + tensor.tobytes())
    return found.hexdigest()


def test_version_1_is_read_to_the_last_bit() -> None:
    old = Portfolio.open(PLACE)
    assert old.manifest.version == 1
    assert {tensor.coding for v in old.manifest.variants for tensor in v.tensors} == {"dense", "sparse"}
    assert {name: content(old.inflate(name)) for name in old.names} == CONTENT


def test_what_is_packed_anew_is_of_the_version_of_today_and_smaller() -> None:
    old = Portfolio.open(PLACE)
    package = pack(
        [old.inflate(name) for name in old.names],
        old.input_spec,
        model=old.model,
        provenance=old.manifest.provenance,
    )
    new = Portfolio.open(package)
    assert new.manifest.version == 2
    assert {name: content(new.inflate(name)) for name in new.names} == CONTENT
    assert new.profiles == old.profiles

    def weights(portfolio: Portfolio) -> int:
        return sum(tensor.deflated for v in portfolio.manifest.variants for tensor in v.tensors)

    assert weights(new) < weights(old)


@pytest.mark.parametrize("version", [3, 10**30])
def test_a_newer_version_is_refused_with_both_numbers_and_the_remedy(version: int) -> None:
    entries = dict(container.read(PLACE.read_bytes()))
    manifest = json.loads(Portfolio.open(PLACE).manifest.to_json()) | {"version": version, "new": np.pi}
    entries["manifest.json"] = Entry.pack("manifest.json", json.dumps(manifest).encode())
    with pytest.raises(PackageError, match=rf"version {version}, .* reads up to 2: update shifter here, or"):
        Portfolio.open(container.write(list(entries.values())))
