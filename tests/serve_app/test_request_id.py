"""A request keeps its name from the client to the logs."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from ray.serve._private.http_util import RequestIdMiddleware
from starlette.datastructures import Headers

from jobs.protocols import encode
from serve_app.app import create_app
from serve_app.request_id import MOST_CHARACTERS, request_id_of
from serve_app.service import EdgeService
from serve_app.settings import Settings
from shifter.portfolio import Portfolio

from .in_process import JSON, PIXELS, observed


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (b"abc-123_4.5:6/7", "abc-123_4.5:6/7"),
        (b"a b\tc", "a?b?c"),
        (b'a\nlevel="error"', 'a?level="error"'),
        ("ä".encode(), "??"),
        (b"x" * 5000, "x" * MOST_CHARACTERS),
    ],
)
def test_a_name_is_kept_as_far_as_a_log_can_hold_it(given: bytes, name: str) -> None:
    assert request_id_of(Headers(raw=[(b"x-request-id", given)])) == name


def test_who_has_no_name_gets_one() -> None:
    made = {request_id_of(Headers(raw=[])), request_id_of(Headers(raw=[(b"x-request-id", b"")]))}
    assert len(made) == 2
    assert all(name.isalnum() and len(name) == 32 for name in made)


def test_client_answer_and_observers_know_one_name(portfolio_bytes: bytes) -> None:
    """Behind Serve's own middleware, which both of its ingress modes put first."""

    async def scenario() -> None:
        service = EdgeService(Portfolio.open(portfolio_bytes), Settings(portfolio="x.zip"))
        seen = observed(service)
        transport = httpx.ASGITransport(RequestIdMiddleware(create_app(service)))
        async with service, httpx.AsyncClient(transport=transport, base_url="http://edge") as client:
            body = encode(PIXELS[:1])
            given = await client.post("/predict", content=body, headers=JSON | {"x-request-id": "abc"})
            made = await client.post("/predict", content=body, headers=JSON)
            bad = await client.post("/predict", content=b"{", headers=JSON | {"x-request-id": "bad"})
        assert given.headers.get_list("x-request-id") == ["abc"]
        assert made.headers["x-request-id"]
        assert [one.request_id for one in seen.requests] == ["abc", made.headers["x-request-id"]]
        assert (bad.headers["x-request-id"], seen.refusals) == ("bad", [("request", "bad")])

    asyncio.run(scenario())
