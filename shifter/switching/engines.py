"""Which engine runs the variants of a portfolio, and on what."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Sequence
from typing import Final, Literal, Protocol, get_args, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from shifter.errors import EngineError, GraphError
from shifter.graph_check import check_graph
from shifter.switching.engine import OnnxEngine
from shifter.switching.providers import CPU, is_here
from shifter.values import InputSpec, Variant

EngineKind = Literal["onnxruntime", "torch"]

_log = logging.getLogger(__name__)

_ONE: Final = (1,)
ONE_AND_MORE: Final = (1, 2)
"""Images of the calls that tell whether a variant answers as declared, however many it is asked about."""
# As ONNX Runtime and torch say it, of a device's memory.
_FULL = re.compile(
    "out of memory|failed to allocate|smaller than requested|bad.alloc|can't allocate", re.IGNORECASE
)


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
        """What engines run on, the preferred one first; shorter once one turns out not to be here."""
        if threads < 1 or not providers:
            raise EngineError(
                f"an engine has at least one thread and one provider: {threads}, {list(providers)}"
            )
        self._forgone: dict[str, str] = {}
        self._worked: set[str] = set()
        self._without: dict[tuple[str, str], str] = {}  # (provider, variant): why not
        for name in providers:
            if self._is_here(name):
                self.providers += (name,)
            else:
                self._forgo(name, f"this node's {kind} was built without it")
        if not self.providers:
            raise EngineError(f"{self._told()}; add {CPU!r} to let the processor do without")

    @property
    def absent(self) -> dict[str, str]:
        """Providers that were asked for and are not used, each with the reason.

        Of one that is used, the variants that do without it, as when each was built last.
        """
        found = dict(self._forgone)
        for (name, variant), why in list(self._without.items()):  # at once: others build meanwhile
            if name not in self._forgone:
                found[name] = "; ".join([*filter(None, [found.get(name)]), f"not for {variant}: {why}"])
        return found

    def __call__(self, variant: Variant) -> Engine:
        """The engine of ``variant``, whose graph is checked first.

        Raises:
            EngineError: if the graph is more than arithmetic on the variant's tensors, the engine
                cannot run it, or no provider works.
            MemoryError: if there is not enough of it now.
        """
        try:
            check_graph(variant.graph, variant.tensors)
        except GraphError as problem:
            raise EngineError(f"variant {variant.name!r}: {problem}") from problem
        refused: dict[str, str] = {}
        engine = self._build(variant, refused)
        # Were it the variant's fault, no provider would have worked.
        self._worked.update(name for name in self.providers if name not in refused)
        for name in self.providers:
            if name in refused:
                self._do_without(name, variant.name, refused[name])
            else:
                self._without.pop((name, variant.name), None)
        return engine

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

    def _build(self, variant: Variant, refused: dict[str, str]) -> Engine:
        """On the first of the providers that works for it; those that do not are ``refused``."""
        providers = self.providers
        while True:
            try:
                engine, working = self._try(variant, providers)
            except (EngineError, MemoryError) as problem:  # the memory may be a device's
                if len(providers) == 1:
                    raise
                failed, why = providers[0], str(problem)
            else:
                missing = [name for name in providers if name not in working]
                if not missing:
                    return engine
                failed, why = missing[0], "it does not find its libraries or its device"
                if len(providers) == 1:
                    raise EngineError(
                        f"{failed!r} does not work on this node: {why}; add {CPU!r} to do without"
                    )
            refused[failed] = why
            providers = tuple(name for name in providers if name != failed)

    def _try(self, variant: Variant, providers: tuple[str, ...]) -> tuple[Engine, Collection[str]]:
        """(the engine, what it runs on)."""
        graph, tensors, threads = variant.graph, variant.tensors, self.threads
        if self.kind == "onnxruntime":
            onnx = OnnxEngine(graph, tensors, threads=threads, providers=providers, quick=True)
            return onnx, onnx.providers
        from shifter.switching.torch_engine import TorchEngine

        try:
            return TorchEngine(graph, tensors, threads=threads, device=providers[0]), providers
        except RuntimeError as problem:  # of the device
            kind = MemoryError if _FULL.search(str(problem)) else EngineError
            raise kind(f"torch cannot load the variant: {problem}") from problem

    def _do_without(self, name: str, variant: str, why: str) -> None:
        """For this variant; for good, if the provider has never worked and not for want of memory."""
        if name not in self._worked and not _FULL.search(why):
            self._forgo(name, why)
        elif self._without.get((name, variant)) != why:
            self._without[name, variant] = why
            _log.warning("variant %r does without provider %r: %s", variant, name, why)

    def _forgo(self, name: str, why: str) -> None:
        self._forgone[name] = why
        self.providers = tuple(other for other in self.providers if other != name)
        _log.warning("provider %r is not used: %s", name, why)

    def _told(self) -> str:
        return "; ".join(f"provider {name!r}: {why}" for name, why in self._forgone.items())


def ready(
    variant: Variant, spec: InputSpec, build: Callable[[Variant], Engine], calls: Sequence[int] = _ONE
) -> Engine:
    """The engine of an inflated variant, warmed up: what a switch waits for, besides inflating.

    Args:
        calls: as `warm_up`.

    Raises:
        EngineError: if it cannot be built, or as `warm_up`.
    """
    engine = build(variant)
    warm_up(engine, spec, calls)
    return engine


def warm_up(engine: Engine, spec: InputSpec, calls: Sequence[int] = ONE_AND_MORE) -> None:
    """Runs it, and raises EngineError unless it answers as the portfolio declares.

    Args:
        calls: how many images each call is given. Where a switch waits for it, one: a call of two takes
            as long as inflating. That it answers several as well is found when it is optimised.
    """
    for images in calls:
        logits = engine.run(np.zeros((images, *spec.shape), np.float32))
        expected = (images, len(spec.classes))
        if logits.dtype != np.float32 or logits.shape != expected:
            raise EngineError(
                f"a variant answers {images} images with {logits.dtype} {logits.shape}: "
                f"it has to be float32 {expected}, one number for each declared class"
            )
        if not np.isfinite(logits).all():
            raise EngineError(f"a variant answers {images} images of zeros with what is not finite")


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
