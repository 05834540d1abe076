"""What ``GET /status`` answers."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np

from serve_app.admission import Admission
from serve_app.observer import Answered
from serve_app.settings import Settings
from shifter.switching.engines import EngineMaker
from shifter.switching.refresh import Refresh
from shifter.switching.status import Status, Switch

_SHOWN_SWITCHES: Final = 50
_SHOWN_LATENCIES: Final = 1000


class Answers:
    """What was answered: of each variant how often, and how long the last ones took."""

    def __init__(self) -> None:
        self._by_variant: Counter[str] = Counter()
        self._seconds: deque[float] = deque(maxlen=_SHOWN_LATENCIES)

    def add(self, one: Answered) -> None:
        self._by_variant[one.variant] += 1
        self._seconds.append(one.seconds)

    def document(self) -> dict[str, Any]:
        latencies = list(self._seconds)
        return {
            "latency_ms": {
                "requests": len(latencies),
                "p50": 1e3 * float(np.percentile(latencies, 50)) if latencies else None,
                "p99": 1e3 * float(np.percentile(latencies, 99)) if latencies else None,
            },
            "answered": dict(self._by_variant),
        }


def document(
    model: str,
    settings: Settings,
    host: Status,
    *,
    engines: EngineMaker,
    calibration: str,
    refresh: Refresh | None,
    admission: Admission,
    answers: Answers,
) -> dict[str, Any]:
    """Plain data. Times in milliseconds but where they say UTC."""
    deadline = settings.deadline_s
    return {
        "model": model,
        "portfolio": host.portfolio.digest,
        "portfolio_model": host.portfolio.model,
        "since": utc(host.since),
        "refresh": _refresh(settings, refresh),
        "active": host.active,
        "reason": host.reason,
        "engine": {
            "name": engines.kind,
            "threads": engines.threads,
            "providers": list(engines.providers),
            "absent": dict(engines.absent),
        },
        "calibration": calibration,
        "policy": {
            "name": settings.policy,
            "variant": settings.variant,
            "pinned": host.pinned,
            "objective_ms": settings.objective_ms,
            "deadline_ms": None if deadline is None else 1e3 * deadline,
        },
        "load": {
            "requests_per_s": host.rate,
            "queue": host.queue,
            "waiting": host.waiting,
            "computing": host.computing,
            "max_queue": settings.max_queue,
            "max_batch": settings.max_batch,
            "read_bytes": admission.bytes,
            "max_read_bytes": settings.read_bytes,
        },
        "memory": {
            "budget_bytes": settings.memory_bytes,
            "taken_bytes": host.memory_bytes,
            "deflated_bytes": host.portfolio.deflated_bytes,
        },
        **answers.document(),
        "refused": dict(admission.refused),
        "switches": [_switch(switch) for switch in host.switches[-_SHOWN_SWITCHES:]],
        "variants": [
            {
                "name": name,
                "active": name == host.active,
                "ready": name in host.ready,
                "usable": name in host.usable,
                **asdict(profile),
            }
            for name, profile in host.portfolio.profiles.items()
        ],
    }


def _refresh(settings: Settings, refresh: Refresh | None) -> Mapping[str, Any]:
    looked = refresh.last if refresh else None
    return {
        "every_s": None if refresh is None else settings.refresh_s,
        "checked": utc(looked.time) if looked else None,
        "error": looked.error if looked else None,
    }


def _switch(switch: Switch) -> dict[str, Any]:
    return {
        "at": utc(switch.time),
        "from": switch.before,
        "to": switch.after,
        "reason": switch.reason,
        "ms": 1e3 * switch.seconds,
        "ahead": switch.ahead,
        "error": switch.error,
    }


def utc(time: float) -> str:
    """Of seconds since the epoch."""
    return datetime.fromtimestamp(time, UTC).isoformat(timespec="milliseconds")
