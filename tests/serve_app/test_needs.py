"""What a client asks of the variant is honoured or refused, never ignored."""

from __future__ import annotations

import asyncio
from functools import partial

import httpx
import pytest
from starlette.datastructures import Headers

from jobs.protocols import encode
from serve_app.needs import needs_of
from serve_app.protocol import answer, decode
from serve_app.service import EdgeService
from serve_app.settings import Settings
from shifter.errors import NeedsError
from shifter.portfolio import Portfolio
from shifter.switching.needs import Needs

from .in_process import JSON, PIXELS, asking, observed


def headers(*pairs: tuple[str, str]) -> Headers:
    return Headers(raw=[(name.lower().encode(), value.encode()) for name, value in pairs])


WANT, LEAST = "X-Shifter-Want-Variant", "X-Shifter-Min-Accuracy"


@pytest.mark.parametrize(
    ("said", "parameters", "needs"),
    [
        ([], {}, Needs()),
        ([], {"sequence_id": 3}, Needs()),
        ([(WANT, "4x")], {}, Needs("4x")),
        ([("x-shifter-want-variant", " 4x ")], {}, Needs("4x")),
        ([(LEAST, "0.95")], {}, Needs(None, 0.95)),
        ([(LEAST, "1")], {}, Needs(None, 1.0)),
        ([(LEAST, ".5")], {}, Needs(None, 0.5)),
        ([(LEAST, "5e-1")], {}, Needs(None, 0.5)),
        ([(WANT, "4x"), (LEAST, "0.9")], {}, Needs("4x", 0.9)),
        ([], {"variant": "4x", "min_accuracy": 0.9}, Needs("4x", 0.9)),
        ([], {"min_accuracy": "0.9"}, Needs(None, 0.9)),
        ([], {"min_accuracy": 1}, Needs(None, 1.0)),
        ([(WANT, "4x"), (LEAST, "0.90")], {"variant": "4x", "min_accuracy": 0.9}, Needs("4x", 0.9)),
        ([(WANT, "4x")], {"min_accuracy": 0.9}, Needs("4x", 0.9)),
    ],
)
def test_needs_are_read_wherever_they_are_said(
    said: list[tuple[str, str]], parameters: dict[str, object], needs: Needs
) -> None:
    assert needs_of(headers(*said), parameters) == needs


@pytest.mark.parametrize(
    ("said", "parameters", "says"),
    [
        ([(LEAST, "95%")], {}, "a number from 0 to 1, such as 0.95 for 95 %"),
        ([(LEAST, "95")], {}, "X-Shifter-Min-Accuracy is '95'"),
        ([(LEAST, "1.01")], {}, "from 0 to 1"),
        ([(LEAST, "-0.1")], {}, "from 0 to 1"),
        ([(LEAST, "nan")], {}, "'nan'"),
        ([(LEAST, "inf")], {}, "'inf'"),
        ([(LEAST, "0,95")], {}, "'0,95'"),
        ([(LEAST, "0_9")], {}, "'0_9'"),
        ([(LEAST, "\u0660")], {}, "from 0 to 1"),
        ([(LEAST, "")], {}, "leave it out"),
        ([(LEAST, "high" * 1000)], {}, "…"),
        ([(WANT, " ")], {}, "name of a variant"),
        ([(LEAST, "0.9"), (LEAST, "0.8")], {}, "0.9 and for 0.8: say it once"),
        ([(WANT, "4x"), (WANT, "1x")], {}, "'4x' and for '1x'"),
        ([(WANT, "4x")], {"variant": "1x"}, "the parameter variant ask for '4x' and for '1x'"),
        ([], {"variant": 4}, "the parameter variant is 4"),
        ([], {"variant": None}, "name of a variant"),
        ([], {"min_accuracy": True}, "the parameter min_accuracy is True"),
        ([], {"min_accuracy": float("nan")}, "is nan"),
        ([], {"min_accuracy": None}, "is None"),
        ([], {"min_accuracy": [0.9]}, "is [0.9]"),
    ],
)
def test_nonsense_is_told_what_is_right(
    said: list[tuple[str, str]], parameters: dict[str, object], says: str
) -> None:
    with pytest.raises(NeedsError) as told:
        needs_of(headers(*said), parameters)
    assert told.value.status == 400
    assert says in str(told.value)
    assert len(str(told.value)) < 300


def ask(service: EdgeService, *asked: dict[str, str]) -> list[httpx.Response]:
    async def scenario() -> list[httpx.Response]:
        async with asking(service) as client:
            return [
                await client.post("/predict", content=encode(PIXELS[:2]), headers=JSON | each)
                for each in asked
            ]

    return asyncio.run(scenario())


@pytest.fixture
def portfolio(portfolio_bytes: bytes) -> Portfolio:
    return Portfolio.open(portfolio_bytes)


def test_each_request_is_answered_by_a_variant_that_it_allows(portfolio: Portfolio) -> None:
    service = EdgeService(portfolio, Settings(portfolio="x.zip", decide_every_s=10))
    asked = [{WANT: name} for name in ("1x", "16x", "4x", "1x")] + [{LEAST: "0.96"}, {LEAST: "0.9"}]
    answers = ask(service, *asked)
    assert [answer.status_code for answer in answers] == [200] * 6
    variants = [answer.headers["X-Shifter-Variant"] for answer in answers]
    assert variants[:5] == ["1x", "16x", "4x", "1x", "1x"]
    assert service._host.active == "4x"  # which the others are answered by


@pytest.mark.parametrize(
    ("asked", "status", "says"),
    [
        ({WANT: "3x"}, 422, "16x, 4x, 1x"),
        ({LEAST: "0.99"}, 422, "the highest is 0.97"),
        ({WANT: "4x", LEAST: "0.96"}, 422, "4x has an accuracy of 0.95"),
        ({LEAST: "95%"}, 400, "0.95 for 95 %"),
    ],
)
def test_what_no_variant_is_is_refused(
    portfolio: Portfolio, asked: dict[str, str], status: int, says: str
) -> None:
    service = EdgeService(portfolio, Settings(portfolio="x.zip"))
    seen = observed(service)
    (answer,) = ask(service, asked | {"x-request-id": "mine"})
    assert answer.status_code == status
    assert says in answer.json()["error"]
    assert seen.refusals == [("needs", "mine")]
    assert service.status()["refused"] == {"needs": 1}
    assert service.status()["load"]["queue"] == 0


def test_a_fixed_variant_is_no_reason_to_ignore_another(portfolio: Portfolio) -> None:
    service = EdgeService(portfolio, Settings(portfolio="x.zip", policy="fixed", variant="16x"))
    (answer,) = ask(service, {WANT: "1x"})
    assert (answer.status_code, answer.headers["X-Shifter-Variant"]) == (200, "1x")


def test_infer_hands_needs_on_whatever_the_protocol(portfolio: Portfolio) -> None:
    async def scenario() -> str:
        async with EdgeService(portfolio, Settings(portfolio="x.zip")) as service:
            read = partial(decode, encode(PIXELS[:1]), "application/json", limits=service.limits)
            return (await service.infer(read, answer, needs=Needs("1x"))).variant

    assert asyncio.run(scenario()) == "1x"
