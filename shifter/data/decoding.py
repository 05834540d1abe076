"""From an encoded image to pixels, or to what is wrong with it."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from shifter.data.source import Row

DECODER = f"Pillow {PIL.__version__}"
"""Decoders may differ in the last bit of a JPEG: part of what a cache is known by."""
PIXEL_MAX = 255.0
# Named, because some of Pillow's other decoders start programs (EPS) or reach further files.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_MOST_CLASSES = 2**16
"""Without a list of classes: a larger label is no label, but some other number."""
_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"})
# What decoders raise over broken files; none of them promises a single kind.
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    LookupError,
    ArithmeticError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class BadRowError(Exception):
    """An image or a label cannot be used; the message says why, not where."""


def check_label(label: int | str | None, classes: int | None) -> int:
    """The label, if it is one of 0 to ``classes - 1`` (None: not yet known). Else BadRowError."""
    if label is None:
        raise BadRowError("it has no label")
    if isinstance(label, str):
        raise BadRowError(f"its label {label!r} is none of the classes")
    known = _MOST_CLASSES if classes is None else classes
    if not 0 <= label < known:
        raise BadRowError(f"its label is {label}: labels go from 0 to {known - 1}")
    return label


def decode(row: Row, size: int) -> NDArray[np.uint8]:
    """The image of a row as (3, size, size): colours as stored, resized bilinearly where need be.

    Grey images become colour images of three equal channels; transparency is dropped.

    Raises:
        BadRowError: if there is none, or it cannot be decoded.
    """
    image = row.image
    if image is None:
        raise BadRowError("it has no image")
    if isinstance(image, np.ndarray):
        if image.shape[1:] == (size, size):
            return image
        return _pixels(Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))), size)
    try:
        with Image.open(image if isinstance(image, Path) else io.BytesIO(image), formats=_FORMATS) as opened:
            if opened.mode not in _MODES:
                raise BadRowError(f"its pixels are of the kind {opened.mode}: 8 bits per colour are needed")
            return _pixels(opened, size)
    except _BROKEN as error:
        raise BadRowError(f"it cannot be decoded ({error})") from error


def _pixels(image: Image.Image, size: int) -> NDArray[np.uint8]:
    colour = image.convert("RGB")
    if colour.size != (size, size):
        colour = colour.resize((size, size), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(colour).transpose(2, 0, 1))
