"""Which weights are zero, bit by bit: a sum may cancel, and a square may underflow.

Weights are read from memory once, and nothing as large as them is written: a checkpoint is larger
than any cache, so this is what looking at it costs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shifter.pruning.network import Bools, Ints

Array = NDArray[Any]

BLOCK = 2**17
"""Numbers worked on at a time, so that they stay in a core's cache."""

ROW = 4096
"""Numbers of one product: few enough that BLAS does not set threads of its own to it."""

FEW = 8
"""Rows or columns that are looked at first: most of what is not zero shows there."""


def is_finite(array: Array) -> bool:
    """True if the array holds neither NaN nor infinity. In one pass, unless its squares overflow."""
    if array.size >= ROW and array.flags.c_contiguous:
        flat = array.reshape(-1)
        whole = flat.size - flat.size % ROW
        with np.errstate(all="ignore"):
            squares = np.vecdot(flat[:whole].reshape(-1, ROW), flat[:whole].reshape(-1, ROW))
        if np.isfinite(squares).all():
            array = flat[whole:]
    return bool(np.isfinite(array).all())


def nonzero_rows(matrix: Array) -> tuple[Bools, bool]:
    """Of a float matrix: which rows hold a number that is not zero, and whether all are finite."""
    with np.errstate(all="ignore"):
        squares = np.vecdot(matrix, matrix)
    settled = np.isfinite(squares)
    finite = bool(settled.all() or np.isfinite(matrix[~settled]).all())
    found = np.asarray(squares != 0)
    silent = np.flatnonzero(~found)
    for some in in_blocks(silent, matrix.shape[1]):
        found[some] = _bits(np.bitwise_or.reduce(_as_integers(matrix[some]), axis=1)) != 0
    return found, finite


def in_blocks(rows: Ints, width: int) -> Iterator[Ints]:
    """``rows`` of a matrix in parts that fit in a core's cache."""
    count = max(1, BLOCK // max(1, width))
    for start in range(0, rows.size, count):
        yield rows[start : start + count]


def nonzero_columns(matrix: Array, rows: Ints) -> Bools:
    """Which columns hold a number that is not zero in any of ``rows``; all of them are looked at only
    if they must be.
    """
    found = np.zeros(matrix.shape[1], np.bool_)
    start, count = 0, FEW
    while start < rows.size and not found.all():
        some = _as_integers(matrix[rows[start : start + count]])
        found |= _bits(np.bitwise_or.reduce(some, axis=0)) != 0
        start, count = start + count, min(8 * count, 64 * FEW)
    return found


def _as_integers(matrix: Array) -> Array:
    """The same bits, as unsigned integers."""
    return np.ascontiguousarray(matrix).view(f"u{matrix.dtype.itemsize}")


def _bits(numbers: Array) -> Array:
    """Without the sign: a negative zero is zero."""
    return np.asarray(numbers << 1)
