"""How a process that trains computes, whoever has started it."""

from __future__ import annotations

import torch


def set_up(threads: int) -> None:
    """Threads of each operator; to be called before the first tensor is made."""
    torch.set_num_threads(threads)
