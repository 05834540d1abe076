"""Portfolios to measure packing and switching on, built as phase 2 builds them, and kept in a folder.

Structure: the paper's VGG-16 for CIFAR-10 (structural parameters as its 16x, 64x, 128x and 256x), and
torchvision's ResNet-50 for Tiny ImageNet. Filters of zeros are what removes them; their biases are not
zero, so carriers stay for them.

Weights are random, but distributed as pruned ones are, since the entropy of a package depends on it:
normal ones of He's variance, pruned by magnitude over the whole network (weighed by the fourth root of
the variance, so that density falls with depth and reaches no layer's last weights), and what is left
moved by a third of the threshold, as training after the last pruning does. Within a tensor, the mask
has no pattern but that of its magnitudes: no coding gains by one that a trained network might have.
The last linear layer is not pruned, as in OpenLTH.

Latencies, memory and exactness are measured, with few samples. Accuracies are not: they are nominal, a
point for each halving, so that policies have something to order.

::

    python -m benchmarks.portfolios ~/.cache/portfolios
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from torch import nn

from benchmarks import networks
from benchmarks.networks import Subject
from benchmarks.reducing import Reducer, share_for
from shifter.portfolio import Portfolio, pack
from shifter.portfolio.manifest import VERSION
from shifter.pruning.cost import layer_costs
from shifter.pruning.exactness import check_exactness
from shifter.pruning.memory import measure_memory
from shifter.pruning.profile import measure_alternating, measure_latencies
from shifter.switching.engine import OnnxEngine
from shifter.values import InputSpec, Profile, Tensors, Variant

VGG16 = {16: 13.42e6, 64: 8.75e6, 128: 5.3e6, 256: 2.86e6}
"""Structural parameters by compression ratio: the paper's, but for 128x between its neighbours."""
RESNET50 = {4: 0.98, 16: 0.9, 64: 0.6, 256: 0.35}
"""Share of the filters of each block's conv1 and conv2 that stays, by compression ratio."""

ROUND_TO, SAMPLES, BATCH, LEAST = 8, 40, 8, 3
"""``LEAST`` weights stay in each filter that stays."""


def vgg16_portfolio(cache: Path) -> bytes:
    """The package of the paper's VGG-16, 32 x 32 pixels, 10 classes; built on the first call (a minute)."""
    return _cached(cache, "vgg16", lambda: {f"{ratio}x": _vgg16(ratio) for ratio in VGG16}, 10)


def resnet50_portfolio(cache: Path) -> bytes:
    """The package of a ResNet-50, 64 x 64 pixels, 200 classes; built on the first call (minutes)."""
    return _cached(cache, "resnet50", lambda: {f"{ratio}x": _resnet50(ratio) for ratio in RESNET50}, 200)


PORTFOLIOS: Mapping[str, Callable[[Path], bytes]] = {
    "VGG-16": vgg16_portfolio,
    "ResNet-50": resnet50_portfolio,
}


def _vgg16(ratio: int) -> Subject:
    from shifter.models.vgg import Vgg

    torch.manual_seed(ratio)
    module = Vgg([(64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3], channels=3, classes=10)
    share = share_for(VGG16[ratio])

    def zero(whole: nn.Module) -> None:
        layers = [part for part in whole.modules() if isinstance(part, nn.Conv2d)]
        prune(layers, ratio, {part: share for part in layers if part.out_channels == 512})

    return networks.subject(f"vgg16 {ratio}x", module, 32, zero)


def _resnet50(ratio: int) -> Subject:
    from torchvision.models import resnet50

    torch.manual_seed(ratio)

    def zero(whole: nn.Module) -> None:
        named = [(name, part) for name, part in whole.named_modules() if isinstance(part, nn.Conv2d)]
        inner = [part for name, part in named if name.startswith("layer") and name[-5:] in ("conv1", "conv2")]
        prune([part for _, part in named], ratio, dict.fromkeys(inner, RESNET50[ratio]))

    return networks.subject(f"resnet50 {ratio}x", resnet50(weights=None, num_classes=200), 64, zero)


def prune(layers: list[nn.Conv2d], ratio: float, shares: Mapping[nn.Conv2d, float]) -> None:
    """Leaves one weight in ``ratio``, as the module's docstring says; of some layers a share of filters."""
    total = sum(part.weight.numel() for part in layers)
    for part, share in shares.items():
        part.weight[torch.randperm(part.out_channels)[round(share * part.out_channels) :]] = 0
    deviations = [math.sqrt(2 / part.weight[0].numel()) for part in layers]
    scores = [
        part.weight.abs() / math.sqrt(deviation) for part, deviation in zip(layers, deviations, strict=True)
    ]
    ranked = torch.cat([score.reshape(-1) for score in scores]).sort(descending=True).values
    threshold = float(ranked[round(total / ratio)])
    for part, score, deviation in zip(layers, scores, deviations, strict=True):
        of_filter = score.reshape(part.out_channels, -1)
        last = of_filter.topk(LEAST).values[:, -1].reshape(-1, 1, 1, 1)
        kept = (score > 0) & ((score >= threshold) | (score >= last))
        moved = torch.randn(part.weight.shape) * (threshold * math.sqrt(deviation) / 3)
        part.weight.copy_(torch.where(kept, part.weight + moved, 0.0))


def _cached(cache: Path, name: str, build: Callable[[], dict[str, Subject]], classes: int) -> bytes:
    source = b"".join(Path(str(file)).read_bytes() for file in (__file__, networks.__file__))
    path = cache / f"{name}-v{VERSION}-{hashlib.sha256(source).hexdigest()[:12]}.zip"
    if not path.exists():
        package = _packed(name, build(), classes)
        cache.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        part.write_bytes(package)
        part.rename(path)
    return path.read_bytes()


def _packed(name: str, subjects: dict[str, Subject], classes: int) -> bytes:
    size = next(iter(subjects.values())).size
    spec = InputSpec(
        3, size, size, 255.0, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26), tuple(f"c{i}" for i in range(classes))
    )
    return pack(list(_variants(subjects)), spec, model=name, provenance={"weights": "random, as pruned"})


def _variants(subjects: Mapping[str, Subject]) -> Iterator[Variant]:
    """Each reduced, proved, and measured in turns with the others."""
    reduced = {name: _Reduced(name, subject) for name, subject in subjects.items()}
    any_one = next(iter(subjects.values()))
    tensors = any_one.tensors
    whole = {
        key: np.where(value == 0, np.float32(1e-3), value) if value.ndim > 1 else value
        for key, value in tensors.items()
    }
    dense = Reducer(any_one.architecture, whole, ROUND_TO).made()
    images, batch = any_one.images(1), any_one.images(BATCH)
    engines = {name: OnnxEngine(one.graph, one.tensors) for name, one in reduced.items()}
    hot = measure_latencies(engines | {"dense": OnnxEngine(*dense)}, images, SAMPLES)
    batches = measure_latencies(engines, batch, SAMPLES // 4)
    alternating = measure_alternating(engines, images, SAMPLES // 4)
    for name, one in reduced.items():
        accuracy = 0.95 - 0.01 * math.log2(float(name[:-1]))
        profile = Profile(
            **one.facts,
            validation_accuracy=accuracy,
            test_accuracy=accuracy,
            memory_bytes=measure_memory(OnnxEngine, one.graph, one.tensors, batch),
            latency=hot[name],
            batch_images=BATCH,
            batch_latency=batches[name],
            dense_latency=hot["dense"],
            alternating_latency=alternating[name],
        )
        yield Variant(name, one.graph, one.tensors, profile)


class _Reduced:
    """A sparse network after phase 2, and what is known of it before it is measured."""

    def __init__(self, name: str, subject: Subject) -> None:
        sparse = subject.tensors
        reducer = Reducer(subject.architecture, sparse, ROUND_TO)
        self.graph, self.tensors = reducer.made()
        counts = reducer.counts()
        exactness = check_exactness(
            name,
            (subject.architecture, sparse),
            (self.graph, reducer.made(np.float64)[1]),
            subject.images(3),
            _run,
        )
        self.facts: dict[str, Any] = {
            "round": round(math.log2(float(name[:-1]))),
            "ratio": float(name[:-1]),
            "dense_parameters": counts["dense"],
            "nonzero_parameters": counts["nonzero"],
            "structural_parameters": counts["reduced"],
            "tensor_bytes": sum(value.nbytes for value in self.tensors.values()),
            "exactness": exactness,
            "layers": layer_costs(self.graph, (3, subject.size, subject.size)),
        }


def _run(graph: bytes, tensors: Tensors, images: Any) -> Any:
    return OnnxEngine(graph, tensors).run(images)


def main(cache: Path) -> None:
    """Builds what is not there yet, and tells what is in it."""
    for name, portfolio in PORTFOLIOS.items():
        began = time.perf_counter()
        opened = Portfolio.open(portfolio(cache))
        print(f"{name}: {opened.deflated_bytes / 1e6:.2f} MB, {time.perf_counter() - began:.0f} s")
        for variant, profile in opened.profiles.items():
            print(
                f"  {variant:>5}: {profile.structural_parameters / 1e6:.2f} M structural, "
                f"{profile.nonzero_parameters / 1e6:.3f} M not zero of "
                f"{profile.dense_parameters / 1e6:.2f} M, {profile.latency.p50_ms:.2f} ms "
                f"(dense {profile.dense_latency.p50_ms:.2f}), error {profile.exactness.float64:.0e}"
            )


if __name__ == "__main__":
    typer.run(main)
