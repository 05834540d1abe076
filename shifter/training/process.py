"""How a process that trains computes, whoever has started it."""

from __future__ import annotations

import torch

from shifter.heap import give_own_pages


def set_up(threads: int, *, own_pages: bool = False) -> None:
    """To be called before the first tensor is made.

    Args:
        threads: of each operator.
        own_pages: whether large blocks get pages of their own, where the C library can be told to:
            less memory for more page faults.
    """
    torch.set_num_threads(threads)
    if own_pages:
        give_own_pages()
