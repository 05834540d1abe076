"""ONNX Runtime's execution providers by their short names: ``cpu``, ``cuda``, ``openvino``, …"""

from __future__ import annotations

from typing import Final

import onnxruntime

from shifter.errors import EngineError

CPU: Final = "cpu"
_SUFFIX = "ExecutionProvider"


def short_name(provider: str) -> str:
    """``cuda`` of ``CUDAExecutionProvider``."""
    return provider.removesuffix(_SUFFIX).lower()


def execution_provider(name: str) -> str:
    """The name that ONNX Runtime gives it.

    Raises:
        EngineError: if it knows none such, with those that it knows.
    """
    known = {short_name(provider): provider for provider in onnxruntime.get_all_providers()}
    if name not in known:
        raise EngineError(f"{name!r} is no execution provider; known are {', '.join(sorted(known))}")
    return str(known[name])


def is_here(name: str) -> bool:
    """Whether the ONNX Runtime of this node was built with it; whether it finds its device, a session shows.

    Raises:
        EngineError: as `execution_provider`.
    """
    return execution_provider(name) in onnxruntime.get_available_providers()
