"""Where the values of a sparse tensor are: gaps or a mask.

- *Gaps*: one byte a value, how many zeros stand between it and the value before; a byte of 255
  stands for 255 zeros and no value, before a gap of 255 and more. What follows the last value is
  zero. Gaps of random zeros follow a geometric distribution, which Huffman's codes fit.
- A *mask*: one bit per element, 1 where there is a value; least significant bit first, the last
  byte padded with zeros. Shorter where few elements are zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shifter.errors import PackageError

AT_A_TIME: Final = 1 << 18
"""Elements that are decoded at a time: whatever that needs fits in a core's cache."""
_FAR: Final = 255


def to_gaps(kept: NDArray[np.bool_]) -> bytes:
    """The gaps between the elements that are True."""
    zeros = np.diff(np.flatnonzero(kept), prepend=-1) - 1
    far, rest = np.divmod(zeros, _FAR)
    gaps = np.full(zeros.size + int(far.sum()), _FAR, np.uint8)
    gaps[np.cumsum(far + 1) - 1] = rest
    return gaps.tobytes()


def gaps_lengths(values: int, size: int) -> tuple[int, int]:
    """The fewest and the most gaps that so many values among ``size`` elements can have."""
    return values, values + (size - values) // _FAR


def from_gaps(gaps: NDArray[np.uint8], size: int) -> Iterator[NDArray[np.intp]]:
    """Positions of values among ``size`` elements, ascending, some at a time: they take more than the values.

    Raises:
        PackageError: if the gaps lead beyond the elements.
    """
    begin = 0
    for start in range(0, gaps.size, AT_A_TIME):
        some = gaps[start : start + AT_A_TIME]
        near = some != _FAR
        at = np.cumsum(some, dtype=np.intp)
        zeros = int(at[-1])
        if not near.all():
            at = at[near]
        at += np.arange(begin, begin + at.size)
        begin += zeros + at.size
        if begin > size:
            raise PackageError(f"the gaps lead beyond element {size}")
        yield at


def to_mask(kept: NDArray[np.bool_]) -> bytes:
    """A bit for each element."""
    return np.packbits(kept, bitorder="little").tobytes()


def from_mask(mask: NDArray[np.uint8], size: int) -> Iterator[NDArray[np.intp]]:
    """Positions, as `from_gaps`.

    Raises:
        PackageError: if the mask has a bit beyond the elements.
    """
    for start in range(0, mask.size, AT_A_TIME // 8):
        some = np.unpackbits(mask[start : start + AT_A_TIME // 8], bitorder="little")
        at = np.flatnonzero(some.view(np.bool_))
        at += 8 * start
        if at.size and at[-1] >= size:
            raise PackageError(f"the mask of {size} elements has a bit for number {at[-1]}")
        yield at
