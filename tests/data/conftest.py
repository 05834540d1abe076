"""Small images of every kind, and a cache of the test's own."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SHIFTER_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SHIFTER_DATA", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def pixels() -> Callable[..., NDArray[np.uint8]]:
    """Makes random images (count, 3, size, size) of which no two are alike."""

    def make(count: int, size: int = 32, seed: int = 0) -> NDArray[np.uint8]:
        return np.random.default_rng(seed).integers(0, 256, (count, 3, size, size), np.uint8)

    return make


@pytest.fixture
def encode() -> Callable[..., bytes]:
    """Encodes an image (3, height, width), losslessly unless the format says otherwise."""

    def encode(image: NDArray[np.uint8], kind: str = "PNG") -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(buffer, kind)
        return buffer.getvalue()

    return encode
