"""Fixtures that more than one folder of tests needs."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from shifter.portfolio import pack
from shifter.values import Exactness, InputSpec, Latency, Profile, Variant

from . import s3

CLASSES = ("zero", "one", "two")


def pytest_configure() -> None:
    """What a shell starts in the background ignores Ctrl-C, and so would all that the tests start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _variant(name: str, width: int, milliseconds: float, accuracy: float, seed: int) -> Variant:
    """Two convolutions of ``width`` channels, a global average and a linear layer, no weights inside."""
    random = np.random.default_rng(seed)
    tensors = {
        "conv1.weight": random.normal(0, 0.5, (width, 1, 3, 3)).astype(np.float32),
        "conv2.weight": random.normal(0, 1 / (3 * width**0.5), (width, width, 3, 3)).astype(np.float32),
        "fc.weight": random.normal(0, 1, (len(CLASSES), width)).astype(np.float32),
        "fc.bias": random.normal(0, 1, len(CLASSES)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["images", "conv1.weight"], ["a"], pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "conv2.weight"], ["c"], pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("GlobalAveragePool", ["d"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("Gemm", ["f", "fc.weight", "fc.bias"], ["logits"], transB=1),
    ]
    initializers = []
    for key, array in tensors.items():
        tensor = TensorProto(name=key, data_type=TensorProto.FLOAT, dims=array.shape)
        tensor.data_location = TensorProto.EXTERNAL
        for field, value in (("location", key), ("offset", "0"), ("length", str(array.nbytes))):
            tensor.external_data.add(key=field, value=value)
        initializers.append(tensor)
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(CLASSES)])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    one = Latency(milliseconds, milliseconds, milliseconds, 1.2 * milliseconds, 50)
    batch = Latency(8 * milliseconds, 8 * milliseconds, 8 * milliseconds, 9 * milliseconds, 50)
    size = sum(t.size for t in tensors.values())
    profile = Profile(
        round=0,
        ratio=float(name.removesuffix("x")),
        dense_parameters=10 * size,
        nonzero_parameters=size,
        structural_parameters=size,
        tensor_bytes=4 * size,
        memory_bytes=8 * size,
        validation_accuracy=accuracy,
        test_accuracy=accuracy,
        latency=one,
        batch_images=16,
        batch_latency=batch,
        dense_latency=one,
        exactness=Exactness(1e-14, 1e-7, 1e-7, 64),
    )
    return Variant(name, model.SerializeToString(), tensors, profile)


@pytest.fixture(scope="session")
def portfolio_bytes() -> bytes:
    """A package of three small convolutional variants, 1x the largest, of made-up profiles."""
    variants = [
        _variant("1x", 32, 1.0, 0.97, seed=1),
        _variant("4x", 16, 0.5, 0.95, seed=2),
        _variant("16x", 8, 0.2, 0.90, seed=3),
    ]
    spec = InputSpec(1, 8, 8, 16.0, (0.3,), (0.4,), CLASSES)
    return pack(variants, spec, model="tiny", provenance={"made": "up"})


@pytest.fixture
def portfolio_path(portfolio_bytes: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "portfolio.zip"
    path.write_bytes(portfolio_bytes)
    return path


@pytest.fixture(scope="module")  # other modules look for processes that were left behind
def s3_server() -> Iterator[s3.Server]:
    with s3.serving() as server:
        yield server


@pytest.fixture
def bucket(s3_server: s3.Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[s3.Server]:
    """A server that speaks S3, which this process and those that it starts use; well-behaved at first."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    s3_server.play()
    yield s3_server
    s3_server.play()


@pytest.fixture(params=["folder", "bucket"])
def store_uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a store may be made: a test that asks for it runs once for each kind."""
    if request.param == "folder":
        return str(tmp_path / "artifacts")
    server: s3.Server = request.getfixturevalue("bucket")
    return f"s3://{server.bucket()}/some/prefix"
