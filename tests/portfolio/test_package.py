import dataclasses
import hashlib
import io
import json
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shifter.errors import PackageError, StoreError
from shifter.portfolio import Portfolio, container, pack
from shifter.portfolio.container import Entry
from shifter.values import Exactness, InputSpec, Variant

Edit = Callable[[dict[str, Any]], None]


def same(left: Variant, right: Variant) -> bool:
    return (
        (left.name, left.graph, left.profile) == (right.name, right.graph, right.profile)
        and left.tensors.keys() == right.tensors.keys()
        and all(
            (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
            for a, b in ((left.tensors[name], right.tensors[name]) for name in left.tensors)
        )
    )


def rebuilt(package: bytes, edit: Edit) -> bytes:
    """The package with an edited manifest, and a container that agrees with itself."""
    entries = dict(container.read(package))
    with zipfile.ZipFile(io.BytesIO(package)) as archive:
        manifest = json.loads(archive.read("manifest.json"))
    edit(manifest)
    entries["manifest.json"] = Entry.pack("manifest.json", json.dumps(manifest).encode())
    return container.write(list(entries.values()))


def test_what_was_packed_comes_back_identical(
    package: bytes, variants: list[Variant], spec: InputSpec
) -> None:
    portfolio = Portfolio.open(package)
    portfolio.verify()
    assert portfolio.names == ("64x", "4x", "1x")  # smallest first
    assert portfolio.input_spec == spec
    assert (portfolio.model, portfolio.manifest.provenance["recipe"]) == ("vgg", "0123abcd")
    assert dict(portfolio.profiles) == {variant.name: variant.profile for variant in variants}
    assert portfolio.digest == hashlib.sha256(package).hexdigest()
    assert portfolio.deflated_bytes == len(package)
    for variant in variants:
        assert same(portfolio.inflate(variant.name), variant)
        tensor_bytes = sum(tensor.nbytes for tensor in variant.tensors.values())
        assert portfolio.inflated_bytes(variant.name) == len(variant.graph) + tensor_bytes


def test_the_bytes_do_not_depend_on_order_or_time(
    package: bytes, variants: list[Variant], spec: InputSpec
) -> None:
    turned = [dataclasses.replace(v, tensors=dict(reversed(v.tensors.items()))) for v in reversed(variants)]
    assert pack(turned, spec, model="vgg", provenance={"commit": "4567", "recipe": "0123abcd"}) == package


def test_any_unzip_opens_it_and_finds_the_declared_sizes_and_digests(package: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(package)) as archive:
        assert archive.testzip() is None
        assert archive.namelist()[0] == "manifest.json"
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_DEFLATED}
        manifest = json.loads(archive.read("manifest.json"))
        for variant in manifest["variants"]:
            for record in (variant["graph"], *variant["tensors"]):
                content, info = archive.read(record["entry"]), archive.getinfo(record["entry"])
                assert (len(content), info.compress_size) == (record["inflated"], record["deflated"])
                assert hashlib.sha256(content).hexdigest() == record["sha256"]


def test_each_tensor_has_the_smallest_coding(package: bytes) -> None:
    codings = {
        (variant.name, tensor.name): tensor.coding
        for variant in Portfolio.open(package).manifest.variants
        for tensor in variant.tensors
    }
    assert codings["64x", "features.0.weight"] == "gaps"
    assert codings["1x", "features.0.weight"] == "whole"
    assert codings["64x", "classifier.weight"] == "whole"


def test_large_variants_inflate_on_threads_to_the_same(variants: list[Variant], spec: InputSpec) -> None:
    many = {f"t{index}": np.random.default_rng(index).standard_normal(60_000) for index in range(6)}
    size = sum(tensor.nbytes for tensor in many.values())
    profile = dataclasses.replace(variants[0].profile, tensor_bytes=size)
    large = dataclasses.replace(variants[0], tensors=many, profile=profile)
    portfolio = Portfolio.open(pack([large], spec, model="m", provenance={}))
    assert same(portfolio.inflate("1x"), large)
    assert same(portfolio.inflate("1x"), large)  # the second time without hashing


def test_it_opens_from_a_file(package: bytes, tmp_path: Path) -> None:
    path = tmp_path / "portfolio.zip"
    path.write_bytes(package)
    assert Portfolio.open(path).digest == Portfolio.open(str(path)).digest == Portfolio.open(package).digest
    with pytest.raises(StoreError, match=r"absent\.zip: No such file"):
        Portfolio.open(tmp_path / "absent.zip")


def test_what_cannot_be_packed_is_refused(variants: list[Variant], spec: InputSpec) -> None:
    def attempt(*some: Variant) -> None:
        pack(some, spec, model="m", provenance={})

    with pytest.raises(PackageError, match="at least one variant"):
        attempt()
    with pytest.raises(PackageError, match="different names"):
        attempt(variants[0], variants[0])
    with pytest.raises(PackageError, match="'t' is complex64"):
        attempt(dataclasses.replace(variants[0], tensors={"t": np.zeros(3, np.complex64)}))
    inexact = dataclasses.replace(variants[0].profile, exactness=Exactness(2e-10, 1e-7, 1e-7, 64))
    with pytest.raises(PackageError, match=r"1x cannot be packed: it differs .* in float64"):
        attempt(dataclasses.replace(variants[0], profile=inexact))
    smaller = dataclasses.replace(variants[0].profile, tensor_bytes=4)
    with pytest.raises(PackageError, match="the profile of '1x' says 4 bytes of tensors; it has 9732"):
        attempt(dataclasses.replace(variants[0], profile=smaller))


def test_every_truncation_is_refused(package: bytes) -> None:
    for length in {*range(0, len(package), 97), len(package) - 1}:
        with pytest.raises(PackageError):
            Portfolio.open(package[:length]).verify()


def _tensor(manifest: dict[str, Any], index: int = 1) -> dict[str, Any]:
    record: dict[str, Any] = manifest["variants"][0]["tensors"][index]
    return record


EDITS: dict[str, tuple[Edit, str]] = {
    "newer version": (lambda m: m.update(version=3), "version 3, and this release reads up to 2: update"),
    "no version": (lambda m: m.pop("version"), "format version None; this release reads 1 to 2"),
    "version 0": (lambda m: m.update(version=0), "format version 0;"),
    "infinite version": (lambda m: m.update(version=float("inf")), "Infinity is no number"),
    "version true": (lambda m: m.update(version=True), "format version True;"),
    "version 2.0": (lambda m: m.update(version=2.0), "format version 2.0;"),
    "another version's coding": (lambda m: m.update(version=1), "version 1 has no coding 'gaps'"),
    "other format": (lambda m: m.update(format="zip"), "'format' is not"),
    "unknown field": (lambda m: m.update(extra=1), "extra"),
    "missing field": (lambda m: m.pop("input"), "input"),
    "no variants": (lambda m: m.update(variants=[]), "variants"),
    "not sorted": (lambda m: m["variants"].reverse(), "sorted by size"),
    "digest": (lambda m: _tensor(m).update(sha256="0" * 64), "has sha256 .* not 0000"),
    "deflated size": (lambda m: _tensor(m).update(deflated=7), "the manifest says 7 and"),
    "shape": (lambda m: _tensor(m).update(shape=[7], values=7), "cannot be a whole float32 tensor"),
    "negative shape": (lambda m: _tensor(m).update(shape=[-1, -8]), "shape"),
    "enormous shape": (lambda m: _tensor(m).update(shape=[2**62, 2**62]), "more than 1099511627776 elements"),
    "enormous shape of nothing": (
        lambda m: _tensor(m, 2).update(shape=[2**62, 0]),
        "more than 1099511627776",
    ),
    "enormous number": (lambda m: _tensor(m).update(inflated=10**4000), "less than"),
    "many axes": (lambda m: _tensor(m).update(shape=[1] * 33), "shape"),
    "values": (lambda m: _tensor(m).update(values=9), "cannot have 9 values stored"),
    "no values": (lambda m: _tensor(m).pop("values"), "cannot have None values stored"),
    "enormous image": (lambda m: m["input"].update(height=10**12), "is not one of 1 to"),
    "enormous batch": (
        lambda m: m["variants"][0]["profile"].update(batch_images=10**9),
        "is not one of 1 to",
    ),
    "dtype": (lambda m: _tensor(m).update(dtype="object"), "dtype"),
    "coding": (lambda m: _tensor(m).update(coding="pickle"), "coding"),
    "one name twice": (lambda m: _tensor(m).update(name=_tensor(m, 0)["name"]), "two tensors"),
    "missing entry": (lambda m: _tensor(m).update(entry="64x/absent.bin"), "missing .*absent"),
    "entry not declared": (lambda m: m["variants"][0]["tensors"].pop(3), "not declared .*0003"),
    "text for a number": (lambda m: m["variants"][0]["profile"].update(test_accuracy="0.9"), "test_accuracy"),
    "negative memory": (
        lambda m: m["variants"][0]["profile"].update(memory_bytes=-(10**12)),
        "memory_bytes of a profile cannot be -1000000000000",
    ),
    "no memory": (lambda m: m["variants"][0]["profile"].update(memory_bytes=0), "memory_bytes .* be 0"),
    "enormous memory": (lambda m: m["variants"][0]["profile"].update(memory_bytes=2**63), "memory_bytes"),
    "other tensor bytes": (
        lambda m: m["variants"][0]["profile"].update(tensor_bytes=0),
        "says 0 bytes of tensors; it has",
    ),
    "impossible accuracy": (
        lambda m: m["variants"][0]["profile"].update(validation_accuracy=1e300),
        r"validation_accuracy of a profile cannot be 1e\+300",
    ),
    "ratio below one": (lambda m: m["variants"][0]["profile"].update(ratio=0.5), "ratio of a profile"),
    "no cores": (lambda m: m["variants"][0]["profile"].update(cores=0), "cores of a profile"),
    "latency that begins before": (
        lambda m: m["variants"][0]["profile"]["latency"].update(p50_low_ms=-1.0),
        "not a latency",
    ),
    "impossible latency": (
        lambda m: m["variants"][0]["profile"]["latency"].update(p50_ms=-1.0),
        "not a latency",
    ),
    "infinite": (lambda m: m["variants"][0]["profile"].update(test_accuracy=float("inf")), "Infinity is no"),
    "unknown profile field": (lambda m: m["variants"][0]["profile"].update(colour="red"), "colour"),
    "mean": (lambda m: m["input"].update(mean=[0.5]), "as many means"),
    "variant name": (lambda m: m["variants"][0].update(name="../64x"), "name"),
}


@pytest.mark.parametrize("case", EDITS)
def test_a_manifest_that_lies_is_refused_and_the_lie_named(package: bytes, case: str) -> None:
    edit, said = EDITS[case]
    with pytest.raises(PackageError, match=said):
        Portfolio.open(rebuilt(package, edit)).verify()


@pytest.mark.parametrize(
    "text",
    [
        b"", b"[]", b"{", b"[" * 100_000, b'{"format":' * 100_000, b"\xff\xfe", b"null", b"9" * 5000,
        b'{"format": "shifter-portfolio", "version": 2, "model": "\\ud800"}',
        b'{"format": "shifter-portfolio", "version": 2, "version": 3}',
    ],
    ids=lambda text: repr(text[:20]),
)  # fmt: skip
def test_a_manifest_that_is_none_is_refused(text: bytes) -> None:
    with pytest.raises(PackageError, match=r"manifest\.json"):
        Portfolio.open(container.write([Entry.pack("manifest.json", text)]))


def test_a_container_without_a_manifest_is_refused(package: bytes) -> None:
    entries = list(container.read(package).values())
    for some in ([], entries[1:], entries[::-1]):
        with pytest.raises(PackageError, match="does not begin with"):
            Portfolio.open(container.write(some))


def test_a_bomb_is_refused_in_bounded_memory(package: bytes) -> None:
    """10 MB declared where there are 256 bytes, a stream that holds 10 MB, and a shape of 4 GB."""
    size = 10_000_000
    honest = container.read(package)
    victim = "1x/tensors/0001.bin"

    def declare(manifest: dict[str, Any]) -> None:
        manifest["variants"][2]["tensors"][1].update(inflated=size, shape=[size // 4], values=size // 4)
        profile = manifest["variants"][2]["profile"]
        profile["tensor_bytes"] += size - honest[victim].size

    grown = rebuilt(package, declare)
    entries = dict(container.read(grown))
    entries[victim] = dataclasses.replace(entries[victim], size=size)
    declared = container.write(list(entries.values()))

    bomb = Entry.pack(victim, bytes(size))
    entries = dict(honest)
    entries[victim] = dataclasses.replace(bomb, size=honest[victim].size)

    def admit(manifest: dict[str, Any]) -> None:
        manifest["variants"][2]["tensors"][1].update(deflated=len(bomb.stream))

    hidden = rebuilt(container.write(list(entries.values())), admit)

    for hostile, said in (
        (declared, r"0001\.bin.* 1032-fold at most"),
        (hidden, r"0001\.bin.*broken or does not hold"),
        (swollen(package), "declares 4.* bytes, more than 1032 times"),
    ):
        tracemalloc.start()
        try:
            with pytest.raises(PackageError, match=said):
                Portfolio.open(hostile).verify()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 2_000_000


def swollen(package: bytes) -> bytes:
    """A package whose largest variant has a tensor of a few bytes that is said to be all zeros, for 4 GB."""
    victim = "1x/tensors/0001.bin"
    empty = Entry.pack(victim, b"")
    entries = dict(container.read(package)) | {victim: empty}

    def admit(manifest: dict[str, Any]) -> None:
        manifest["variants"][2]["tensors"][1].update(
            shape=[2**30], coding="gaps", values=0, inflated=0, deflated=len(empty.stream)
        )
        manifest["variants"][2]["profile"]["tensor_bytes"] += 2**32 - 256

    return rebuilt(container.write(list(entries.values())), admit)
