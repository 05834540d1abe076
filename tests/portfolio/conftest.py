import numpy as np
import pytest

from shifter.portfolio import pack
from shifter.values import Exactness, InputSpec, Latency, Profile, Variant


def _variant(name: str, width: int, density: float) -> Variant:
    random = np.random.default_rng(width)
    weight = random.standard_normal((width, 3, 3, 3)).astype(np.float32)
    weight[random.random(weight.shape) > density] = 0
    tensors = {
        "features.0.weight": weight,
        "features.0.bias": random.standard_normal(width).astype(np.float32),
        "classifier.weight": random.standard_normal((10, width)).astype(np.float32),
        "scale": np.float32(0.1).reshape(()),
        "nothing": np.zeros((0, 3), np.float32),
    }
    one, batch = Latency(1.0 + width, 1.0, 200.0, 200.0, 30), Latency(2.0 + width, 2.0, 300.0, 300.0, 30)
    profile = Profile(
        round=1,
        ratio=1 / density,
        dense_parameters=999,
        nonzero_parameters=99,
        structural_parameters=500,
        tensor_bytes=sum(t.nbytes for t in tensors.values()),
        memory_bytes=4000,
        validation_accuracy=0.9,
        test_accuracy=0.89,
        latency=one,
        batch_images=8,
        batch_latency=batch,
        dense_latency=one,
        exactness=Exactness(1e-16, 1e-7, 1e-7, 64),
    )
    return Variant(name, f"graph of {name}, ".encode() * 20, tensors, profile)


@pytest.fixture(scope="session")
def spec() -> InputSpec:
    return InputSpec(3, 8, 8, 255.0, (0.1, 0.2, 0.3), (1.0, 0.5, 0.25), tuple("0123456789"))


@pytest.fixture(scope="session")
def variants() -> list[Variant]:
    """Largest first, so that sorting shows."""
    return [_variant("1x", 64, 1.0), _variant("4x", 32, 0.25), _variant("64x", 8, 1 / 64)]


@pytest.fixture(scope="session")
def package(variants: list[Variant], spec: InputSpec) -> bytes:
    return pack(variants, spec, model="vgg", provenance={"recipe": "0123abcd", "commit": "4567"})
