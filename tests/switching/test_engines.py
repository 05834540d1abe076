"""Which engine runs a portfolio, and on what: by preference, and what is missing is said."""

import logging
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import numpy as np
import onnx
import onnxruntime
import pytest

from benchmarks import service_samples
from jobs import node_times
from shifter.errors import EngineError
from shifter.portfolio import Portfolio
from shifter.switching import engines
from shifter.switching.engine import OnnxEngine
from shifter.switching.engines import QuickEngine, make_engine
from shifter.switching.initialise import initialise
from shifter.switching.policies import Situation
from shifter.values import Profile, Tensors, Variant

IMAGES = np.random.default_rng(3).standard_normal((4, 1, 6, 6)).astype(np.float32)
HERE = ["CUDAExecutionProvider", "CPUExecutionProvider"]


def test_both_kinds_answer_alike(variants: dict[str, Variant]) -> None:
    default, torch = make_engine(), make_engine("torch")
    for variant in variants.values():
        np.testing.assert_allclose(
            default(variant).run(IMAGES), torch(variant).run(IMAGES), rtol=1e-4, atol=1e-5
        )


def test_the_default_engine_can_be_optimised_and_torch_is_what_it_is(variants: dict[str, Variant]) -> None:
    assert isinstance(make_engine()(variants["v0"]), QuickEngine)
    assert not isinstance(make_engine("torch")(variants["v0"]), QuickEngine)


def test_settings_that_cannot_be_are_refused() -> None:
    for arguments, why in (
        (("tensorflow",), "known are onnxruntime, torch"),
        (("onnxruntime", ["gpu"]), "'gpu' is no execution provider; known are .*cpu.*cuda"),
        (("torch", ["openvino"]), "runs on 'cpu' or 'cuda', not on 'openvino'"),
        (("onnxruntime", []), "at least one thread and one provider"),
        (("onnxruntime", ["cpu"], 0), "at least one thread and one provider"),
    ):
        with pytest.raises(EngineError, match=why):
            make_engine(*arguments)  # type: ignore[arg-type]


def test_a_node_without_torch_has_no_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "shifter.switching.torch_engine", raising=False)
    monkeypatch.delattr("shifter.switching.torch_engine", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(EngineError, match="needs torch, which is not on this node"):
        make_engine("torch")


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this node has it"
)
def test_a_provider_that_is_not_here_is_said_and_done_without(
    variants: dict[str, Variant], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        make = make_engine(providers=["cuda", "cpu"])
    assert (make.providers, list(make.absent)) == (("cpu",), ["cuda"])
    assert "provider 'cuda' is not used: this node's onnxruntime was built without it" in caplog.text
    assert make(variants["v0"]).run(IMAGES).shape == (4, 3)
    with pytest.raises(EngineError, match=r"provider 'cuda': .* add 'cpu' to let the processor do without"):
        make_engine(providers=["cuda"])


class NoDevice(OnnxEngine):
    """As where ONNX Runtime was built with CUDA and the node has no such device: it goes on without."""

    def __init__(self, graph: bytes, tensors: Tensors, *, providers: tuple[str, ...], **rest: object) -> None:
        super().__init__(graph, tensors, providers=("cpu",), threads=1)


class NoLibrary(OnnxEngine):
    """As above, but it fails."""

    def __init__(self, graph: bytes, tensors: Tensors, *, providers: tuple[str, ...], **rest: object) -> None:
        if "cuda" in providers:
            raise EngineError("CUDA failure 100: no CUDA-capable device is detected")
        super().__init__(graph, tensors, providers=providers, threads=1)


@pytest.mark.parametrize(
    ("broken", "why"), [(NoDevice, "does not find its libraries"), (NoLibrary, "CUDA failure 100")]
)
def test_a_provider_that_turns_out_not_to_work_is_done_without(
    variants: dict[str, Variant],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    broken: type[OnnxEngine],
    why: str,
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: HERE)
    monkeypatch.setattr(engines, "OnnxEngine", broken)
    make = make_engine(providers=["cuda", "cpu"])
    assert make.providers == ("cuda", "cpu")
    with caplog.at_level(logging.WARNING):
        assert make(variants["v0"]).run(IMAGES).shape == (4, 3)
    assert make.providers == ("cpu",)
    assert why in make.absent["cuda"]
    assert why in caplog.text
    with pytest.raises(EngineError, match=why):
        make_engine(providers=["cuda"])(variants["v0"])


class SmallDevice(OnnxEngine):
    """As on a device that holds all variants but some."""

    def __init__(self, graph: bytes, tensors: Tensors, *, providers: tuple[str, ...], **rest: object) -> None:
        self._on = providers
        if "cuda" in providers and any(tensors is one for one in self.too_large):
            raise MemoryError("Failed to allocate memory for requested buffer of size 102760448")
        super().__init__(graph, tensors, providers=("cpu",), threads=1)

    too_large: ClassVar[tuple[Tensors, ...]] = ()

    @property
    def providers(self) -> tuple[str, ...]:
        return self._on


def test_a_variant_that_the_device_does_not_hold_leaves_it_to_the_others(
    variants: dict[str, Variant], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: HERE)
    monkeypatch.setattr(engines, "OnnxEngine", SmallDevice)
    monkeypatch.setattr(SmallDevice, "too_large", (variants["v3"].tensors, variants["v4"].tensors))
    make = make_engine(providers=["cuda", "cpu"])

    def runs_on(name: str) -> tuple[str, ...]:
        engine = make(variants[name])
        assert isinstance(engine, OnnxEngine)
        return engine.providers

    # Whether the first is one that fits or not.
    for name in ("v4", "v0", "v3", "v4", "v2"):
        assert runs_on(name) == (("cpu",) if name in ("v3", "v4") else ("cuda", "cpu")), name
    assert make.providers == ("cuda", "cpu")
    why = "Failed to allocate memory for requested buffer of size 102760448"
    assert make.absent == {"cuda": f"not for v4: {why}; not for v3: {why}"}
    assert caplog.text.count("variant 'v4' does without provider 'cuda'") == 1

    monkeypatch.setattr(SmallDevice, "too_large", (variants["v3"].tensors,))
    assert runs_on("v4") == ("cuda", "cpu")
    assert make.absent == {"cuda": f"not for v3: {why}"}


def test_a_provider_that_has_worked_is_not_given_up_for_one_variant(
    variants: dict[str, Variant], monkeypatch: pytest.MonkeyPatch
) -> None:
    class NotThis(SmallDevice):
        def __init__(
            self, graph: bytes, tensors: Tensors, *, providers: tuple[str, ...], **rest: object
        ) -> None:
            if "cuda" in providers and tensors is variants["v4"].tensors:
                raise EngineError("CUDNN_STATUS_NOT_SUPPORTED")
            super().__init__(graph, tensors, providers=providers)

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: HERE)
    monkeypatch.setattr(engines, "OnnxEngine", NotThis)
    make = make_engine(providers=["cuda", "cpu"])
    for name in ("v0", "v4"):
        make(variants[name])
    assert make.providers == ("cuda", "cpu")
    assert make.absent == {"cuda": "not for v4: CUDNN_STATUS_NOT_SUPPORTED"}


def test_a_variants_fault_is_not_the_providers(
    variants: dict[str, Variant], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: HERE)
    monkeypatch.setattr(engines, "OnnxEngine", NoLibrary)
    make = make_engine(providers=["cuda", "cpu"])
    model = onnx.ModelProto.FromString(variants["v0"].graph)
    model.graph.node[0].op_type = "Gelu"
    with pytest.raises(EngineError, match="cannot load the variant"):
        make(replace(variants["v0"], graph=model.SerializeToString()))
    assert make.providers == ("cuda", "cpu")


def test_a_hostile_graph_is_refused_by_the_variants_name(variants: dict[str, Variant]) -> None:
    model = onnx.ModelProto.FromString(variants["v1"].graph)
    model.graph.node[1].domain = "com.microsoft"
    for kind in ("onnxruntime", "torch"):
        with pytest.raises(EngineError, match=r"variant 'v1': operator .*com\.microsoft::Relu"):
            make_engine(kind)(replace(variants["v1"], graph=model.SerializeToString()))


class Told:
    """A policy that does as it is told."""

    variant = "v3"

    def start(self, profiles: Mapping[str, Profile]) -> str:
        return self.variant

    def choose(self, now: Situation) -> tuple[str, str]:
        return self.variant, "told so"


def test_a_host_optimises_what_serves_and_what_is_built_ahead(package: bytes) -> None:
    with initialise(Portfolio.open(package), Told(), dwell=0.0) as host:
        engine = host._resident.ready["v3"]
        assert isinstance(engine, OnnxEngine)
        assert engine.is_quick
        before = engine.run(IMAGES)
        host.tick()
        engine = host._resident.active.engine
        ready = list(host._resident.ready.values())
        assert len(ready) == 3
        assert not any(isinstance(one, OnnxEngine) and one.is_quick for one in ready)
        np.testing.assert_allclose(engine.run(IMAGES), before, rtol=1e-5, atol=1e-6)


def test_a_switch_is_measured_as_it_is_made(package: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a calibration and the benchmarks as by the host: built, and warmed up alike."""
    seen: list[int] = []

    class Counted:
        def run(self, images: np.ndarray) -> np.ndarray:
            seen.append(len(images))
            return np.zeros((len(images), 3), np.float32)

    def build(variant: Variant) -> Counted:
        seen.append(0)
        return Counted()

    portfolio = Portfolio.open(package)
    told = Told()
    with initialise(portfolio, told, dwell=0.0, build=build, ahead_bytes=0) as host:
        assert seen == [0, 1, 2], "what serves first is asked about several images as well"
        seen.clear()
        told.variant = "v2"
        host.tick()
        by_host = seen.copy()
    seen.clear()
    monkeypatch.setattr(node_times, "make_engine", lambda: build)
    node_times._measure_switch(portfolio, "v3")
    assert seen == node_times._SWITCHES * by_host
    seen.clear()
    service_samples.measure(portfolio, build, calls=4, switches=2)
    switches = 2 * len(portfolio.names) * by_host
    assert seen[: len(switches) + 1] == [*switches, 1]
    assert seen.count(0) == 2 * len(portfolio.names)
