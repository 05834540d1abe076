"""What Ray would show to Prometheus: its own metric classes, on a stand-in for their half in C++.

Names and labels become what a node exports; `tests/end_to_end/test_metrics.py` compares with a real one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

SERVE_LABELS = frozenset({"application", "deployment", "replica"})


@dataclass(frozen=True)
class Described:
    """A metric as Prometheus names it."""

    kind: str
    labels: frozenset[str]
    text: str


@dataclass
class Exported:
    """Args: described: by name. values: by name and labels' values; calls: how often each was written."""

    described: dict[str, Described] = field(default_factory=dict)
    values: dict[tuple[str, frozenset[tuple[str, str]]], float] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)

    def value(self, name: str, **labels: str) -> float:
        return self.values[name, frozenset(labels.items())]

    def series(self, name: str) -> list[dict[str, str]]:
        return [dict(labels) for known, labels in self.values if known == name]

    def histograms(self) -> set[str]:
        """Names without ``_bucket_total``."""
        return {name.removesuffix("_bucket_total") for name in self.described if "_bucket" in name}

    def patch(self, monkeypatch: pytest.MonkeyPatch) -> Exported:
        exported = self

        class Half:
            kind = ""

            def __init__(self, name: str, text: str, labels: tuple[str, ...]) -> None:
                self.name = f"ray_{name}" + ("_total" if self.kind == "counter" else "")
                self.labels = frozenset(labels)
                exported.described[self.name] = Described(self.kind, self.labels, text)

            def record(self, value: float, tags: Mapping[str, Any]) -> None:
                assert tags.keys() == self.labels
                key = (self.name, frozenset(tags.items()))
                before = exported.values.get(key, 0.0) if self.kind == "counter" else 0.0
                assert self.kind == "gauge" or value >= 0
                exported.values[key] = before + value
                exported.calls[self.name] += 1

        for kind, name in (("counter", "CythonCount"), ("gauge", "CythonGauge")):
            monkeypatch.setattr(f"ray.util.metrics.{name}", type(name, (Half,), {"kind": kind}))
        return exported
