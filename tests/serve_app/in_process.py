"""The application in the test's own process, with observers and engines that wait to be told."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import numpy as np

from serve_app.app import create_app
from serve_app.observer import Answered, Cause
from serve_app.service import EdgeService
from shifter.switching.host import Status, Switch

JSON = {"content-type": "application/json"}
PIXELS = np.random.default_rng(0).integers(0, 17, (40, 1, 8, 8))


@asynccontextmanager
async def asking(service: EdgeService) -> AsyncIterator[httpx.AsyncClient]:
    """Clients of the service, which runs."""
    transport = httpx.ASGITransport(create_app(service))
    async with service, httpx.AsyncClient(transport=transport, base_url="http://edge") as client:
        yield client


class Gate:
    """An engine that answers when it is told to."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.open, self.entered = engine, threading.Event(), threading.Event()
        self.images = 0

    def run(self, images: np.ndarray) -> np.ndarray:
        self.entered.set()
        assert self.open.wait(30)
        self.images += len(images)
        return self.engine.run(images)


def gated(service: EdgeService) -> Gate:
    """In the place of the active variant's engine; the service is to have a fixed variant."""
    resident = service._host._resident
    gate = Gate(resident.active.engine)
    resident.active = resident.active._replace(engine=gate)
    return gate


async def inside(service: EdgeService, requests: int) -> None:
    """Returns when so many are."""
    async with asyncio.timeout(30):
        while service.status()["load"]["queue"] != requests:
            await asyncio.sleep(0.005)


class Seen:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.requests: list[Answered] = []
        self.refusals: list[tuple[Cause, str]] = []

    def answered(self, answered: Answered) -> None:
        self.requests.append(answered)

    def refused(self, cause: Cause, request_id: str) -> None:
        self.refusals.append((cause, request_id))

    def switched(self, switch: Switch) -> None: ...

    def ticked(self, status: Status) -> None: ...


def observed(service: EdgeService) -> Seen:
    seen = Seen()
    service.observers.append(seen)
    return seen
