"""What is in a package, read by the standard library and one element at a time; checks nothing."""

from __future__ import annotations

import io
import json
import math
import zipfile
from typing import Any

import numpy as np

Content = dict[str, tuple[bytes, dict[str, tuple[str, tuple[int, ...], bytes]]]]


def contents(package: bytes) -> Content:
    """By variant: its graph, and by name each tensor's dtype, shape and little-endian bytes."""
    found: Content = {}
    with zipfile.ZipFile(io.BytesIO(package)) as archive:
        for variant in json.loads(archive.read("manifest.json"))["variants"]:
            tensors = {
                record["name"]: (record["dtype"], tuple(record["shape"]), _tensor(archive, record))
                for record in variant["tensors"]
            }
            found[variant["name"]] = (archive.read(variant["graph"]["entry"]), tensors)
    return found


def _tensor(archive: zipfile.ZipFile, record: dict[str, Any]) -> bytes:
    content, coding = archive.read(record["entry"]), record["coding"]
    item, size = np.dtype(record["dtype"]).itemsize, math.prod(record["shape"])
    where: bytes = b""
    if coding == "sparse":
        where, content = content[: (size + 7) // 8], content[(size + 7) // 8 :]
    elif coding in ("gaps", "mask"):
        content, where = content[: record["values"] * item], content[record["values"] * item :]
    count = len(content) // item
    values = []
    for index in range(count):
        bits = sum(content[plane * count + index] << 8 * plane for plane in range(item))
        if coding in ("whole", "gaps", "mask") and record["dtype"].startswith("float"):
            bits = bits >> 1 | (bits & 1) << (8 * item - 1)
        values.append(bits.to_bytes(item, "little"))
    if coding in ("whole", "dense"):
        return b"".join(values)
    elements = bytearray(size * item)
    for value, position in zip(values, _gaps(where) if coding == "gaps" else _mask(where), strict=True):
        elements[position * item : (position + 1) * item] = value
    return bytes(elements)


def _gaps(gaps: bytes) -> list[int]:
    found, position = [], 0
    for gap in gaps:
        position += gap
        if gap < 255:
            found.append(position)
            position += 1
    return found


def _mask(mask: bytes) -> list[int]:
    return [8 * index + bit for index, byte in enumerate(mask) for bit in range(8) if byte >> bit & 1]
