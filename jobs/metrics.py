"""How training goes, as metrics of the Ray cluster, whose nodes show them to Prometheus.

Ray puts its own prefix before every name and ``_total`` behind a counter's: ``ray_shifter_loss``,
``ray_shifter_images_total``. The tag ``run`` is the run's name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ray.util.metrics import Counter, Gauge

OnEvent = Callable[[Mapping[str, Any]], None]

_GAUGES = {
    "round": "The round being trained; 0 is the dense one.",
    "ratio": "Its compression ratio.",
    "epoch": "The last epoch that ended, from 1.",
    "workers": "That trained it; of an elastic run the number may change.",
    "loss": "Mean training loss of the last epoch.",
    "validation_accuracy": "After the last epoch, 0 to 1.",
    "images_per_second": "Of the last epoch, over all workers.",
}


def published(run: str, on_event: OnEvent) -> OnEvent:
    """``on_event``, which also publishes every epoch. Needs a process that is connected to Ray."""
    gauges = {
        name: Gauge(f"shifter_{name}", text, ("run",)).set_default_tags({"run": run})
        for name, text in _GAUGES.items()
    }
    images = Counter("shifter_images", "Images trained on.", ("run",)).set_default_tags({"run": run})
    cost = Counter(
        "shifter_worker_seconds", "Seconds of epochs, times the workers, one GPU or one CPU each.", ("run",)
    ).set_default_tags({"run": run})

    def publish(event: Mapping[str, Any]) -> None:
        if event["event"] == "epoch":
            values = {**event, "images_per_second": event["images"] / max(event["seconds"], 1e-9)}
            for name, gauge in gauges.items():
                gauge.set(values[name])
            images.inc(event["images"])
            cost.inc(event["seconds"] * event["workers"])
        on_event(event)

    return publish
