"""Sparse coding of one tensor, before DEFLATE.

DEFLATE alone wastes space on pruned weights: it spells every zero, and the four bytes of a float
have nothing in common with one another. So a tensor becomes either

- ``dense``: all elements, or
- ``sparse``: one bit per element (1 where the element's bit pattern is not all zeros; least
  significant bit first, the last byte padded with zeros), then the elements whose bit is 1,

and in both the elements are little-endian with their bytes grouped by significance: the first
bytes of all elements, then the second bytes, and so on. Signs and exponents thus stand together,
where DEFLATE finds what they share. "Zero" speaks of bits, so -0.0 and NaN payloads survive.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from shifter.errors import PackageError

Coding = Literal["dense", "sparse"]
DType = Literal[
    "float64", "float32", "float16", "bool",
    "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8",
]  # fmt: skip


def encode(array: NDArray[Any], coding: Coding) -> bytes:
    """The coded bytes of ``array`` (any shape, a dtype of `DType`)."""
    elements = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).reshape(-1)
    if coding == "dense":
        return _group(elements)
    kept = elements.view(_bit_pattern(elements.dtype)) != 0
    return np.packbits(kept, bitorder="little").tobytes() + _group(elements[kept])


def decode(
    coded: bytes | bytearray | memoryview, coding: Coding, dtype: DType, shape: tuple[int, ...]
) -> NDArray[Any]:
    """The tensor that `encode` was given, bit for bit; C-contiguous, owning its memory.

    Raises:
        PackageError: if ``coded`` is not the coding of a tensor of this dtype and shape.
    """
    check_length(len(coded), coding, dtype, shape)
    stored = np.frombuffer(coded, np.uint8)
    little = np.dtype(dtype).newbyteorder("<")
    size = math.prod(shape)
    if coding == "dense":
        return _ungroup(stored, little).astype(dtype, copy=False).reshape(shape)

    mask_bytes = (size + 7) // 8
    bits = np.unpackbits(stored[:mask_bytes], bitorder="little").view(np.bool_)
    kept, padding = bits[:size], bits[size:]
    values = _ungroup(stored[mask_bytes:], little)
    if int(np.count_nonzero(kept)) != values.size or padding.any():
        raise PackageError(
            f"the mask of a {dtype} tensor of shape {shape} keeps {np.count_nonzero(bits)} values, "
            f"but {values.size} are stored"
        )
    elements = np.zeros(size, little)
    elements[kept] = values
    return elements.astype(dtype, copy=False).reshape(shape)


def check_length(length: int, coding: Coding, dtype: DType, shape: tuple[int, ...]) -> None:
    """Refuses a coded length that no tensor of this dtype and shape can have; allocates nothing.

    Raises:
        PackageError: with the length that would be right.
    """
    size = math.prod(shape)
    item = np.dtype(dtype).itemsize
    if coding == "dense":
        right, fits = f"exactly {size * item}", length == size * item
    else:
        mask = (size + 7) // 8
        right = f"{mask} for the mask and a multiple of {item} up to {size * item} for the values"
        fits = mask <= length <= mask + size * item and (length - mask) % item == 0
    if min(shape, default=0) < 0 or not fits:
        raise PackageError(
            f"{length} bytes cannot be a {coding} {dtype} tensor of shape {shape}: it takes {right}"
        )


def _bit_pattern(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(f"<u{dtype.itemsize}")


def _group(elements: NDArray[Any]) -> bytes:
    item = elements.dtype.itemsize
    return elements.view(np.uint8).reshape(-1, item).T.tobytes()


def _ungroup(stored: NDArray[np.uint8], dtype: np.dtype[Any]) -> NDArray[Any]:
    item = dtype.itemsize
    planes = stored.reshape(item, -1)
    interleaved = np.empty((planes.shape[1], item), np.uint8)
    # Plane by plane: three times as fast as copying the transposed view.
    for significance in range(item):
        interleaved[:, significance] = planes[significance]
    return interleaved.reshape(-1).view(dtype)
