import gc
import platform
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import onnxruntime
import pytest

from shifter.errors import EngineError
from shifter.switching.engine import OnnxEngine
from shifter.values import Variant

from .conftest import _network

IMAGES = np.random.default_rng(3).standard_normal((4, 1, 6, 6)).astype(np.float32)


def by_hand(variant: Variant, images: np.ndarray) -> np.ndarray:
    """The network of conftest.py in numpy, in float64."""
    weights = {name: tensor.astype(np.float64) for name, tensor in variant.tensors.items()}
    padded = np.pad(images.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    maps = np.einsum("nchwij,ocij->nohw", windows, weights["features.0.weight"])
    pooled = np.maximum(maps + weights["features.0.bias"].reshape(1, -1, 1, 1), 0).mean((2, 3))
    return pooled @ weights["classifier.weight"].T + weights["classifier.bias"]


either = pytest.mark.parametrize("quick", [False, True], ids=["whole", "quick"])


@either
@pytest.mark.parametrize("threads", [1, 2])
def test_it_computes_the_network(variants: dict[str, Variant], threads: int, quick: bool) -> None:
    for variant in variants.values():
        engine = OnnxEngine(variant.graph, variant.tensors, threads=threads, quick=quick)
        logits = engine.run(IMAGES)
        assert (logits.dtype, logits.shape) == (np.float32, (4, 3))
        np.testing.assert_allclose(logits, by_hand(variant, IMAGES), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(engine.run(IMAGES[:1]), logits[:1], rtol=1e-5, atol=1e-6)


@either
def test_it_keeps_a_copy_of_the_weights_and_not_the_callers(
    variants: dict[str, Variant], quick: bool
) -> None:
    variant = variants["v2"]
    mine = {name: tensor.copy() for name, tensor in variant.tensors.items()}
    engine = OnnxEngine(variant.graph, mine, quick=quick)
    engine.optimise()  # an engine that is whole already is left as it is
    before = engine.run(IMAGES)
    gone = [weakref.ref(tensor) for tensor in mine.values()]
    for tensor in mine.values():
        tensor.fill(np.nan)
    assert np.array_equal(engine.run(IMAGES), before)
    del tensor, mine
    gc.collect()
    assert [reference() for reference in gone] == [None] * len(gone)
    assert np.array_equal(engine.run(IMAGES), before)


def test_a_quick_engine_keeps_the_callers_arrays_alive(variants: dict[str, Variant]) -> None:
    variant = variants["v4"]
    mine = {name: tensor.copy() for name, tensor in variant.tensors.items()}
    alive = [weakref.ref(tensor) for tensor in mine.values()]
    engine = OnnxEngine(variant.graph, mine, quick=True)
    mine.clear()
    gc.collect()
    assert all(reference() is not None for reference in alive)
    quick = engine.run(IMAGES)
    engine.optimise()
    gc.collect()
    assert not any(reference() is not None for reference in alive)
    np.testing.assert_allclose(engine.run(IMAGES), quick, rtol=1e-5, atol=1e-6)


def test_an_engine_that_could_not_be_optimised_is_quick_and_may_be_yet(
    variants: dict[str, Variant], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = OnnxEngine(variants["v4"].graph, variants["v4"].tensors, quick=True)
    before = engine.run(IMAGES)

    def refuse(*_: object, **__: object) -> None:
        raise MemoryError

    with monkeypatch.context() as short:
        short.setattr(onnxruntime, "InferenceSession", refuse)
        with pytest.raises(MemoryError):
            engine.optimise()
    assert engine.is_quick
    assert np.array_equal(engine.run(IMAGES), before)
    quick = engine._loaded
    engine.optimise()
    assert not engine.is_quick
    assert engine._loaded is not quick
    np.testing.assert_allclose(engine.run(IMAGES), before, rtol=1e-5, atol=1e-6)


def test_it_answers_while_it_is_optimised(variants: dict[str, Variant]) -> None:
    variant = variants["v4"]
    wanted = OnnxEngine(variant.graph, variant.tensors).run(IMAGES)
    with ThreadPoolExecutor(3) as others:
        for _ in range(20):
            tensors = {name: tensor.copy() for name, tensor in variant.tensors.items()}
            engine = OnnxEngine(variant.graph, tensors, quick=True)
            answers = [others.submit(engine.run, IMAGES) for _ in range(12)]
            del tensors
            engine.optimise()
            for answer in answers:
                np.testing.assert_allclose(answer.result(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="see shifter.switching.denormals")
@either
@pytest.mark.parametrize("threads", [1, 2])
def test_denormals_are_flushed_on_whichever_thread_computes_and_only_there(
    variants: dict[str, Variant], threads: int, quick: bool
) -> None:
    variant = variants["v0"]
    tiny = {name: np.zeros_like(tensor) for name, tensor in variant.tensors.items()}
    tiny["features.0.bias"] = np.full_like(tiny["features.0.bias"], 1e-41)
    tiny["classifier.weight"] = np.full_like(tiny["classifier.weight"], 1e30)
    engine = OnnxEngine(variant.graph, tiny, threads=threads, quick=quick)  # 4e-11 if denormals counted
    assert not engine.run(IMAGES).any()
    with ThreadPoolExecutor(1) as other:
        assert not other.submit(engine.run, IMAGES).result().any()
        assert other.submit(lambda: np.float32(1e-41) * np.float32(1e30)).result() > 0
    assert np.float32(1e-41) * np.float32(1e30) > 0


def test_images_that_do_not_fit_are_refused(variants: dict[str, Variant]) -> None:
    engine = OnnxEngine(variants["v0"].graph, variants["v0"].tensors)
    for wrong in (IMAGES[:, :, :5], np.repeat(IMAGES, 3, axis=1), IMAGES[0], IMAGES.astype(np.float64)):
        with pytest.raises(EngineError, match="cannot answer"):
            engine.run(wrong)  # type: ignore[arg-type]
    assert engine.run(IMAGES).shape == (4, 3)


@either
def test_a_graph_or_tensors_that_do_not_belong_together_are_refused(
    variants: dict[str, Variant], quick: bool
) -> None:
    graph, tensors = variants["v1"].graph, dict(variants["v1"].tensors)
    without = {name: tensor for name, tensor in tensors.items() if name != "classifier.bias"}
    short = {**tensors, "classifier.weight": tensors["classifier.weight"][:2]}
    for some_graph, some_tensors in (
        (b"", tensors),
        (b"no graph", tensors),
        (graph, {}),
        (graph, without),
        (graph, short),
        (_network(8, 0)[0], tensors),
    ):
        with pytest.raises(EngineError):
            OnnxEngine(some_graph, some_tensors, quick=quick)


@either
def test_a_graph_cannot_make_the_process_read_a_file(
    variants: dict[str, Variant], tmp_path: object, monkeypatch: pytest.MonkeyPatch, quick: bool
) -> None:
    """An initializer whose location names a file beside the process, not one of the tensors."""
    monkeypatch.chdir(str(tmp_path))
    tensors = dict(variants["v0"].tensors)
    with open("classifier.bias", "wb") as file:
        file.write(tensors.pop("classifier.bias").tobytes())
    with pytest.raises(EngineError, match="not found from the table"):
        OnnxEngine(variants["v0"].graph, tensors, quick=quick)


def test_images_that_are_not_answered_one_by_one_are_no_answer(variants: dict[str, Variant]) -> None:
    """Their mean, say: one answer for three."""
    variant = variants["v1"]
    model = onnx.ModelProto.FromString(variant.graph)
    last = model.graph.node[-1]
    output, last.output[0] = last.output[0], "each"
    model.graph.node.append(onnx.helper.make_node("ReduceMean", ["each"], [output], keepdims=1, axes=[0]))
    model.opset_import[0].version = 17
    for dimension in model.graph.output[0].type.tensor_type.shape.dim[:1]:
        dimension.Clear()
    engine = OnnxEngine(model.SerializeToString(), variant.tensors)
    assert len(engine.run(IMAGES[:1])) == 1
    with pytest.raises(EngineError, match=r"answers 3 images with an array of shape \(1, "):
        engine.run(IMAGES[:3])


def test_want_of_memory_is_none_of_the_variants_faults(variants: dict[str, Variant]) -> None:
    """ONNX Runtime's own words for it, of a network that asks for 18 TB an image."""
    variant = variants["v2"]
    model = onnx.ModelProto.FromString(variant.graph)
    model.graph.node[0].attribute[0].ints[:] = [1 << 19] * 4
    engine = OnnxEngine(model.SerializeToString(), variant.tensors)
    with pytest.raises(MemoryError, match="cannot answer float32 images"):
        engine.run(IMAGES)
    with pytest.raises(EngineError):
        engine.run(IMAGES[:, :, :2])
