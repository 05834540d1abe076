"""Triton's statistics extension, as far as it is known here."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

from serve_app.observer import Answered, Cause
from shifter.switching.host import Status, Switch


class Statistics:
    """Counts requests of all protocols, as an observer of the service; on the event loop alone."""

    def __init__(self) -> None:
        self._images = self._requests = self._refused = 0
        self._seconds = 0.0
        self._last = 0.0
        # Calls and seconds by batch size. A request is told with the call that it shared: its share counts.
        self._calls: dict[int, float] = defaultdict(float)
        self._engine_s: dict[int, float] = defaultdict(float)

    def answered(self, answered: Answered) -> None:
        share = answered.images / answered.batch
        self._images += answered.images
        self._requests += 1
        self._seconds += answered.seconds
        self._last = time.time()
        self._calls[answered.batch] += share
        self._engine_s[answered.batch] += share * answered.engine_s

    def refused(self, cause: Cause, request_id: str) -> None:
        self._refused += 1

    def switched(self, switch: Switch) -> None:
        """Whichever variant answers, the model is the same."""

    def ticked(self, status: Status) -> None:
        """Nothing here is told of moments."""

    def to_json(self, model: str) -> dict[str, Any]:
        """One ``$model_stat``, without the durations that nobody measures."""
        calls, engine_s = sum(self._calls.values()), sum(self._engine_s.values())
        return {
            "name": model,
            "last_inference": round(1e3 * self._last),
            "inference_count": self._images,
            "execution_count": round(calls),
            "inference_stats": {
                "success": _duration(self._requests, self._seconds),
                "fail": {"count": self._refused},
                "compute_infer": _duration(calls, engine_s),
            },
            "batch_stats": [
                {"batch_size": size, "compute_infer": _duration(self._calls[size], self._engine_s[size])}
                for size in sorted(self._calls)
            ],
        }


def _duration(count: float, seconds: float) -> dict[str, int]:
    return {"count": round(count), "ns": round(1e9 * seconds)}
