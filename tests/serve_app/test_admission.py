"""What is refused is refused early, and in the same form as everything else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import numpy as np
import pytest

from jobs.protocols import encode
from serve_app.app import create_app
from serve_app.service import EdgeService
from serve_app.settings import Settings
from shifter.errors import EngineError, OverloadError
from shifter.portfolio import Portfolio

JSON = {"content-type": "application/json"}


@pytest.fixture
def service(portfolio_bytes: bytes) -> EdgeService:
    return EdgeService(Portfolio.open(portfolio_bytes), Settings(portfolio="made-up.zip"))


def post(service: EdgeService, content: bytes | AsyncIterator[bytes], **headers: str) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(service))
        async with service, httpx.AsyncClient(transport=transport, base_url="http://edge") as client:
            return await client.post("/predict", content=content, headers=JSON | headers)

    return asyncio.run(ask())


def test_nothing_is_read_of_a_request_for_which_there_is_no_room(
    service: EdgeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = []

    async def body() -> AsyncIterator[bytes]:
        sent.append(1)
        yield b"{"

    def full(*_: object) -> None:
        raise OverloadError("full", 3)

    monkeypatch.setattr(service, "admit", full)
    answer = post(service, body())
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "3")
    assert not sent


def test_a_length_of_thousands_of_digits_is_too_large(service: EdgeService) -> None:
    answer = post(service, b"{}", **{"content-length": "9" * 5000})
    assert answer.status_code == 413
    assert "the limit" in answer.json()["error"]


def test_an_engine_that_fails_is_told_as_an_error(
    service: EdgeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def infer(*_: object, **__: object) -> None:
        raise EngineError("it does not run")

    monkeypatch.setattr(service, "infer", infer)
    answer = post(service, b"{}")
    assert (answer.status_code, answer.json()) == (500, {"error": "it does not run"})


def test_a_truth_value_is_no_pixel(service: EdgeService) -> None:
    pixels = encode(np.full((1, 1, 8, 8), 7)).replace(b"7", b"true", 1)
    assert b"true" in pixels
    answer = post(service, pixels)
    assert answer.status_code == 422
    assert "images[0] holds something that is not a number" in answer.json()["error"]
