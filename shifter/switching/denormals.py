"""Flushing denormals to zero, for the thread that computes, while it computes.

ONNX Runtime's ``session.set_denormal_as_zero`` reaches the threads of a session's own pool, and
besides only the thread that built the process's first session, for good. A session of one thread
has no pool: it computes on the caller's thread, so that one's floating-point environment is set
here around each call. Known are Linux with glibc on x86-64 and AArch64; elsewhere denormals stay,
which is slower where a network has many of them, and no less right.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

# Words of glibc's fenv_t (bits/fenv.h): how many, which one holds the control bits, and which of
# them flush. x86-64: MXCSR after seven words of x87; flush-to-zero and denormals-are-zero.
# AArch64: FPCR first; FZ.
_LAYOUTS = {"x86_64": (8, 7, 1 << 15 | 1 << 6), "aarch64": (2, 0, 1 << 24)}


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Within it, the calling thread's float32 and float64 arithmetic takes denormals for zero."""
    if _libm is None:
        yield
        return
    words, control, flush = _LAYOUTS[platform.machine()]
    before = (ctypes.c_uint32 * words)()
    _libm.fegetenv(before)
    within = type(before)(*before)
    within[control] |= flush
    _libm.fesetenv(within)
    try:
        yield
    finally:
        _libm.fesetenv(before)


def _load_libm() -> ctypes.PyDLL | None:
    known = platform.libc_ver()[0] == "glibc" and platform.machine() in _LAYOUTS
    # PyDLL keeps the interpreter lock: these calls take nanoseconds, getting it back takes longer.
    return ctypes.PyDLL("libm.so.6") if known else None


_libm = _load_libm()
