"""Where the values of a sparse tensor are: gaps or a mask.

- *Gaps*: one byte a value, how many zeros stand between it and the value before; a byte of 255
  stands for 255 zeros and no value, before a gap of 255 and more. What follows the last value is
  zero. Gaps of random zeros follow a geometric distribution, which Huffman's codes fit.
- A *mask*: one bit per element, 1 where there is a value; least significant bit first, the last
  byte padded with zeros. Shorter where few elements are zero.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from shifter.errors import PackageError

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


def from_gaps(gaps: NDArray[np.uint8], values: int, size: int) -> NDArray[np.intp]:
    """Positions of ``values`` values among ``size`` elements, ascending.

    Raises:
        PackageError: if the gaps are those of another number of values, or lead beyond the elements.
    """
    near = gaps != _FAR
    if (found := int(np.count_nonzero(near))) != values:
        raise PackageError(f"the gaps are those of {found} values, but {values} are stored")
    at = np.cumsum(gaps, dtype=np.intp)
    if values < gaps.size:
        at = at[near]
    at += np.arange(values)
    if values and at[-1] >= size:
        raise PackageError(f"the gaps lead to element {at[-1]} of {size}")
    return at


def to_mask(kept: NDArray[np.bool_]) -> bytes:
    """A bit for each element."""
    return np.packbits(kept, bitorder="little").tobytes()


def from_mask(mask: NDArray[np.uint8], values: int, size: int) -> NDArray[Any]:
    """Positions, as `from_gaps`.

    Raises:
        PackageError: if the mask keeps another number of values, or has a bit beyond the elements.
    """
    at = np.flatnonzero(np.unpackbits(mask, bitorder="little").view(np.bool_))
    if at.size != values or (values and at[-1] >= size):
        raise PackageError(
            f"the mask of {size} elements keeps {at.size} values"
            f"{f', up to number {at[-1]}' if at.size else ''}, but {values} are stored"
        )
    return at
