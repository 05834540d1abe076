"""Raw DEFLATE: libdeflate where the ``deflate`` package is installed, the standard library's zlib elsewhere.

Both read what the other wrote. What they write differs in length, so a package has the same
bytes only where the same library (of the same version) wrote it; its manifest's digests are taken
of the content, which does not depend on it. Both give up the interpreter lock while they work.

Signs and mantissas of weights are noise: DEFLATE would spend most of its time, packing and
inflating, to save less than a hundredth of them. They go into its *stored* blocks, which are only
copied. Such a block ends on a whole byte, so whatever a library writes can follow it: noise comes
first.
"""

from __future__ import annotations

import struct
import zlib
from types import ModuleType

from shifter.errors import PackageError

try:
    import deflate as _libdeflate

    libdeflate: ModuleType | None = _libdeflate
except ModuleNotFoundError:
    libdeflate = None

# DEFLATE cannot do better than 258 bytes for 2 bits; a declared size beyond it is a lie.
GREATEST_EXPANSION = 1032


_WORTH = 0.97
"""Noise that a fast level shortens below this share of its length is none."""
_LONGEST_STORED = 0xFFFF


def deflate(content: bytes, noise: int = 0) -> bytes:
    """``content`` as one raw DEFLATE stream, at the strongest level: packed once, kept for good.

    The first ``noise`` bytes are stored as they are, if that is what they are.
    """
    return _deflate(content, noise, strongest=True)


def quick_size(content: bytes, noise: int = 0) -> int:
    """About how long `deflate` would make it: its length at the fastest level."""
    return len(_deflate(content, noise, strongest=False))


def _deflate(content: bytes, noise: int, strongest: bool) -> bytes:
    if noise and len(_by_library(content[:noise], strongest=False)) < _WORTH * noise:
        noise = 0
    blocks = [
        content[start : min(start + _LONGEST_STORED, noise)] for start in range(0, noise, _LONGEST_STORED)
    ]
    # Not the last block, stored, padding; the length, and its complement (RFC 1951, 3.2.4).
    stored = (struct.pack("<B2H", 0, len(block), len(block) ^ 0xFFFF) + block for block in blocks)
    return b"".join([*stored, _by_library(content[noise:], strongest)])


def _by_library(content: bytes, strongest: bool) -> bytes:
    if libdeflate is not None:
        return bytes(libdeflate.deflate_compress(content, 12 if strongest else 1))
    packer = zlib.compressobj(9 if strongest else 1, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(content) + packer.flush()


def check_expansion(deflated: int, size: int) -> None:
    """Raises PackageError if no DEFLATE stream of so many bytes holds ``size``."""
    if size > GREATEST_EXPANSION * deflated:
        raise PackageError(
            f"{deflated} deflated bytes cannot hold the {size} declared: "
            f"DEFLATE reaches {GREATEST_EXPANSION}-fold at most"
        )


def inflate(stream: bytes | memoryview, size: int) -> bytes | bytearray:
    """The ``size`` bytes that a raw DEFLATE stream holds; no more than ``size`` is ever allocated.

    Raises:
        PackageError: if the stream is broken, or holds more or fewer bytes.
    """
    check_expansion(len(stream), size)
    # Either library takes a limit of 0 for something else than a limit.
    limit = max(size, 1)
    content: bytes | bytearray
    if libdeflate is not None:
        try:
            content = libdeflate.deflate_decompress(stream, limit)
        except (libdeflate.DeflateError, ValueError) as problem:
            raise _not_this_size(size) from problem
    else:
        reader = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            content = reader.decompress(stream, limit)
            more = b"" if reader.eof else reader.decompress(reader.unconsumed_tail, 1)
        except zlib.error as problem:
            raise _not_this_size(size) from problem
        if more or not reader.eof:
            raise _not_this_size(size)
    if len(content) != size:
        raise _not_this_size(size)
    return content


def _not_this_size(size: int) -> PackageError:
    return PackageError(f"the DEFLATE stream is broken or does not hold the {size} bytes declared")
