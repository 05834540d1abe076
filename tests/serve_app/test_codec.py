"""Where a body is decoded: on the event loop only what is small, and has nobody beside it."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from jobs.protocols import encode
from serve_app.protocol import answer, decode, is_light
from serve_app.service import EdgeService
from serve_app.settings import Settings
from shifter.portfolio import Portfolio
from shifter.values import InputSpec

from .in_process import PIXELS

BODY = encode(PIXELS[:1])


@pytest.mark.parametrize(
    ("is_small", "others", "on_loop"), [(True, 0, True), (True, 1, False), (False, 0, False)]
)
def test_only_what_is_small_and_alone_is_decoded_on_the_event_loop(
    portfolio_bytes: bytes, is_small: bool, others: int, on_loop: bool
) -> None:
    where: list[str] = []

    def read(spec: InputSpec) -> np.ndarray:
        where.append(threading.current_thread().name)
        return decode(BODY, "application/json", spec, service.limits)

    def write(variant: str, logits: np.ndarray, spec: InputSpec) -> bytes:
        where.append(threading.current_thread().name)
        return answer(variant, logits, spec)

    async def scenario() -> None:
        async with service:
            held = [service._host.request() for _ in range(others)]
            for one in held:
                one.__enter__()
            await service.infer(read, write, is_light=is_small)
            for one in held:
                one.__exit__(None, None, None)

    service = EdgeService(Portfolio.open(portfolio_bytes), Settings(portfolio="x.zip", policy="trend"))
    asyncio.run(scenario())
    loop = threading.main_thread().name
    assert [name == loop for name in where] == [on_loop, others == 0]
    assert all(name == loop or name.startswith("codec") for name in where)


def test_small_is_what_is_numbers_and_few() -> None:
    assert is_light(BODY, "application/json")
    assert is_light(BODY, "application/json; charset=utf-8")
    assert not is_light(encode(np.concatenate([PIXELS, PIXELS])), "application/json")
    assert not is_light(b"a picture of few bytes may have many pixels", "image/png")
