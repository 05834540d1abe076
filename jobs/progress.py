"""What is shown of training while it runs, drawn from its events. Pure: the clock is the caller's."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from shifter.training.telling import images_per_second, told


class Training:
    """Rate, time left and cost, from the epochs as they come in.

    What counts is this start of the command: of a run that is resumed, the time left is that of
    what is left, and the cost is without that of earlier starts.

    Args:
        epoch: the first event ``epoch`` of ``shifter.training.imp``.
        now: seconds, when it came.
    """

    def __init__(self, epoch: Mapping[str, Any], now: float) -> None:
        # Since the first epoch began, so that what lies between two rounds counts as well.
        self._began = self._at = now - float(epoch["seconds"])
        self._images = 0
        self._cost = 0.0
        self.take(epoch, now)

    def take(self, epoch: Mapping[str, Any], now: float) -> None:
        """The next epoch."""
        self._cost += (now - self._at) * epoch["workers"]
        self.epoch = epoch
        self._at = now
        self._images += epoch["images"]

    @property
    def images_per_second(self) -> float:
        """Of the last epoch, over all workers."""
        return images_per_second(self.epoch)

    def seconds_left(self, now: float) -> float:
        """To the end of the last round, if the rest goes as what was seen so far."""
        per_image = (self._at - self._began) / max(self._images, 1)
        return max(0.0, int(self.epoch["images_left"]) * per_image - (now - self._at))

    def worker_seconds(self, now: float) -> float:
        """What the workers have been held for: seconds of one accelerator, or of one CPU, each."""
        return self._cost + (now - self._at) * int(self.epoch["workers"])

    @property
    def unit(self) -> str:
        """Of :meth:`worker_seconds`."""
        return "CPU-s" if self.epoch["device"] == "cpu" else "GPU-s"

    def cells(self, now: float) -> dict[str, str]:
        """Everything as text, under its heading; short, so that all of it fits into 80 characters."""
        seen = self.epoch
        whose = {"run": str(seen["run"])} if "run" in seen else {}
        return whose | {
            "round": f"{seen['round']}/{seen['rounds'] - 1}",
            "ratio": f"{seen['ratio']:g}x",
            "epoch": f"{seen['epoch']}/{seen['epochs']}",
            "loss": f"{seen['loss']:.4f}",
            "validation": f"{seen['validation_accuracy']:.2%}",
            "images/s": f"{self.images_per_second:,.0f}",
            "time left": clock(self.seconds_left(now)),
            "cost": f"{self.worker_seconds(now):,.0f} {self.unit}",
        }

    def line(self, now: float) -> str:
        """The same in one line."""
        left, cost = clock(self.seconds_left(now)), f"{self.worker_seconds(now):,.0f} {self.unit}"
        return f"{line(self.epoch)}, {left} left, {cost} so far"

    def figures(self, now: float) -> dict[str, float]:
        """What a program would otherwise have to work out itself, as numbers."""
        return {
            "images_per_second": self.images_per_second,
            "seconds_left": self.seconds_left(now),
            "worker_seconds": self.worker_seconds(now),
        }


def clock(seconds: float) -> str:
    """Hours, minutes and seconds: ``0:01:23``."""
    return str(timedelta(seconds=round(seconds)))


def line(event: Mapping[str, Any]) -> str:
    """An event for people."""
    return f"{_whose(event)}{_told(event)}"


def _whose(event: Mapping[str, Any]) -> str:
    return f"{event['run']}: " if "run" in event else ""


def _told(event: Mapping[str, Any]) -> str:
    kind = event["event"]
    if kind == "reduced":
        return (
            f"reduced {event['variant']} ({event['done']} of {event['of']}): "
            f"{event['structural_parameters']:,} structural parameters, "
            f"error {event['error']:.1e} (relative, in float64)"
        )
    if kind == "waiting":
        so_far = clock(event["seconds"])
        if event["begun"]:
            return (
                f"waiting for {so_far}: all CPUs of the cluster ({event['cpus']}) are taken, "
                "by this reduction's own tasks or by others"
            )
        return f"waiting for a CPU: all of the cluster's ({event['cpus']}) are taken; {so_far} so far"
    if kind == "profiling":
        return f"profiling {event['variants']} variants"
    return told(event)
