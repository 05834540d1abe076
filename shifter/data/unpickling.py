"""Reads the pickles that CIFAR is published in, without ever running what a pickle asks for.

A pickle is a program that may name any function of any module. Here every name but four is
refused, and those four mean classes of this module, which hold plain data: not even numpy's own
reconstruction is called.
"""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shifter.errors import DataError


class _Dtype:
    """Stands for ``numpy.dtype``. Bytes are all that these files hold."""

    def __init__(self, code: object, *_: object) -> None:
        if code not in ("u1", b"u1"):
            raise pickle.UnpicklingError(f"an array of {code!r}, not of bytes (u1)")

    def __setstate__(self, state: object) -> None:
        """Byte order, fields and such: nothing that bytes have."""


class _Array:
    """Stands for ``numpy.ndarray`` and for the function that reconstructs one."""

    def __init__(self, *_: object) -> None:
        self.array: NDArray[np.uint8] = np.zeros(0, np.uint8)

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise pickle.UnpicklingError("an array in an unknown form")
        _, shape, dtype, fortran, data = state
        if not (
            isinstance(shape, tuple)
            and all(isinstance(length, int) and length >= 0 for length in shape)
            and isinstance(dtype, _Dtype)
            and isinstance(data, bytes)
            and math.prod(shape) == len(data)
        ):
            raise pickle.UnpicklingError("an array whose bytes do not fit its shape")
        self.array = np.frombuffer(data, np.uint8).reshape(shape, order="F" if fortran else "C")


class _Bytes:
    """Stands for ``_codecs.encode``, in which Python 3 writes bytes for Python 2."""

    def __new__(cls, text: object, encoding: object = None) -> Any:
        if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
            raise pickle.UnpicklingError("bytes in an unknown form")
        return text.encode("latin-1")


_ADMITTED = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("_codecs", "encode"): _Bytes,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, and only lists, texts, numbers and arrays of bytes are read"
            ) from None


def read_pickle(path: Path) -> dict[str, Any]:
    """The dictionary in a pickle of plain data, its keys as text.

    Values are lists, bytes, text, numbers, and uint8 arrays.

    Raises:
        DataError: if the file is no pickle, holds no dictionary, or asks for anything else.
    """
    try:
        with path.open("rb") as file:
            # Python 2 wrote all text as bytes, pixels included.
            held = _Unpickler(file, encoding="bytes").load()
    except (
        pickle.UnpicklingError,
        EOFError,
        TypeError,
        ValueError,
        AttributeError,
        LookupError,
        ArithmeticError,
        RecursionError,
        MemoryError,
    ) as error:
        raise DataError(f"{path} is refused: {str(error) or type(error).__name__}") from error
    if not isinstance(held, dict):
        raise DataError(f"{path} is refused: it holds a {type(held).__name__}, not a dictionary")
    return {
        key.decode("latin-1") if isinstance(key, bytes) else str(key): value.array
        if isinstance(value, _Array)
        else value
        for key, value in held.items()
    }
