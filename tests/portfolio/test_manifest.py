"""The manifest holds all of a profile, and reads profiles that are older."""

from __future__ import annotations

import json
from dataclasses import replace

from shifter.errors import PackageError
from shifter.portfolio.manifest import Manifest
from shifter.portfolio.package import Portfolio, pack
from shifter.values import Latency, LayerCost

NEW = ("alternating_latency", "cores", "all_cores_latency", "layers")


def test_what_was_measured_comes_back_whole(variants, spec):
    full = replace(
        variants[0].profile,
        alternating_latency=Latency(1.0, 0.9, 1.1, 2.0, 400, 1.8, 2.2),
        cores=2,
        all_cores_latency=Latency(1.0, 0.9, 1.1, 2.0, 10, 1.8),
        layers=(LayerCost("conv", "Conv", 1000, 80, 40), LayerCost("scores", "MatMul", None, 0, None)),
    )
    package = pack([replace(variants[0], profile=full)], spec, model="vgg", provenance={})
    assert Portfolio.open(package).profiles == {variants[0].name: full}


def test_a_profile_from_before_these_figures_is_read(package):
    portfolio = Portfolio.open(package)
    data = json.loads(portfolio.manifest.to_json())
    for variant in data["variants"]:
        for name in NEW:
            del variant["profile"][name]
        for latency in ("latency", "batch_latency", "dense_latency"):
            del variant["profile"][latency]["p99_low_ms"], variant["profile"][latency]["p99_high_ms"]
    assert Manifest.from_json(json.dumps(data).encode()) == portfolio.manifest


def test_a_message_does_not_quote_without_end() -> None:
    message = str(PackageError("x" * 100_000))
    assert len(message) < 3000
    assert message.endswith("x …")
    assert str(PackageError("y" * 1000)) == "y" * 1000
