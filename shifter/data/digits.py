"""scikit-learn's handwritten digits: 1,797 real images of 8x8 pixels, part of the library."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits

CLASSES = tuple(str(digit) for digit in range(10))
PIXEL_MAX = 16.0


def read(size: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """All images as (1797, 1, size, size), 0 to 16, and their labels.

    At any size but 8 they are resized bilinearly.
    """
    stored = load_digits()
    images = torch.from_numpy(stored.images.astype(np.float32)).unsqueeze(1)
    if size != images.shape[-1]:
        images = torch.nn.functional.interpolate(images, size=(size, size), mode="bilinear")
    return images.numpy(), stored.target.astype(np.int64)
