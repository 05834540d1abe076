"""Raw DEFLATE: libdeflate where the ``deflate`` package is installed, the standard library's zlib elsewhere.

Both read what the other wrote. What they write differs in length, so a package has the same
bytes only where the same library (of the same version) wrote it; its manifest's digests are taken
of the content, which does not depend on it. Both give up the interpreter lock while they work.
"""

from __future__ import annotations

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


def deflate(content: bytes) -> bytes:
    """``content`` as one raw DEFLATE stream, at the strongest level: packed once, kept for good."""
    return _deflate(content, strongest=True)


def quick_size(content: bytes) -> int:
    """About how long `deflate` would make it: its length at the fastest level."""
    return len(_deflate(content, strongest=False))


def _deflate(content: bytes, strongest: bool) -> bytes:
    if libdeflate is not None:
        return bytes(libdeflate.deflate_compress(content, 12 if strongest else 1))
    packer = zlib.compressobj(9 if strongest else 1, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(content) + packer.flush()


def inflate(stream: bytes | memoryview, size: int) -> bytes | bytearray:
    """The ``size`` bytes that a raw DEFLATE stream holds; no more than ``size`` is ever allocated.

    Raises:
        PackageError: if the stream is broken, or holds more or fewer bytes.
    """
    if size > GREATEST_EXPANSION * len(stream):
        raise PackageError(
            f"{len(stream)} deflated bytes cannot hold the {size} declared: "
            f"DEFLATE reaches {GREATEST_EXPANSION}-fold at most"
        )
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
