"""Coding of one tensor before DEFLATE.

DEFLATE alone wastes space on pruned weights: it spells every zero, and the four bytes of a float
have nothing in common with one another. So a tensor is stored as values and, where zeros are left
out, their positions (`shifter.portfolio.positions`):

- ``whole``: all elements;
- ``gaps``: the elements that are not zero, then how many zeros stand before each;
- ``mask``: the elements that are not zero, then one bit per element.

Values are little-endian. Floats are rotated left by one bit, which brings the sign to the end and
float32's exponent into a byte of its own. Then bytes are grouped by significance, the lowest
first: the first bytes of all values, then the second bytes, and so on. So what has a pattern,
exponents and positions, stands together at the end. What stands before is `Coded.noise`: signs and
mantissas, of which DEFLATE makes nothing, and which need not pass through it
(`shifter.portfolio.deflating`).

Format version 1 had ``dense`` and ``sparse``, which are read, never written: as ``whole`` and
``mask``, but floats are not rotated and the mask stands first.

"Zero" speaks of bits, so -0.0 and NaN payloads survive.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from shifter.errors import PackageError
from shifter.portfolio import positions

Coding = Literal["whole", "gaps", "mask", "dense", "sparse"]
WRITTEN: Final[tuple[Coding, ...]] = ("whole", "gaps", "mask")
"""What `encode` takes, the fastest to decode first."""
VERSION_1: Final[tuple[Coding, ...]] = ("dense", "sparse")
DType = Literal[
    "float64", "float32", "float16", "bool",
    "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8",
]  # fmt: skip

_EXPONENT_BYTES: Final = {"float64": 2, "float32": 1, "float16": 1}


@dataclass(frozen=True)
class Coded:
    """A coded tensor.

    Args:
        content: its bytes. values: how many elements are stored.
        noise: length of the part of ``content``, from its beginning, that hardly deflates.
    """

    content: bytes
    values: int
    noise: int


def encode(array: NDArray[Any], coding: Coding) -> Coded:
    """``array`` (any shape, a dtype of `DType`) in one of the codings of `WRITTEN`."""
    assert coding in WRITTEN, coding
    little = array.dtype.newbyteorder("<")
    bits = np.ascontiguousarray(array, dtype=little).reshape(-1).view(_bit_pattern(little))
    where = b""
    if coding != "whole":
        kept = bits != 0
        where = positions.to_gaps(kept) if coding == "gaps" else positions.to_mask(kept)
        bits = bits[kept]
    exponents = _EXPONENT_BYTES.get(array.dtype.name, 0)
    if exponents:
        one, others = bits.dtype.type(1), bits.dtype.type(8 * little.itemsize - 1)
        bits = (bits << one) | (bits >> others)
    grouped = bits.view(np.uint8).reshape(-1, little.itemsize).T.tobytes()
    noise = bits.size * (little.itemsize - exponents) if exponents else 0
    return Coded(grouped + where, bits.size, noise)


def decode(
    coded: bytes | bytearray | memoryview,
    coding: Coding,
    dtype: DType,
    shape: tuple[int, ...],
    values: int | None = None,
    zeros: NDArray[np.uint8] | None = None,
) -> NDArray[Any]:
    """The tensor that `encode` was given, bit for bit; C-contiguous.

    Args:
        values: `Coded.values`; None for the codings of version 1, whose length tells it.
        zeros: where the tensor is made: all zero, of its length in bytes, aligned for its dtype.
            Unless given, it gets memory of its own.

    Raises:
        PackageError: if ``coded`` is not the coding of a tensor of this dtype and shape.
    """
    check_length(len(coded), coding, dtype, shape, values)
    stored = np.frombuffer(coded, np.uint8)
    size, little = math.prod(shape), np.dtype(dtype).newbyteorder("<")
    where = stored[:0]
    if coding == "sparse":
        where, stored = np.split(stored, [(size + 7) // 8])
    elif coding in ("gaps", "mask"):
        assert values is not None
        stored, where = np.split(stored, [values * little.itemsize])
    planes = stored.reshape(little.itemsize, -1)
    rotated = coding in WRITTEN and dtype in _EXPONENT_BYTES
    if zeros is None:
        zeros = np.zeros(size * little.itemsize, np.uint8)
    # Of bit patterns: numpy scatters whole numbers faster.
    patterns = zeros.view(_bit_pattern(little))
    if coding in ("whole", "dense"):
        for start in range(0, size, positions.AT_A_TIME):
            some = slice(start, start + positions.AT_A_TIME)
            _ungroup(planes[:, some], rotated, into=patterns[some])
    else:
        read = positions.from_gaps if coding == "gaps" else positions.from_mask
        _scatter(planes, rotated, read(where, size), into=patterns)
    if dtype == "bool" and patterns.max(initial=0) > 1:
        raise PackageError(f"a truth value is 0 or 1, not {patterns.max()}")
    return patterns.view(little).astype(dtype, copy=False).reshape(shape)


def check_length(
    length: int, coding: Coding, dtype: DType, shape: tuple[int, ...], values: int | None = None
) -> None:
    """Refuses a coded length that no tensor of this dtype and shape can have; allocates nothing.

    Raises:
        PackageError: with the length that would be right.
    """
    size, item = math.prod(shape), np.dtype(dtype).itemsize
    mask = (size + 7) // 8
    if min(shape, default=0) < 0:
        raise PackageError(f"no tensor has the shape {shape}")
    if (values is None) != (coding in VERSION_1) or not 0 <= (values or 0) <= size:
        raise PackageError(f"a {coding} tensor of shape {shape} cannot have {values} values stored")
    if coding == "sparse":
        right = f"{mask} for the mask and a multiple of {item} up to {size * item} for the values"
        fits = mask <= length <= mask + size * item and (length - mask) % item == 0
    elif coding == "gaps":
        assert values is not None
        least, most = positions.gaps_lengths(values, size)
        right = f"{values * item} for the values and from {least} to {most} for the gaps"
        fits = least <= length - values * item <= most
    else:
        exact = size * item if coding != "mask" else (values or 0) * item + mask
        right, fits = f"exactly {exact}", length == exact
        if coding == "whole" and values != size:
            right, fits = f"{size} values", False
    if not fits:
        raise PackageError(
            f"{length} bytes cannot be a {coding} {dtype} tensor of shape {shape}: it takes {right}"
        )


def _bit_pattern(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(f"<u{dtype.itemsize}")


def _scatter(
    planes: NDArray[np.uint8], rotated: bool, places: Iterable[NDArray[np.intp]], into: NDArray[Any]
) -> None:
    """Writes values to their places.

    Raises:
        PackageError: if there are more places than values, or fewer.
    """
    values, done = planes.shape[1], 0
    room = np.empty(min(values, positions.AT_A_TIME), into.dtype)
    for at in places:
        if done + at.size > values:
            raise PackageError(f"{values} values are stored, and positions of more")
        _ungroup(planes[:, done : done + at.size], rotated, into=room[: at.size])
        into[at] = room[: at.size]
        done += at.size
    if done < values:
        raise PackageError(f"{values} values are stored, and positions of {done}")


def _ungroup(planes: NDArray[np.uint8], rotated: bool, into: NDArray[Any]) -> None:
    """Writes the bit patterns of values whose bytes are ``planes``, the lowest first."""
    eight, one, others = (into.dtype.type(count) for count in (8, 1, 8 * into.itemsize - 1))
    into[:] = planes[-1]
    for plane in planes[-2::-1]:
        into <<= eight
        into |= plane
    if rotated:
        rest = into >> one
        into <<= others
        into |= rest
