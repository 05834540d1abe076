"""Which engine runs the variants of a portfolio, and on what."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal, Protocol, get_args, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from shifter.errors import EngineError, GraphError
from shifter.graph_check import check_graph
from shifter.switching.engine import OnnxEngine
from shifter.switching.providers import CPU, is_here
from shifter.values import Variant

EngineKind = Literal["onnxruntime", "torch"]

_log = logging.getLogger(__name__)


class Engine(Protocol):
    """What runs a variant; called from several threads at once."""

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]: ...


@runtime_checkable
class QuickEngine(Engine, Protocol):
    """One that answers before it is as fast as it can be."""

    def optimise(self) -> None:
        """Makes it so, off the path of requests, which are answered meanwhile; once is enough."""


class EngineMaker:
    """Makes the engines of inflated variants; see `make_engine`."""

    def __init__(self, kind: EngineKind, providers: Sequence[str], threads: int) -> None:
        self.kind = kind
        self.threads = threads
        self.providers: tuple[str, ...] = ()
        """What engines run on, the preferred one first; shorter once one of them has failed."""
        self.absent: dict[str, str] = {}
        """Providers that were asked for and are not on this node, each with the reason."""
        if threads < 1 or not providers:
            raise EngineError(
                f"an engine has at least one thread and one provider: {threads}, {list(providers)}"
            )
        self._refused: EngineError | None = None
        for name in providers:
            if self._is_here(name):
                self.providers += (name,)
            else:
                self._forgo(name, f"this node's {kind} was built without it")
        if not self.providers:
            raise EngineError(f"{self._told()}; add {CPU!r} to let the processor do without")

    def __call__(self, variant: Variant) -> Engine:
        """The engine of ``variant``, whose graph is checked first.

        Raises:
            EngineError: if the graph is more than arithmetic on the variant's tensors, the engine
                cannot run it, or no provider works.
        """
        try:
            check_graph(variant.graph, variant.tensors)
        except GraphError as problem:
            raise EngineError(f"variant {variant.name!r}: {problem}") from problem
        return self._build(variant, self.providers)

    def _is_here(self, name: str) -> bool:
        if self.kind == "onnxruntime":
            return is_here(name)
        try:
            from shifter.switching import torch_engine
        except ModuleNotFoundError as problem:
            raise EngineError(
                f"the engine 'torch' needs torch, which is not on this node ({problem}): install "
                "'shifter[train]', or use the engine 'onnxruntime'"
            ) from problem
        return torch_engine.is_here(name)

    def _build(self, variant: Variant, providers: tuple[str, ...]) -> Engine:
        """On the first of the providers that works; one that does not is forgone from then on."""
        if self.kind == "torch":
            from shifter.switching.torch_engine import TorchEngine

            return TorchEngine(variant.graph, variant.tensors, threads=self.threads, device=providers[0])
        try:
            engine = OnnxEngine(
                variant.graph, variant.tensors, threads=self.threads, providers=providers, quick=True
            )
        except EngineError as problem:
            if len(providers) == 1:
                raise
            failed, why = providers[0], str(problem)
        else:
            working = engine.providers
            missing = [name for name in providers if name not in working]
            if not missing:
                return engine
            failed, why = missing[0], "it does not find its libraries or its device"
        rest = tuple(name for name in providers if name != failed)
        if not rest:
            raise EngineError(f"{failed!r} does not work on this node: {why}; add {CPU!r} to do without")
        other = self._build(variant, rest)  # were it the variant's fault, this would not work either
        self._forgo(failed, why)
        return other

    def _forgo(self, name: str, why: str) -> None:
        self.absent[name] = why
        self.providers = tuple(other for other in self.providers if other != name)
        _log.warning("provider %r is not used: %s", name, why)

    def _told(self) -> str:
        return "; ".join(f"provider {name!r}: {why}" for name, why in self.absent.items())


def make_engine(
    kind: EngineKind = "onnxruntime", providers: Sequence[str] = (CPU,), threads: int = 1
) -> EngineMaker:
    """What makes the engine of an inflated variant: call it with one.

    A provider that is not on this node is left out, with a warning in the log and its reason in
    ``absent``, as long as another of the list is there.

    Args:
        kind: ``onnxruntime``, or ``torch``, the reference, which is imported only where it is asked for.
        providers: by preference, the first one best: ``cpu``, ``cuda``, and what else ONNX Runtime
            knows (`shifter.switching.providers`); torch knows these two.
        threads: cores that one call may use.

    Raises:
        EngineError: if there is no such kind, no such provider, none of them is on this node, or torch
            is not installed.
    """
    if kind not in get_args(EngineKind):
        raise EngineError(f"{kind!r} is no engine; known are {', '.join(get_args(EngineKind))}")
    return EngineMaker(kind, providers, threads)
