"""Mutated packages, each opened and inflated to the end, with little memory left to the process.

::

    python tests/portfolio/fuzz.py FIRST COUNT      (mutants FIRST to FIRST + COUNT - 1)

Bytes, headers and containers are mutated as they are: such a package is refused, unless not a byte has
changed. Manifests and codings are mutated and then deflated, digested and declared anew, so that
the layers below are reached: such a package is refused, or read as `reference.py` reads it, which
knows nothing of the code under test. Nothing but PackageError may be raised, MemoryError neither. The
last line is a JSON object of what was seen. Each mutant depends on its number alone.
"""

from __future__ import annotations

import dataclasses
import json
import random
import resource
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from shifter.errors import PackageError
from shifter.portfolio import Portfolio, container, pack, package, positions
from shifter.portfolio.container import Entry
from shifter.portfolio.deflating import deflate, inflate
from shifter.values import Exactness, InputSpec, Latency, Profile, Variant

sys.path.insert(0, str(Path(__file__).parent))
from reference import contents

ALLOWED = 96 << 20
"""Bytes of address space beyond what the process has before the first mutant: those that a package may
declare (1032 times its length: some 8 MB), its manifest refused (300 KiB of brackets: 60 MB), and holes."""

Bytes = bytes
Chance = random.Random
NUMBERS = (0, 1, 2, -1, 3, 7, 127, 255, 256, 65535, 2**31, 2**32 - 1, 2**32, 2**62, 2**63, 2**64, 10**30)
TEXTS = ("", "..", "../x", "/etc/passwd", "a\\b", "\0", "\x1b[31m", "\u202e", "manifest.json",
         "x" * 5000, "float32", "int8", "bool", "gaps", "mask", "whole", "dense", "0" * 64, "é")  # fmt: skip
JSON = ("NaN", "Infinity", "-Infinity", "1e999", "-0.0", "1e-999", "9" * 5000, "[" * 3000,
        "[" * 3000 + "]" * 3000,
        '{"a":' * 3000 + "1" + "}" * 3000, '"\\ud800"', '"\\udc00\\ud800"', '{"a": 1, "a": 2}', "01", "[1,]",
        '"\\u0000"', '"\n"', "nul", "'a'", "\ufeff1", "[]", "{}", '"' + "x" * 250_000 + '"',
        *("[" + each * count + "0]"
          for each in ("[],", "{},", "0.5,") for count in (8_000, 32_000, 80_000)))  # fmt: skip


def made() -> list[Variant]:
    """Two variants in which every coding, and most dtypes, appear."""
    chance = np.random.default_rng(3)

    def variant(name: str, width: int, density: float) -> Variant:
        sparse = chance.standard_normal((width, 4, 3, 3)).astype(np.float32)
        sparse[chance.random(sparse.shape) > density] = 0
        nearly = chance.standard_normal(60).astype(np.float32)
        nearly[:5] = 0
        far = np.zeros(700, np.float32)
        far[[0, 300, 699]] = 1.5, -0.0, np.nan
        tensors = {
            "sparse": sparse,
            "nearly": nearly,
            "far": far,
            "dense": chance.standard_normal(width).astype(np.float32),
            "half": chance.standard_normal(7).astype(np.float16),
            "double": chance.standard_normal((2, 2)),
            "axes": np.array([0, -1, 2**40], np.int64),
            "truth": chance.random(9) > 0.5,
            "byte": np.arange(5, dtype=np.uint8),
            "scalar": np.float32(0.5).reshape(()),
            "nothing": np.zeros((0, 3), np.float32),
        }
        latency = Latency(1.0, 0.9, 1.1, 2.0, 30)
        profile = Profile(
            1, 4.0, 999, 99, 500, sum(t.nbytes for t in tensors.values()), 4000, 0.9, 0.89, latency, 8,
            latency, latency, Exactness(1e-16, 1e-7, 1e-7, 64),
        )  # fmt: skip
        return Variant(name, f"graph of {name}, ".encode() * 9, tensors, profile)

    return [variant("16x", 4, 0.1), variant("2x", 8, 0.4)]


def whole(variants: list[Variant]) -> bytes:
    spec = InputSpec(3, 8, 8, 255.0, (0.1, 0.2, 0.3), (1.0, 0.5, 0.25), ("cat", "dog"))
    return pack(variants, spec, model="vgg", provenance={"recipe": "0123abcd"})


ORIGINAL = whole(made())
OTHER = Path(__file__).with_name("version-1.zip").read_bytes()
ENTRIES = dict(container.read(ORIGINAL))


# ---- bytes, headers, containers


def bytes_changed(chance: Chance) -> bytes:
    data = bytearray(ORIGINAL)
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        at, length = chance.randrange(len(data)), chance.choice((1, 2, 4, 40, 400))
        other = chance.choice((data, OTHER))
        source = chance.randrange(len(other))
        match chance.randrange(7):
            case 0:
                data[at] ^= 1 << chance.randrange(8)
            case 1:
                data[at] = chance.randrange(256)
            case 2:
                del data[at : at + length]
            case 3:
                data[at:at] = chance.randbytes(length)
            case 4:
                data[at : at + length] = other[source : source + length]
            case 5:
                data[at : at + length] = bytes([chance.choice((0, 255))]) * length
            case _:
                del data[max(at, 1) :]
    return bytes(data)


def headers_changed(chance: Chance) -> bytes:
    """One field of an entry's headers, in both of them or in one; or of the end of the directory."""
    data = bytearray(ORIGINAL)
    end = len(data) - 22
    if chance.random() < 0.3:
        at, length = chance.choice(((4, 2), (6, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2)))
        places = [end + at]
    else:
        (local, central) = chance.choice(offsets(data))
        at, length = chance.choice(
            ((0, 4), (4, 2), (6, 2), (8, 2), (10, 2), (12, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2))
        )
        places = [local + at, central + at + 2]
        if chance.random() < 0.4:
            places = [chance.choice(places)]
    now = int.from_bytes(data[places[0] : places[0] + length], "little")
    value = chance.choice((0, 1, now + 1, now - 1, now ^ 8, 2 * now, chance.randrange(2**32), 2**32 - 1))
    for place in places:
        data[place : place + length] = (value % 256**length).to_bytes(length, "little")
    return bytes(data)


def offsets(data: bytearray) -> list[tuple[int, int]]:
    """Where each entry's two headers begin."""
    count, _, start = struct.unpack_from("<H2L", data, len(data) - 12)
    found, local = [], 0
    for _ in range(count):
        deflated, _, name = struct.unpack_from("<2LH", data, start + 20)
        found.append((local, start))
        local += 30 + name + deflated
        start += 46 + name
    return found


def container_changed(chance: Chance) -> bytes:
    """Entries left out, doubled, renamed, exchanged, or with a stream or a size that is not theirs."""
    entries = list(ENTRIES.values())
    at, other = chance.randrange(len(entries)), chance.randrange(len(entries))
    entry = entries[at]
    bomb = deflate(bytes(chance.choice((10**5, 10**6))))
    match chance.randrange(8):
        case 0:
            del entries[at]
        case 1:
            entries.insert(other, dataclasses.replace(entry))
        case 2:
            entries[at], entries[other] = entries[other], entry
        case 3:
            entries[at] = dataclasses.replace(entry, stream=entries[other].stream)
        case 4:
            entries[at] = dataclasses.replace(
                entry, size=chance.choice((0, entry.size + 1, 2**32 - 1, 10**6))
            )
        case 5:
            entries[at] = dataclasses.replace(entry, stream=bomb)
        case 6:
            entries[at] = dataclasses.replace(entry, stream=bomb, size=chance.choice((10**5, 10**6)))
        case _:
            name = chance.choice(
                ("../x", "/x", "x", entries[other].name, "a/../b", "x" * 60_000, "C:x", ".x")
            )
            object.__setattr__(entries[at], "name", name)  # past the check of names
            data = unchecked(entries)
            object.__setattr__(entries[at], "name", next(key for key, e in ENTRIES.items() if e is entry))
            return data
    return unchecked(entries)


def unchecked(entries: list[Entry]) -> bytes:
    """As ``container.write``, which refuses entries of one name."""
    body, directory = b"", b""
    for entry in entries:
        directory += entry.central_header(len(body))
        body += entry.local_header() + bytes(entry.stream)
    count = len(entries)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(directory), len(body), 0)
    return body + directory + end


# ---- manifests and codings, all declared anew


def manifest() -> dict[str, Any]:
    entry = ENTRIES["manifest.json"]
    found: dict[str, Any] = json.loads(bytes(inflate(entry.stream, entry.size)))
    return found


def manifest_changed(chance: Chance) -> bytes:
    told = manifest()
    raw = None
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        holder, key = chance.choice(places(told))
        match chance.randrange(8):
            case 0:
                del holder[key]
            case 1 | 2:
                holder[key] = chance.choice(NUMBERS)
            case 3:
                holder[key] = chance.choice(TEXTS)
            case 4:
                other, there = chance.choice(places(told))
                holder[key] = json.loads(json.dumps(other[there]))
            case 5:
                holder[key] = chance.choice(([], {}, None, True, False, 0.5, [1, 2], {"a": 1}, 1e300))
            case 6 if isinstance(holder, dict):
                holder[chance.choice(("extra", "", "version", "\x1b[2J" * 9000))] = 1
            case _:
                holder[key], raw = "@@@", chance.choice(JSON)
    text = json.dumps(told)
    if raw is not None:
        text = text.replace('"@@@"', raw)
    return declared(text.encode(errors="surrogatepass"), agreeing=chance.random() < 0.5)


def places(told: Any) -> list[tuple[Any, Any]]:
    """Every place of a JSON document: what holds it, and under which key or index."""
    found: list[tuple[Any, Any]] = []
    keys = told.items() if isinstance(told, dict) else enumerate(told) if isinstance(told, list) else ()
    for key, value in keys:
        found += [(told, key), *places(value)]
    return found


def declared(text: bytes, agreeing: bool = True, streams: dict[str, Entry] | None = None) -> bytes:
    """The package with this manifest, and the container's sizes those that it declares."""
    entries = ENTRIES | (streams or {}) | {"manifest.json": Entry.pack("manifest.json", text)}
    if agreeing:
        try:
            for record in records(json.loads(text)):
                entry = entries[record["entry"]]
                entries[entry.name] = dataclasses.replace(entry, size=int(record["inflated"]) % 2**32)
        except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
            pass  # a manifest that names no entries, or no sizes
    return unchecked(list(entries.values()))


def records(told: dict[str, Any]) -> list[dict[str, Any]]:
    return [record for variant in told["variants"] for record in (variant["graph"], *variant["tensors"])]


def coding_changed(chance: Chance) -> bytes:
    """A tensor's coded bytes, or what the manifest says of them; with digest and sizes that are right."""
    told = manifest()
    variant = chance.choice(told["variants"])
    record = chance.choice(variant["tensors"])
    entry = ENTRIES[record["entry"]]
    content = bytearray(inflate(entry.stream, entry.size))
    for _ in range(chance.choice((1, 1, 2, 4))):
        at = chance.randrange(len(content) + 1)
        match chance.randrange(9):
            case 0 | 1 if content:
                content[at - 1] ^= 1 << chance.randrange(8)
            case 2:
                content[at : at + chance.randrange(3)] = chance.randbytes(chance.randrange(3))
            case 3:
                content[at : at + 9] = bytes([chance.choice((0, 1, 254, 255))]) * chance.randrange(12)
            case 4:
                record["coding"] = chance.choice(("whole", "gaps", "mask", "dense", "sparse"))
            case 5:
                record["dtype"] = chance.choice(
                    ("float64", "float32", "float16", "bool", "int8", "uint16", "int64")
                )
            case 6:
                shape = record["shape"]
                record["shape"] = chance.choice(
                    (shape[::-1], shape[1:], [*shape, 1], [*shape, 2], [700], [2**20])
                )
            case 7:
                record["values"] = chance.choice(
                    (None, 0, 1, len(content), (record["values"] or 0) + 1, 2**40)
                )
            case _:
                content[at:] = bytes(chance.choice((0, 7, 4000, 10**6)))
    new = Entry.pack(record["entry"], bytes(content))
    record |= {"sha256": sha256(content).hexdigest(), "deflated": len(new.stream), "inflated": new.size}
    told["variants"].sort(key=lambda v: (sum(size(t) for t in v["tensors"]), v["name"]))
    streams = {record["entry"]: new}
    order = [r["entry"] for r in records(told)]
    ordered = {name: streams.get(name, ENTRIES[name]) for name in order}
    text = json.dumps(told).encode()
    return unchecked([Entry.pack("manifest.json", text), *ordered.values()])


def size(record: dict[str, Any]) -> int:
    return int(np.prod(record["shape"], dtype=object)) * np.dtype(record["dtype"]).itemsize


STRICT = (bytes_changed, headers_changed, container_changed)
"""What these make is refused, unless it is the original."""
DEEP = (manifest_changed, manifest_changed, coding_changed, coding_changed)
KINDS: tuple[Callable[[Chance], bytes], ...] = (*STRICT, *DEEP)


def check(number: int) -> tuple[str, str]:
    """The mutant's kind, and whether it was refused or accepted; AssertionError if it was wrongly."""
    chance = random.Random(number)
    kind = chance.choice(KINDS)
    data = kind(chance)
    positions.AT_A_TIME = chance.choice((8, 64, 1 << 18))
    package._WORTH_THREADS = 0 if chance.random() < 0.1 else 1 << 19
    try:
        portfolio = Portfolio.open(data)
        portfolio.verify()
    except PackageError as refusal:
        if len(str(refusal)) > 3_000:
            raise AssertionError("a message that nobody reads") from None
        return kind.__name__, "refused"
    if kind in STRICT and data != ORIGINAL:
        raise AssertionError("accepted, though it is not what was packed")
    expected = contents(data)
    found = {
        name: (
            variant.graph,
            {key: (t.dtype.name, t.shape, t.tobytes()) for key, t in variant.tensors.items()},
        )
        for name, variant in ((name, portfolio.inflate(name)) for name in portfolio.names)
    }
    assert found == expected, "accepted, with another content"
    return kind.__name__, "accepted"


def main(first: int, count: int) -> None:
    Portfolio.open(ORIGINAL).verify()
    limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + ALLOWED
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seen: Counter[str] = Counter()
    slowest = (0.0, first)
    for number in range(first, first + count):
        began = time.perf_counter()
        try:
            seen[" ".join(check(number))] += 1
        except BaseException:
            print(f"mutant {number}", file=sys.stderr)
            raise
        slowest = max(slowest, (time.perf_counter() - began, number))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps({"seen": seen, "grown_kib": grown, "slowest": slowest}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
