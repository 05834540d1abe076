"""Profiles to report on."""

from collections.abc import Callable

import pytest

from shifter.values import Exactness, Latency, LayerCost, Profile


@pytest.fixture(scope="session")
def make_profile() -> Callable[..., Profile]:
    def make(ratio: float, accuracy: float = 0.97, p50: float = 0.5, structural: int = 120_000) -> Profile:
        latency = Latency(p50, 0.98 * p50, 1.03 * p50, 1.9 * p50, 400, 1.7 * p50, 2.4 * p50)
        return Profile(
            round=0,
            ratio=ratio,
            dense_parameters=150_000,
            nonzero_parameters=round(150_000 / ratio),
            structural_parameters=structural,
            tensor_bytes=4 * structural,
            memory_bytes=9 * structural,
            validation_accuracy=accuracy,
            test_accuracy=accuracy - 0.0125,
            latency=latency,
            batch_images=32,
            batch_latency=latency,
            dense_latency=Latency(0.61, 0.6, 0.62, 0.9, 400),
            exactness=Exactness(2.1e-15, 3.4e-7, 2.6e-7, 200),
            alternating_latency=Latency(7 * p50, 6 * p50, 8 * p50, 9 * p50, 100, 8 * p50),
            cores=4,
            all_cores_latency=Latency(0.4 * p50, 0.3 * p50, 0.5 * p50, 0.9 * p50, 100, 0.7 * p50),
            layers=(
                LayerCost("stages.0.conv", "Conv", 64 * structural, 4 * structural, 4096),
                LayerCost("scores", "MatMul", 12_000, 0, None),
            ),
        )

    return make
