"""Module 7: the deployable package, ``portfolio.zip``.

An ordinary ZIP with DEFLATE: ``manifest.json`` first, then per variant, smallest first, its
``graph.onnx`` (no weights) and its tensors, each sparse-coded where that is smaller
(`shifter.portfolio.coding`). Entries inflate independently of one another. The same variants,
packed by the same version of the same DEFLATE library, give the same bytes.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast, get_args

from numpy.typing import NDArray

from shifter.errors import PackageError
from shifter.portfolio import container
from shifter.portfolio.coding import Coding, DType, decode, encode
from shifter.portfolio.container import Entry
from shifter.portfolio.deflating import inflate, quick_size
from shifter.portfolio.manifest import EntryRecord, Manifest, TensorRecord, VariantRecord
from shifter.portfolio.source import Source
from shifter.values import InputSpec, Profile, Variant

MANIFEST = "manifest.json"
_LARGEST_MANIFEST = 64 << 20
# Below this many bytes, starting threads takes longer than inflating.
_WORTH_THREADS = 1 << 20


def pack(
    variants: Sequence[Variant],
    input_spec: InputSpec,
    *,
    model: str,
    provenance: Mapping[str, str],
) -> bytes:
    """The package of ``variants``, in any order.

    Args:
        model: the network's name, as a service shows it.
        provenance: where the portfolio comes from (recipe digest, git commit, …), for people.

    Raises:
        PackageError: without variants, with two of one name, with one that is not exact
            (:attr:`~shifter.values.Exactness.refusal`), with a tensor of a dtype that cannot be
            stored, with a profile that is not finite, or if all of it exceeds a ZIP file.
    """
    ordered = sorted(variants, key=lambda v: (sum(t.nbytes for t in v.tensors.values()), v.name))
    if not ordered:
        raise PackageError("a portfolio needs at least one variant")
    for variant in ordered:
        if why := variant.profile.exactness.refusal:
            raise PackageError(f"{variant.name} cannot be packed: {why}")
    packed = [_pack_variant(variant) for variant in ordered]
    records = tuple(record for record, _ in packed)
    try:
        text = Manifest(
            model=model, provenance=dict(provenance), input=input_spec, variants=records
        ).to_json()
    except ValueError as problem:
        raise PackageError(f"these variants cannot be packed: {problem}") from problem
    # Through the reader's checks: what is packed can be opened.
    Manifest.from_json(text)
    return container.write([Entry.pack(MANIFEST, text), *(e for _, entries in packed for e in entries)])


class Portfolio:
    """A package held in memory, deflated; immutable, so any number of threads may read it."""

    def __init__(self, data: bytes) -> None:
        self._entries = container.read(data)
        self.manifest = _read_manifest(self._entries)
        """Everything the package says of itself, sizes and digests of each entry included."""
        self.digest = hashlib.sha256(data).hexdigest()
        """sha256 of the package's bytes."""
        self.deflated_bytes = len(data)
        """Bytes of the package, which stay in memory."""
        self._variants = {variant.name: variant for variant in self.manifest.variants}
        self._verified: set[str] = set()

    @classmethod
    def open(cls, source: str | Path | bytes) -> Portfolio:
        """Reads a package and checks everything but its content, which is checked as it is inflated.

        Args:
            source: the package's bytes, its file, or a run's folder, whose current package is meant;
                file and folder may be in a bucket (``s3://bucket/prefix/run``).

        Raises:
            PackageError: if the package is broken, hostile, or of another format version.
            StoreError: if it cannot be read.
        """
        return cls(source) if isinstance(source, bytes) else Source(str(source)).open()

    @property
    def names(self) -> tuple[str, ...]:
        """The variants, smallest first."""
        return tuple(self._variants)

    @property
    def profiles(self) -> Mapping[str, Profile]:
        """What was measured of each variant, smallest first."""
        return MappingProxyType({name: variant.profile for name, variant in self._variants.items()})

    @property
    def input_spec(self) -> InputSpec:
        return self.manifest.input

    @property
    def model(self) -> str:
        return self.manifest.model

    def inflated_bytes(self, name: str) -> int:
        """Bytes of a variant's graph and tensors once inflated.

        Raises:
            KeyError: if there is no such variant.
        """
        return self._variants[name].inflated_bytes

    def inflate(self, name: str) -> Variant:
        """Inflates one variant, large ones on all cores; the first time, checks every digest.

        Raises:
            KeyError: if there is no such variant.
            PackageError: if the content of an entry is not what the manifest declares.
        """
        record = self._variants[name]
        check = name not in self._verified
        largest_first = sorted(record.tensors, key=lambda tensor: -tensor.tensor_bytes)

        def read(tensor: TensorRecord) -> NDArray[Any]:
            return self._tensor(tensor, check)

        arrays: Iterable[NDArray[Any]]
        if record.inflated_bytes < _WORTH_THREADS:
            arrays = list(map(read, largest_first))
        else:
            with ThreadPoolExecutor(os.cpu_count()) as threads:
                arrays = list(threads.map(read, largest_first))
        by_name = {tensor.name: array for tensor, array in zip(largest_first, arrays, strict=True)}
        variant = Variant(
            name=name,
            graph=bytes(self._content(record.graph, check)),
            tensors={tensor.name: by_name[tensor.name] for tensor in record.tensors},
            profile=record.profile,
        )
        # The bytes in memory do not change: what was right once need not be hashed again.
        self._verified.add(name)
        return variant

    def verify(self) -> None:
        """Inflates and checks every entry, a few at a time.

        Raises:
            PackageError: naming the first entry that is not what the manifest declares.
        """

        def check(record: EntryRecord) -> None:  # returns nothing, so that nothing is kept
            if isinstance(record, TensorRecord):
                self._tensor(record, check=True)
            else:
                self._content(record, check=True)

        with ThreadPoolExecutor(os.cpu_count()) as threads:
            for variant in self.manifest.variants:
                for _ in threads.map(check, variant.entries):
                    pass
                self._verified.add(variant.name)

    def _content(self, record: EntryRecord, check: bool) -> bytes | bytearray:
        try:
            content = inflate(self._entries[record.entry].stream, record.inflated)
        except PackageError as problem:
            raise PackageError(f"entry {record.entry!r}: {problem}") from problem
        if check and (found := hashlib.sha256(content).hexdigest()) != record.sha256:
            raise PackageError(f"entry {record.entry!r} has sha256 {found}, not {record.sha256} as declared")
        return content

    def _tensor(self, record: TensorRecord, check: bool) -> NDArray[Any]:
        try:
            return decode(self._content(record, check), record.coding, record.dtype, record.shape)
        except PackageError as problem:
            raise PackageError(f"tensor {record.name!r}: {problem}") from problem


def _pack_variant(variant: Variant) -> tuple[VariantRecord, list[Entry]]:
    names = sorted(variant.tensors)
    entries = [f"{variant.name}/tensors/{index:04d}.bin" for index in range(len(names))]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        tensors = list(threads.map(_pack_tensor, entries, names, (variant.tensors[name] for name in names)))
    graph = Entry.pack(f"{variant.name}/graph.onnx", variant.graph)
    record = VariantRecord(
        name=variant.name,
        profile=variant.profile,
        graph=EntryRecord(**_describe(graph, variant.graph)),
        tensors=tuple(record for record, _ in tensors),
    )
    return record, [graph, *(entry for _, entry in tensors)]


def _pack_tensor(entry_name: str, name: str, array: NDArray[Any]) -> tuple[TensorRecord, Entry]:
    """In the coding that deflates to fewer bytes, judged at a fast level; dense where both are equal."""
    if array.dtype.name not in get_args(DType):
        known = ", ".join(get_args(DType))
        raise PackageError(f"tensor {name!r} is {array.dtype}; a package holds {known}")
    codings: tuple[Coding, ...] = get_args(Coding)
    contents = {coding: encode(array, coding) for coding in codings}
    coding = min(codings, key=lambda coding: quick_size(contents[coding]))
    entry = Entry.pack(entry_name, contents[coding])
    record = TensorRecord(
        name=name,
        dtype=cast("DType", array.dtype.name),
        shape=array.shape,
        coding=coding,
        **_describe(entry, contents[coding]),
    )
    return record, entry


def _describe(entry: Entry, content: bytes) -> dict[str, Any]:
    return {
        "entry": entry.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "deflated": len(entry.stream),
        "inflated": entry.size,
    }


def _read_manifest(entries: Mapping[str, Entry]) -> Manifest:
    """The manifest, after it and the container have been checked against each other."""
    if next(iter(entries), None) != MANIFEST:
        raise PackageError(f"the package does not begin with {MANIFEST!r}, so it is no portfolio")
    entry = entries[MANIFEST]
    if entry.size > _LARGEST_MANIFEST:
        raise PackageError(f"{MANIFEST} declares {entry.size} bytes; {_LARGEST_MANIFEST} is the most allowed")
    try:
        text = inflate(entry.stream, entry.size)
    except PackageError as problem:
        raise PackageError(f"entry {MANIFEST!r}: {problem}") from problem
    if zlib.crc32(text) != entry.crc:
        raise PackageError(f"{MANIFEST} is damaged: its CRC-32 is not {entry.crc:#010x}")
    manifest = Manifest.from_json(text)

    declared = [record for variant in manifest.variants for record in variant.entries]
    names = [MANIFEST, *(record.entry for record in declared)]
    if names != list(entries):
        missing, extra = set(names) - set(entries), set(entries) - set(names)
        raise PackageError(
            f"the entries are not those of the manifest, in its order: missing {sorted(missing)}, "
            f"not declared {sorted(extra)}"
        )
    for record in declared:
        entry = entries[record.entry]
        if (len(entry.stream), entry.size) != (record.deflated, record.inflated):
            raise PackageError(
                f"entry {record.entry!r} has {len(entry.stream)} bytes deflated and {entry.size} inflated; "
                f"the manifest says {record.deflated} and {record.inflated}"
            )
    return manifest
