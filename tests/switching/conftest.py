from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from onnx import TensorProto, helper

from shifter.portfolio import Portfolio, pack
from shifter.values import Exactness, InputSpec, Latency, Profile, Tensors, Variant

TENSOR_BYTES = 220
ProfileMaker = Callable[..., Profile]


def _latency(milliseconds: float) -> Latency:
    return Latency(milliseconds, milliseconds, milliseconds, milliseconds, 10)


def _profile(
    ms: float, batch_ms: float, accuracy: float, *, batch_images: int = 8, memory_bytes: int = 1000
) -> Profile:
    return Profile(
        round=0,
        ratio=1.0,
        dense_parameters=100,
        nonzero_parameters=100,
        structural_parameters=100,
        tensor_bytes=400,
        memory_bytes=memory_bytes,
        validation_accuracy=accuracy,
        test_accuracy=accuracy,
        latency=_latency(ms),
        batch_images=batch_images,
        batch_latency=_latency(batch_ms),
        dense_latency=_latency(100.0),
        exactness=Exactness(0.0, 0.0, 0.0, 1),
    )


def of_tensors(profile: Profile, tensors: Tensors) -> Profile:
    """That of a variant with such tensors, whose bytes a package compares."""
    return replace(profile, tensor_bytes=sum(tensor.nbytes for tensor in tensors.values()))


@pytest.fixture(scope="session")
def make_profile() -> ProfileMaker:
    """(ms of one image, ms of a batch, accuracy) to a profile."""
    return _profile


@pytest.fixture(scope="session")
def five(make_profile: ProfileMaker) -> dict[str, Profile]:
    """Five variants, each about twice as slow as the one before and a little more accurate."""
    return {
        f"v{index}": make_profile(ms, 4.5 * ms, 0.90 + 0.02 * index)
        for index, ms in enumerate((1.0, 2.0, 4.0, 8.0, 16.0))
    }


def _network(width: int, seed: int) -> tuple[bytes, dict[str, np.ndarray]]:
    """Convolution, ReLU, global average, linear; 6x6 grey images, three classes, weights external."""
    random = np.random.default_rng(seed)
    tensors = {
        "features.0.weight": random.standard_normal((width, 1, 3, 3)).astype(np.float32),
        "features.0.bias": random.standard_normal(width).astype(np.float32),
        "classifier.weight": random.standard_normal((3, width)).astype(np.float32),
        "classifier.bias": random.standard_normal(3).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["images", "features.0.weight", "features.0.bias"], ["c"], pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "classifier.weight", "classifier.bias"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 1, 6, 6])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
    )
    for name, tensor in tensors.items():
        initializer = graph.initializer.add(name=name, data_type=TensorProto.FLOAT, dims=tensor.shape)
        initializer.data_location = TensorProto.EXTERNAL
        for key, value in (("location", name), ("offset", "0"), ("length", str(tensor.nbytes))):
            initializer.external_data.add(key=key, value=value)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return model.SerializeToString(), tensors


@pytest.fixture(scope="session")
def variants(make_profile: ProfileMaker) -> dict[str, Variant]:
    """Five small networks of `TENSOR_BYTES` that answer differently, the fastest first by profile."""
    made = {}
    for index in range(5):
        graph, tensors = _network(width=4, seed=index)
        profile = make_profile(2.0**index, 4.5 * 2**index, 0.90 + 0.02 * index)
        made[f"v{index}"] = Variant(f"v{index}", graph, tensors, of_tensors(profile, tensors))
    return made


@pytest.fixture(scope="session")
def package(variants: dict[str, Variant]) -> bytes:
    spec = InputSpec(1, 6, 6, 16.0, (0.3,), (0.5,), ("zero", "one", "two"))
    return pack(list(variants.values()), spec, model="tiny", provenance={})


@pytest.fixture
def portfolio(package: bytes) -> Portfolio:
    return Portfolio.open(package)
