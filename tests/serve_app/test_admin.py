"""Administration: what it does, and that nobody does it without the token."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from jobs.protocols import encode
from serve_app.secret import Token
from serve_app.service import EdgeService
from serve_app.settings import Settings
from shifter.errors import SettingsError
from shifter.portfolio import Portfolio

from .in_process import JSON, PIXELS, asking
from .portfolios import other_portfolio

SECRET = "correct-horse-battery-staple"
RIGHT = {"authorization": f"Bearer {SECRET}"}
ROUTES = (("PUT", "/admin/pin"), ("DELETE", "/admin/pin"), ("POST", "/admin/reload"))


@pytest.fixture
def token_file(tmp_path: Path) -> str:
    path = tmp_path / "token"
    path.write_text(f"{SECRET}\n")
    return str(path)


def administer(
    path: Path, act: Callable[[httpx.AsyncClient, EdgeService], Awaitable[None]], **given: Any
) -> EdgeService:
    async def scenario() -> EdgeService:
        settings = {"portfolio": str(path), "decide_every_s": 10, "refresh_s": None, **given}
        service = EdgeService.open(Settings.model_validate(settings))
        async with asking(service) as client:
            await act(client, service)
        return service

    return asyncio.run(scenario())


def test_without_a_token_in_the_settings_there_is_no_administration(portfolio_path: Path) -> None:
    async def act(client: httpx.AsyncClient, _: EdgeService) -> None:
        for method, path in ROUTES:
            answer = await client.request(method, path, headers=RIGHT)
            assert answer.status_code == 404
        assert "/admin" not in (await client.get("/openapi.json")).text

    administer(portfolio_path, act)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"authorization": SECRET},
        {"authorization": f"Basic {SECRET}"},
        {"authorization": f"Digest {SECRET}"},  # as long as the right one
        {"authorization": "Bearer"},
        {"authorization": "Bearer "},
        {"authorization": f"Bearer {SECRET[:-1]}"},
        {"authorization": f"Bearer {SECRET}x"},
        {"authorization": f"Bearer {SECRET.upper()}"},
        {"authorization": f"Bearer {SECRET} {SECRET}"},
        {"authorization": "Bearer ÿ"},
    ],
)
def test_without_the_token_nothing_is_done_and_nothing_read(
    portfolio_path: Path, token_file: str, wrong: dict[str, str]
) -> None:
    async def body() -> Any:
        raise AssertionError("it is read before who sends it is known")
        yield b""

    async def act(client: httpx.AsyncClient, service: EdgeService) -> None:
        raw = {name: value.encode("latin-1") for name, value in wrong.items()}
        for method, path in ROUTES:
            answer = await client.request(method, path, headers=raw, content=body())
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert "Authorization: Bearer" in answer.json()["error"]
            assert SECRET not in answer.text
        assert service.status()["policy"]["pinned"] is None
        assert service.status()["refresh"]["checked"] is None

    administer(portfolio_path, act, admin_token_file=token_file)


def test_a_variant_is_pinned_and_unpinned(portfolio_path: Path, token_file: str) -> None:
    async def act(client: httpx.AsyncClient, service: EdgeService) -> None:
        async def state() -> dict[str, Any]:
            return (await client.get("/status")).json()

        assert (await state())["active"] == "4x"
        pinned = await client.put("/admin/pin", json={"variant": "1x"}, headers=RIGHT)
        assert (pinned.status_code, pinned.json()) == (200, {"pinned": "1x", "active": "1x"})
        told = await state()
        assert (told["active"], told["policy"]["pinned"], told["policy"]["name"]) == ("1x", "1x", "slo")
        answered = await client.post("/predict", content=encode(PIXELS[:1]), headers=JSON)
        assert answered.headers["X-Shifter-Variant"] == "1x"
        scheme = {"authorization": f"bearer {SECRET}"}  # of which case does not matter
        freed = await client.delete("/admin/pin", headers=scheme)
        assert (freed.status_code, freed.json()["pinned"]) == (200, None)
        assert (await state())["policy"]["pinned"] is None

    administer(portfolio_path, act, admin_token_file=token_file)


@pytest.mark.parametrize(
    ("content", "status", "says"),
    [
        (b'{"variant": "3x"}', 422, "16x, 4x, 1x"),
        (b'{"variant": null}', 422, "DELETE"),
        (b'{"variant": 4}', 422, "its name"),
        (b'{"variant": ""}', 422, "name"),
        (b'{"variant": "4x", "for_s": 10}', 422, "nothing else"),
        (b'{"varient": "4x"}', 422, "nothing else"),
        (b'["4x"]', 422, "nothing else"),
        (b"4x", 400, "not JSON"),
        (b"", 400, "not JSON"),
        (b" " * 5000, 413, "4096"),
    ],
)
def test_what_is_no_variant_is_not_pinned(
    portfolio_path: Path, token_file: str, content: bytes, status: int, says: str
) -> None:
    async def act(client: httpx.AsyncClient, service: EdgeService) -> None:
        answer = await client.put("/admin/pin", content=content, headers=RIGHT)
        assert answer.status_code == status, answer.text
        assert says in answer.json()["error"]
        assert service.status()["policy"]["pinned"] is None

    administer(portfolio_path, act, admin_token_file=token_file)


def test_a_reload_says_what_came_of_it(portfolio_path: Path, token_file: str) -> None:
    first = Portfolio.open(portfolio_path.read_bytes())
    newer = other_portfolio(first)
    bad = other_portfolio(first, classes=("a", "b", "c"))

    def put(data: bytes) -> None:
        portfolio_path.with_name("other.zip").write_bytes(data)
        os.replace(portfolio_path.with_name("other.zip"), portfolio_path)

    async def act(client: httpx.AsyncClient, service: EdgeService) -> None:
        async def reload() -> httpx.Response:
            return await client.post("/admin/reload", headers=RIGHT)

        answer = await reload()
        assert (answer.status_code, answer.json()["outcome"]) == (200, "nothing new")
        put(newer)
        answer = await reload()
        digest = Portfolio.open(newer).digest
        assert answer.json() == {"outcome": "taken over", "portfolio": digest}
        assert service.status()["portfolio"] == digest
        assert service.status()["model"] == "tiny"  # what it is asked for as
        assert service.status()["portfolio_model"] == "newer"
        put(bad)
        answer = await reload()
        assert answer.status_code == 409
        assert "3 classes (a, …, c)" in answer.json()["error"]
        assert digest in answer.json()["error"]
        portfolio_path.unlink()
        answer = await reload()
        assert answer.status_code == 409
        assert "No such file" in answer.json()["error"]
        assert service.status()["portfolio"] == digest
        answered = await client.post("/predict", content=encode(PIXELS[:1]), headers=JSON)
        assert answered.status_code == 200

    administer(portfolio_path, act, admin_token_file=token_file)


def test_a_portfolio_from_nowhere_is_not_looked_for(portfolio_bytes: bytes, token_file: str) -> None:
    async def scenario() -> None:
        settings = Settings(portfolio="x.zip", admin_token_file=token_file)
        async with asking(EdgeService(Portfolio.open(portfolio_bytes), settings)) as client:
            answer = await client.post("/admin/reload", headers=RIGHT)
            assert answer.status_code == 409
            assert "not read from a place" in answer.json()["error"]

    asyncio.run(scenario())


def test_the_token_is_told_to_nobody(
    portfolio_path: Path, token_file: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    async def act(client: httpx.AsyncClient, service: EdgeService) -> None:
        told = [
            (await client.get(path, headers=RIGHT)).text for path in ("/status", "/docs", "/openapi.json")
        ]
        told += [(await client.post("/admin/reload", headers=RIGHT)).text]
        told += [repr(service.settings), str(service.settings.model_dump()), repr(vars(service.admin_token))]
        assert not [text for text in told if SECRET in text]

    with caplog.at_level(logging.DEBUG):
        administer(portfolio_path, act, admin_token_file=token_file)
    out, err = capfd.readouterr()
    assert SECRET not in caplog.text + out + err


def test_the_token_comes_from_a_variable_or_a_file(token_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHIFTER_ADMIN_TOKEN", f" {SECRET} ")
    for where in ({"admin_token_env": "SHIFTER_ADMIN_TOKEN"}, {"admin_token_file": token_file}):
        token = Token.of(Settings.model_validate({"portfolio": "x.zip", **where}))
        assert token is not None
        assert token.allows(f"Bearer {SECRET}")
        assert not token.allows("Bearer ")
    assert Token.of(Settings(portfolio="x.zip")) is None


def test_a_token_that_is_not_there_or_can_be_guessed_ends_the_start(
    portfolio_bytes: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SHIFTER_ADMIN_TOKEN", raising=False)
    portfolio = Portfolio.open(portfolio_bytes)
    with pytest.raises(SettingsError, match=r"SHIFTER_ADMIN_TOKEN .* holds 0 characters .* at least 16"):
        EdgeService(portfolio, Settings(portfolio="x.zip", admin_token_env="SHIFTER_ADMIN_TOKEN"))
    with pytest.raises(SettingsError, match="cannot be read on the node"):
        Token.of(Settings(portfolio="x.zip", admin_token_file=str(tmp_path / "none")))
    (tmp_path / "short").write_text("secret")
    with pytest.raises(SettingsError, match="holds 6 characters") as told:
        Token.of(Settings(portfolio="x.zip", admin_token_file=str(tmp_path / "short")))
    assert "secret\n" not in str(told.value)
    with pytest.raises(ValidationError, match="leave out admin_token_env or admin_token_file"):
        Settings(portfolio="x.zip", admin_token_env="A", admin_token_file="b")
