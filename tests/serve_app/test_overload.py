"""Who is not let in is told so at once, and when to come back; who is, keeps a deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import numpy as np
import pytest

from jobs.protocols import encode
from serve_app.protocol import answer, decode
from serve_app.service import EdgeService
from serve_app.settings import DEADLINE_OBJECTIVES, MOST_READ_BYTES, Settings
from shifter.errors import OverloadError
from shifter.portfolio import Portfolio
from shifter.values import InputSpec

from .in_process import JSON, PIXELS, asking, gated, inside, observed

BODY = encode(PIXELS[:2])


@pytest.fixture
def portfolio(portfolio_bytes: bytes) -> Portfolio:
    return Portfolio.open(portfolio_bytes)


def fixed(portfolio: Portfolio, **given: Any) -> EdgeService:
    settings = {"portfolio": "x.zip", "policy": "fixed", "variant": "1x", "decide_every_s": 10, **given}
    return EdgeService(portfolio, Settings.model_validate(settings))


def test_the_deadline_follows_the_objective_unless_it_is_set() -> None:
    assert Settings(portfolio="x.zip").deadline_s == DEADLINE_OBJECTIVES * 100 / 1e3
    assert 1 <= DEADLINE_OBJECTIVES < 2
    assert Settings(portfolio="x.zip", objective_ms=20, deadline_ms=30).deadline_s == 0.03
    assert Settings(portfolio="x.zip", policy="trend").deadline_s is None
    assert Settings(portfolio="x.zip", policy="trend", deadline_ms=500).deadline_s == 0.5


def test_a_full_queue_refuses_at_once_and_those_inside_are_answered(portfolio: Portfolio) -> None:
    async def scenario() -> None:
        service = fixed(portfolio, max_queue=3)
        gate, seen = gated(service), observed(service)
        async with asking(service) as client:
            post = partial(client.post, "/predict", content=BODY)
            held = [asyncio.create_task(post(headers=JSON)) for _ in range(3)]
            await inside(service, 3)
            refused = await post(headers=JSON | {"x-request-id": "the fourth"})
            assert refused.status_code == 503
            assert int(refused.headers["Retry-After"]) >= 1
            assert "3 requests wait already" in refused.json()["error"]
            assert f"ask again in {refused.headers['Retry-After']} s" in refused.json()["error"]
            assert not any(task.done() for task in held)
            gate.open.set()
            assert [answer.status_code for answer in await asyncio.gather(*held)] == [200] * 3
            assert (await post(headers=JSON)).status_code == 200
            assert seen.refusals == [("queue", "the?fourth")]
            assert service.status()["refused"] == {"queue": 1}

    asyncio.run(scenario())


def test_what_cannot_be_answered_in_time_is_refused_before_its_body_is_read(
    portfolio: Portfolio, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent
        sent += 1
        yield BODY

    async def scenario() -> None:
        service = fixed(portfolio, deadline_ms=500)
        seen, counted = observed(service), []
        monkeypatch.setattr(service._host, "refused", lambda: counted.append(1))
        async with asking(service) as client:
            with service._host.request():
                monkeypatch.setattr(service._host, "wait_s", lambda images=1: 2.75)
                refused = await client.post("/predict", content=body(), headers=JSON)
                assert (refused.status_code, refused.headers["Retry-After"]) == (503, "3")
                assert "would take 2750 ms, and is to take 500 ms at most" in refused.json()["error"]
                assert sent == 0
                assert [cause for cause, _ in seen.refusals] == ["deadline"]
                assert len(counted) == 1, "what is refused is load as well"
                monkeypatch.setattr(service._host, "wait_s", lambda images=1: 0.25)
                assert (await client.post("/predict", content=body(), headers=JSON)).status_code == 200
            # Nobody is inside: what takes too long now always will.
            monkeypatch.setattr(service._host, "wait_s", lambda images=1: 2.75)
            assert (await client.post("/predict", content=body(), headers=JSON)).status_code == 200

    asyncio.run(scenario())


def test_without_a_deadline_waiting_is_no_fault(
    portfolio: Portfolio, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        service = fixed(portfolio)
        monkeypatch.setattr(service._host, "wait_s", lambda images=1: 1000.0)
        async with asking(service) as client:
            with service._host.request():
                assert (await client.post("/predict", content=BODY, headers=JSON)).status_code == 200

    asyncio.run(scenario())


def test_who_was_let_in_and_is_too_late_at_his_turn_is_refused_and_not_computed(portfolio: Portfolio) -> None:
    async def scenario() -> None:
        service = fixed(portfolio, deadline_ms=150)
        gate, seen = gated(service), observed(service)
        async with asking(service) as client:
            post = partial(client.post, "/predict", content=BODY, headers=JSON)
            first = asyncio.create_task(post())
            await asyncio.to_thread(gate.entered.wait, 30)
            second = asyncio.create_task(post())
            await inside(service, 2)
            await asyncio.sleep(0.2)  # longer than the deadline of the second; the first has none
            gate.open.set()
            assert (await first).status_code == 200
            late = await second
            assert late.status_code == 503
            assert int(late.headers["Retry-After"]) >= 1
            assert [cause for cause, _ in seen.refusals] == ["deadline"]
            assert gate.images == 2

    asyncio.run(scenario())


def test_decoding_counts_in_the_deadline(portfolio: Portfolio) -> None:
    async def scenario() -> None:
        service = fixed(portfolio, deadline_ms=100)
        seen = observed(service)

        def slow(spec: InputSpec) -> np.ndarray:
            time.sleep(0.15)
            return decode(BODY, "application/json", spec, service.limits)

        async with service:
            with service._host.request(), pytest.raises(OverloadError):
                await service.infer(slow, answer)
            assert not seen.requests
            await service.infer(slow, answer)  # alone, it is answered
            assert len(seen.requests) == 1

    asyncio.run(scenario())


def test_a_client_that_has_gone_is_not_computed_for(portfolio: Portfolio) -> None:
    """Serve cancels the request of a client that has disconnected."""

    async def scenario() -> None:
        service = fixed(portfolio)
        gate, seen = gated(service), observed(service)
        async with service:
            read = partial(decode, BODY, "application/json", limits=service.limits)
            staying = asyncio.create_task(service.infer(read, answer))
            await asyncio.to_thread(gate.entered.wait, 30)
            going = [asyncio.create_task(service.infer(read, answer)) for _ in range(3)]
            await inside(service, 4)
            for task in going:
                task.cancel()
            assert all(
                isinstance(e, asyncio.CancelledError)
                for e in await asyncio.gather(*going, return_exceptions=True)
            )
            await inside(service, 1)
            gate.open.set()
            await staying
            assert gate.images == 2
            assert seen.refusals == []

    asyncio.run(scenario())


def test_bytes_of_bodies_inside_are_bounded_together(portfolio: Portfolio) -> None:
    async def scenario() -> None:
        service = fixed(portfolio, max_body_bytes=100_000, max_read_bytes=100_000)
        seen, more = observed(service), asyncio.Event()
        blank = b" " * 60_000

        async def slowly() -> AsyncIterator[bytes]:
            yield blank
            await more.wait()
            yield BODY

        async with asking(service) as client:
            first = asyncio.create_task(client.post("/predict", content=slowly(), headers=JSON))
            async with asyncio.timeout(30):
                while not service.status()["load"]["read_bytes"]:
                    await asyncio.sleep(0.005)
            second = await client.post("/predict", content=blank, headers=JSON)
            assert (second.status_code, seen.refusals[0][0]) == (503, "bytes")
            assert int(second.headers["Retry-After"]) >= 1
            assert "and 100000 may be" in second.json()["error"]
            more.set()
            assert (await first).status_code == 200
            assert service.status()["load"]["read_bytes"] == 0
            assert (await client.post("/predict", content=BODY, headers=JSON)).status_code == 200

    asyncio.run(scenario())


def test_the_bound_on_bytes_holds_a_body_and_is_no_more_than_is_sane() -> None:
    assert Settings(portfolio="x.zip", max_queue=2, max_body_bytes=1000).read_bytes == 2000
    assert Settings(portfolio="x.zip", max_queue=10_000).read_bytes == MOST_READ_BYTES
    assert Settings(portfolio="x.zip", max_body_bytes=1 << 30).read_bytes == 1 << 30
    assert Settings(portfolio="x.zip", max_read_bytes=1 << 24).read_bytes == 1 << 24


def test_a_service_that_ends_lets_nobody_in_and_answers_those_inside(portfolio: Portfolio) -> None:
    async def scenario() -> None:
        service = fixed(portfolio)
        gate, seen = gated(service), observed(service)
        assert service.ready
        async with asking(service) as client:
            held = asyncio.create_task(client.post("/predict", content=BODY, headers=JSON))
            await inside(service, 1)
            ending = asyncio.create_task(service.__aexit__(None, None, None))
            async with asyncio.timeout(30):
                while service.ready:
                    await asyncio.sleep(0.005)
            refused = await client.post("/predict", content=BODY, headers=JSON)
            assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
            assert [cause for cause, _ in seen.refusals] == ["stopping"]
            gate.open.set()
            assert (await held).status_code == 200
            await ending

    asyncio.run(scenario())


def test_a_switch_leaves_it_ready(portfolio: Portfolio) -> None:
    async def scenario() -> None:
        async with EdgeService(portfolio, Settings(portfolio="x.zip", decide_every_s=10)) as service:
            for name in ("16x", "1x"):
                pinning = asyncio.create_task(service.upkeep.pin(name))
                while not pinning.done():
                    assert service.ready
                    await asyncio.sleep(0)
                assert await pinning == name

    asyncio.run(scenario())
