"""Where the C library takes large blocks of memory from, and when it gives them back.

glibc moves its threshold between heap and pages of a block's own up to the largest block that was
given back, as far as 32 MiB (mallopt(3), M_MMAP_THRESHOLD). Blocks of some megabytes, a variant's
tensors or a network's activations, then lie in a heap that they leave in pieces.
"""

from __future__ import annotations

import ctypes
import platform

_M_MMAP_THRESHOLD = -3


def give_own_pages(from_bytes: int = 2**20) -> bool:
    """Blocks of so many bytes or more get pages of their own, which go back when the block does.

    From here on, in this whole process; the threshold no longer moves. Each such block costs page
    faults anew.

    Returns: whether it is so: only glibc can be told, and of 32 MiB at most.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    return bool(ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, ctypes.c_int(from_bytes)))


def trim() -> None:
    """Gives back to the system what lies free in the heap, where the C library is glibc.

    After `give_own_pages` there is little of it, and this takes about a millisecond.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
