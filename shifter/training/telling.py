"""Events of training as text for people. Pure, and without torch: whoever shows them may import it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def told(event: Mapping[str, Any]) -> str:
    """One line for an event of :func:`shifter.training.imp.iterative_magnitude_pruning`, but ``attempt``."""
    match event["event"]:
        case "epoch":
            return (
                f"{_round_of(event)}, epoch {event['epoch']} of {event['epochs']}: "
                f"loss {event['loss']:.4f}, validation accuracy {event['validation_accuracy']:.2%}, "
                f"{images_per_second(event):,.0f} images/s"
            )
        case "round":
            return (
                f"{_round_of(event)} is finished: {event['nonzero_weights']:,} weights, "
                f"validation accuracy {event['validation_accuracy']:.2%}"
            )
        case "note":
            return str(event["text"])
    raise AssertionError(f"an event that nobody shows: {event}")


def images_per_second(epoch: Mapping[str, Any]) -> float:
    """Of an event ``epoch``, over all workers."""
    return float(epoch["images"] / max(epoch["seconds"], 1e-9))


def _round_of(event: Mapping[str, Any]) -> str:
    return f"round {event['round']} of 0–{event['rounds'] - 1} ({event['ratio']:g}x)"
