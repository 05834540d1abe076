"""Module 7: the deployable package, ``portfolio.zip``.

An ordinary ZIP with DEFLATE: ``manifest.json`` first, then per variant, smallest first, its
``graph.onnx`` (no weights) and its tensors, each in the coding that makes it smallest
(`shifter.portfolio.coding`). Entries inflate independently of one another. The same variants,
packed by the same version of the same DEFLATE library, give the same bytes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast, get_args

import numpy as np
from numpy.typing import NDArray

from shifter.errors import GraphError, PackageError
from shifter.graph_check import Declared, check_against
from shifter.portfolio import container
from shifter.portfolio.coding import WRITTEN, DType, decode, encode
from shifter.portfolio.container import Entry
from shifter.portfolio.deflating import GREATEST_EXPANSION, check_expansion, crc32, inflate, quick_size
from shifter.portfolio.manifest import EntryRecord, Manifest, TensorRecord, VariantRecord
from shifter.portfolio.source import Source
from shifter.values import InputSpec, Profile, Variant

MANIFEST = "manifest.json"
# A manifest has as much to say as there are entries, each of which takes a hundred bytes of the package or
# more. Parsed, and refused with a complaint of each of its parts, it takes up to 200 times its length.
_SMALL_MANIFEST, _MANIFEST_PER_ENTRY = 256 << 10, 2 << 10
# Below this many deflated bytes, a thread saves little more than starting it takes.
_WORTH_THREADS = 1 << 19
# Sizes at DEFLATE's fastest level tell which codings are worth comparing at its strongest.
_NEAR = 1.1
# Nor does a hundredth matter: the first coding of `WRITTEN` is the fastest.
_SAME = 1.01


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
            stored, with a profile that is not finite, or if `Portfolio` would refuse it.
    """
    ordered = sorted(variants, key=lambda v: (sum(t.nbytes for t in v.tensors.values()), v.name))
    if not ordered:
        raise PackageError("a portfolio needs at least one variant")
    for variant in ordered:
        if why := variant.profile.exactness.refusal:
            raise PackageError(f"{variant.name} cannot be packed: {why}")
    try:
        packed = [_pack_variant(variant) for variant in ordered]
        records = tuple(record for record, _ in packed)
        text = Manifest(
            model=model, provenance=dict(provenance), input=input_spec, variants=records
        ).to_json()
    except PackageError:
        raise
    except ValueError as problem:
        raise PackageError(f"these variants cannot be packed: {problem}") from problem
    data = container.write([Entry.pack(MANIFEST, text), *(e for _, entries in packed for e in entries)])
    Portfolio(data)  # what is packed can be opened
    return data


class Portfolio:
    """A package held in memory, deflated; immutable, so any number of threads may read it."""

    def __init__(self, data: bytes) -> None:
        self._entries = container.read(data)
        self.manifest = _read_manifest(self._entries, len(data))
        """Everything the package says of itself, sizes and digests of each entry included."""
        self.digest = hashlib.sha256(data).hexdigest()
        """sha256 of the package's bytes."""
        self.deflated_bytes = len(data)
        """Bytes of the package, which stay in memory."""
        self._variants = {variant.name: variant for variant in self.manifest.variants}
        # Version 1 did not compare a profile's bytes with the tensors'.
        self._profiles = MappingProxyType(
            {
                name: replace(variant.profile, tensor_bytes=variant.tensor_bytes)
                for name, variant in self._variants.items()
            }
        )
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
        return self._profiles

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

        Its tensors share one piece of memory, which stays as long as any of them.

        Raises:
            KeyError: if there is no such variant.
            PackageError: if the content of an entry is not what the manifest declares.
        """
        record = self._variants[name]
        check = name not in self._verified
        # All tensors in one piece of memory, which comes in huge pages where the system has them:
        # most of the time that a piece for each tensor takes is spent on small pages.
        starts = [0, *accumulate(_aligned(tensor.tensor_bytes) for tensor in record.tensors)]
        memory = np.zeros(starts[-1], np.uint8)
        arrays: dict[str, NDArray[Any]] = {}
        largest_first = iter(sorted(range(len(starts) - 1), key=lambda i: -record.tensors[i].deflated))

        def read() -> None:
            for index in largest_first:
                tensor = record.tensors[index]
                room = memory[starts[index] : starts[index] + tensor.tensor_bytes]
                arrays[tensor.name] = self._tensor(tensor, check, room)

        others = _cores() - 1
        if others and record.deflated_bytes >= _WORTH_THREADS:
            with ThreadPoolExecutor(others) as threads:
                reading = [threads.submit(read) for _ in range(others)]
                read()
            for each in reading:
                each.result()
        else:
            read()
        variant = Variant(
            name=name,
            graph=bytes(self._content(record.graph, check)),
            tensors={tensor.name: arrays[tensor.name] for tensor in record.tensors},
            profile=self._profiles[name],
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
                self._tensor(record, True, np.zeros(record.tensor_bytes, np.uint8))
            else:
                self._content(record, check=True)

        with ThreadPoolExecutor(_cores()) as threads:
            for variant in self.manifest.variants:
                for _ in threads.map(check, variant.entries):
                    pass
                self._verified.add(variant.name)

    def check_graphs(self) -> None:
        """Whether each graph is no more than arithmetic on its variant's tensors, as engines ask of it.

        Raises:
            PackageError: naming the first variant whose graph is more (`shifter.graph_check`).
        """
        for variant in self.manifest.variants:
            tensors = {tensor.name: Declared(tensor.dtype, tensor.shape) for tensor in variant.tensors}
            try:
                check_against(bytes(self._content(variant.graph, check=False)), tensors)
            except GraphError as problem:
                raise PackageError(f"the graph of variant {variant.name!r}: {problem}") from problem

    def _content(self, record: EntryRecord, check: bool) -> bytes | bytearray:
        entry = self._entries[record.entry]
        try:
            content = inflate(entry.stream, record.inflated)
        except PackageError as problem:
            raise PackageError(f"entry {record.entry!r}: {problem}") from problem
        if check and (found := hashlib.sha256(content).hexdigest()) != record.sha256:
            raise PackageError(f"entry {record.entry!r} has sha256 {found}, not {record.sha256} as declared")
        if check and (sum32 := crc32(content)) != entry.crc:  # which other tools go by
            raise PackageError(f"entry {record.entry!r} has CRC-32 {sum32:#010x}, not {entry.crc:#010x}")
        return content

    def _tensor(self, record: TensorRecord, check: bool, memory: NDArray[np.uint8]) -> NDArray[Any]:
        try:
            content = self._content(record, check)
            return decode(content, record.coding, record.dtype, record.shape, record.values, memory)
        except PackageError as problem:
            raise PackageError(f"tensor {record.name!r}: {problem}") from problem


def _pack_variant(variant: Variant) -> tuple[VariantRecord, list[Entry]]:
    names = sorted(variant.tensors)
    entries = [f"{variant.name}/tensors/{index:04d}.bin" for index in range(len(names))]
    with ThreadPoolExecutor(_cores()) as threads:
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
    """In the coding that deflates to the fewest bytes."""
    if array.dtype.name not in get_args(DType):
        known = ", ".join(get_args(DType))
        raise PackageError(f"tensor {name!r} is {array.dtype}; a package holds {known}")
    coded = {coding: encode(array, coding) for coding in WRITTEN}
    quick = {coding: quick_size(each.content, each.noise) for coding, each in coded.items()}
    entries = {
        coding: Entry.pack(entry_name, each.content, each.noise)
        for coding, each in coded.items()
        if quick[coding] <= _NEAR * min(quick.values())
    }
    smallest = min(len(entry.stream) for entry in entries.values())
    coding, entry = next(
        (coding, entry) for coding, entry in entries.items() if len(entry.stream) <= _SAME * smallest
    )
    record = TensorRecord(
        name=name,
        dtype=cast("DType", array.dtype.name),
        shape=array.shape,
        coding=coding,
        values=coded[coding].values,
        **_describe(entry, coded[coding].content),
    )
    return record, entry


def _describe(entry: Entry, content: bytes) -> dict[str, Any]:
    return {
        "entry": entry.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "deflated": len(entry.stream),
        "inflated": entry.size,
    }


def _read_manifest(entries: Mapping[str, Entry], package_bytes: int) -> Manifest:
    """The manifest, after it and the container have been checked against each other."""
    if next(iter(entries), None) != MANIFEST:
        raise PackageError(f"the package does not begin with {MANIFEST!r}, so it is no portfolio")
    entry = entries[MANIFEST]
    most = _SMALL_MANIFEST + _MANIFEST_PER_ENTRY * len(entries)
    if entry.size > most:
        raise PackageError(
            f"{MANIFEST} declares {entry.size} bytes; that of {len(entries)} entries has {most} at most"
        )
    try:
        text = inflate(entry.stream, entry.size)
    except PackageError as problem:
        raise PackageError(f"entry {MANIFEST!r}: {problem}") from problem
    if crc32(text) != entry.crc:
        raise PackageError(f"{MANIFEST} is damaged: its CRC-32 is not {entry.crc:#010x}")
    manifest = Manifest.from_json(text)

    declared = [record for variant in manifest.variants for record in variant.entries]
    names = [MANIFEST, *(record.entry for record in declared)]
    if names != list(entries):
        missing, extra = set(names) - set(entries), set(entries) - set(names)
        raise PackageError(
            f"the entries are not those of the manifest, in its order: missing {_few(missing)}, "
            f"not declared {_few(extra)}"
        )
    for record in declared:
        entry = entries[record.entry]
        if (len(entry.stream), entry.size) != (record.deflated, record.inflated):
            raise PackageError(
                f"entry {record.entry!r} has {len(entry.stream)} bytes deflated and {entry.size} inflated; "
                f"the manifest says {record.deflated} and {record.inflated}"
            )
        try:
            check_expansion(record.deflated, record.inflated)
        except PackageError as problem:
            raise PackageError(f"entry {record.entry!r}: {problem}") from problem
    for variant in manifest.variants:
        # So hardly anything is made of weights; a package that says so is made to fill memory.
        if variant.inflated_bytes > GREATEST_EXPANSION * package_bytes:
            raise PackageError(
                f"variant {variant.name!r} declares {variant.inflated_bytes} bytes, more than "
                f"{GREATEST_EXPANSION} times the {package_bytes} of the package"
            )
    return manifest


def _few(names: set[str]) -> str:
    return f"{sorted(names)[:3]}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"


def _aligned(length: int) -> int:
    return -(-length // 64) * 64


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))
