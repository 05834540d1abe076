"""The routes of the page: what is told, how often it is made, and what the page may do."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import serve_app
from jobs.protocols import encode
from serve_app import live
from serve_app.app import create_app
from serve_app.service import EdgeService
from serve_app.settings import Settings
from shifter.portfolio import Portfolio

FOLDER = Path(serve_app.__file__).with_name("page")
PIXELS = np.random.default_rng(0).integers(0, 17, (4, 1, 8, 8))


@asynccontextmanager
async def edge(portfolio_bytes: bytes) -> AsyncIterator[tuple[httpx.AsyncClient, EdgeService]]:
    service = EdgeService(
        Portfolio.open(portfolio_bytes), Settings(portfolio="x.zip", max_body_bytes=1 << 16)
    )
    transport = httpx.ASGITransport(create_app(service))
    async with service, httpx.AsyncClient(transport=transport, base_url="http://edge") as client:
        yield client, service


def run(
    portfolio_bytes: bytes, scenario: Callable[[httpx.AsyncClient, EdgeService], Awaitable[None]]
) -> None:
    async def started() -> None:
        async with edge(portfolio_bytes) as (client, service):
            await scenario(client, service)

    asyncio.run(started())


def test_it_tells_the_status_and_the_seconds_as_the_schema_says(portfolio_bytes: bytes) -> None:
    async def scenario(client: httpx.AsyncClient, service: EdgeService) -> None:
        for _ in range(7):
            answer = await client.post(
                "/predict", content=encode(PIXELS), headers={"content-type": "application/json"}
            )
            assert answer.status_code == 200
        await asyncio.sleep(1.2)
        answer = await client.get("/live.json")
        assert answer.headers["cache-control"] == "no-store"
        told = live.Live.model_validate(answer.json())
        history = told.history
        assert sum(history.answered) == sum(history.arrived) == 7
        assert history.refused == {}
        lengths = {len(v) for v in history.model_dump(exclude={"id", "next", "begin", "refused"}).values()}
        assert lengths == {history.next}
        assert told.classes == list(service.portfolio.input_spec.classes)
        assert max(p for p in history.p99_ms if p) >= max(p for p in history.p50_ms if p) > 0
        status = (await client.get("/status")).json()
        assert told.status["answered"] == status["answered"] == {status["active"]: 7}
        assert {*status["variants"][0]} - {*told.status["variants"][0]} == {"layers"}

        newer = live.Live.model_validate((await client.get(f"/live.json?since={history.next}")).json())
        assert newer.classes == []
        assert newer.history.id == history.id
        assert len(newer.history.arrived) == newer.history.next - history.next

        schema = (await client.get("/openapi.json")).json()
        described = schema["paths"]["/live.json"]["get"]
        shape = described["responses"]["200"]["content"]["application/json"]["schema"]
        assert shape == {"$ref": "#/components/schemas/Live"}
        assert described["parameters"][0]["name"] == "since"

    run(portfolio_bytes, scenario)


def test_however_many_look_the_service_is_asked_once_a_second(
    portfolio_bytes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(client: httpx.AsyncClient, service: EdgeService) -> None:
        asked = 0
        status = service.status

        def counted() -> dict[str, Any]:
            nonlocal asked
            asked += 1
            return status()

        monkeypatch.setattr(service, "status", counted)
        begin = asyncio.get_running_loop().time()
        answers = [await client.get(f"/live.json?since={number % 40}") for number in range(120)]
        passed = asyncio.get_running_loop().time() - begin
        assert {answer.status_code for answer in answers} == {200}
        assert 1 <= asked <= passed + 2

    run(portfolio_bytes, scenario)


@pytest.mark.parametrize("since", ["-1", "x", "1.5"])
def test_a_number_that_is_none_is_refused(portfolio_bytes: bytes, since: str) -> None:
    async def scenario(client: httpx.AsyncClient, _: EdgeService) -> None:
        assert (await client.get(f"/live.json?since={since}")).status_code == 422

    run(portfolio_bytes, scenario)


def test_each_file_is_served_with_its_type_and_kept_as_long_as_it_is_the_same(portfolio_bytes: bytes) -> None:
    types = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

    async def scenario(client: httpx.AsyncClient, _: EdgeService) -> None:
        tags = set()
        for path in FOLDER.iterdir():
            url = "/" if path.name == "index.html" else f"/page/{path.name}"
            answer = await client.get(url)
            assert answer.status_code == 200
            assert answer.content == path.read_bytes()
            assert answer.headers["content-type"].startswith(types[path.suffix])
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["cache-control"] == "no-cache"
            policy = answer.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
            assert "unsafe" not in policy
            assert "*" not in policy
            tag = answer.headers["etag"]
            tags.add(tag)
            for known in (tag, f'"other", W/{tag}'):
                again = await client.get(url, headers={"if-none-match": known})
                assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
                assert again.headers["content-security-policy"] == policy
            other = await client.get(url, headers={"if-none-match": '"other"'})
            assert other.status_code == 200
            head = await client.head(url)
            assert (head.status_code, head.headers["etag"]) == (200, tag)
        assert len(tags) == len(list(FOLDER.iterdir()))

    run(portfolio_bytes, scenario)


def test_nothing_beside_the_page_is_served(portfolio_bytes: bytes) -> None:
    async def scenario(client: httpx.AsyncClient, _: EdgeService) -> None:
        for path in ("/page/", "/page/nothing.js", "/page/../live.py", "/page/%2e%2e/live.py", "/live"):
            assert (await client.get(path)).status_code == 404

    run(portfolio_bytes, scenario)


def test_the_page_is_small_and_names_no_other_host() -> None:
    texts = {path.name: path.read_text() for path in FOLDER.iterdir()}
    assert sum(len(text.encode()) for text in texts.values()) < 100_000
    for name, text in texts.items():
        # The namespace of SVG is a name, which nobody asks for.
        text = text.replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert not re.search(r"(?i)\b(?:https?|wss?|ftp):|[\"'(=]\s*//", text), name
    page = texts["index.html"]
    assert not re.search(r"(?i)<style|\bon\w+=|\bstyle=|javascript:|<script(?![^>]*\bsrc=)", page)


def test_every_address_in_the_page_is_relative_and_there(portfolio_bytes: bytes) -> None:
    async def scenario(client: httpx.AsyncClient, _: EdgeService) -> None:
        page = (FOLDER / "index.html").read_text()
        for address in re.findall(r"(?:href|src)=\"(.*?)\"", page):
            assert not address.startswith("/")
            assert (await client.get(f"/{address}")).status_code == 200, address
        for script in FOLDER.glob("*.js"):
            for module in re.findall(r"from \"(.*?)\"", script.read_text()):
                assert (FOLDER / module).is_file(), f"{script.name}: {module}"
            for address in re.findall(r"fetch\([\"`](\w[\w.]*)", script.read_text()):
                known = (await client.get("/openapi.json")).json()["paths"]
                assert f"/{address}" in known, f"{script.name}: {address}"

    run(portfolio_bytes, scenario)
