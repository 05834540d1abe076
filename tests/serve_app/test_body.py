"""Reading a body: in time, within its limits, and with room that is given back whatever happens."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from starlette.requests import Request
from starlette.types import Message

from serve_app.body import read, reading
from serve_app.protocol import Limits
from serve_app.wire import Wire
from shifter.errors import OverloadError, RequestError

LIMITS = Limits(body_bytes=1 << 20, body_s=0.5, silence_s=0.2)


class Room:
    """Bytes that may be taken at once."""

    def __init__(self, size: int) -> None:
        self.size, self.taken, self.most = size, 0, 0

    @contextmanager
    def reserve(self, size: int) -> Iterator[None]:
        if self.taken + size > self.size:
            raise OverloadError("full", 1)
        self.taken += size
        self.most = max(self.most, self.taken)
        try:
            yield
        finally:
            self.taken -= size


def arriving(*messages: Message | float, headers: dict[str, str] | None = None) -> Request:
    """A request whose body comes in these messages, after these seconds; then nothing more comes."""

    async def receive() -> Message:
        for message in coming:
            if not isinstance(message, dict):
                await asyncio.sleep(message)
                continue
            return message
        await asyncio.Event().wait()
        raise AssertionError

    coming = iter(messages)
    raw = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": raw}, receive)


def part(content: bytes, *, more: bool = True) -> Message:
    return {"type": "http.request", "body": content, "more_body": more}


def refused(request: Request, room: Room | None = None) -> RequestError:
    with pytest.raises(RequestError) as caught:
        asyncio.run(read(request, LIMITS, room.reserve if room else None))
    return caught.value


def test_a_body_arrives_whole_and_its_room_is_free_again() -> None:
    async def scenario() -> None:
        room = Room(1 << 20)
        parts = [bytes([i]) * 1000 for i in range(200)]
        request = arriving(*map(part, parts), part(b"end", more=False))
        async with reading(request, LIMITS, room.reserve) as body:
            assert body == b"".join(parts) + b"end"
            assert len(body) <= room.taken < len(body) + (64 << 10)
        assert room.taken == 0

    asyncio.run(scenario())


def test_what_is_only_declared_takes_no_room() -> None:
    room = Room(1 << 20)
    assert refused(arriving(headers={"content-length": str(1 << 20)}), room).status == 408
    assert room.most == 0


@pytest.mark.parametrize(
    ("messages", "status", "says"),
    [
        ((part(b"a"),), 408, "has stopped coming for 0.2 s"),
        ([part(b"a"), 0.1] * 20, 408, "is not here after 0.5 s"),
        ((part(b"a"), {"type": "http.disconnect"}), 400, "ends before its declared length"),
        ([part(bytes(1 << 19))] * 3, 413, "larger than 1048576 bytes"),
    ],
)
def test_room_is_given_back_when_a_body_is_given_up(messages: Any, status: int, says: str) -> None:
    room = Room(1 << 22)
    error = refused(arriving(*messages), room)
    assert (error.status, room.taken) == (status, 0)
    assert says in str(error)
    assert room.most > 0


def test_a_body_for_which_there_is_no_room_is_refused_and_holds_nothing() -> None:
    room = Room(200_000)
    with pytest.raises(OverloadError):
        asyncio.run(read(arriving(*[part(bytes(50_000))] * 9), LIMITS, room.reserve))
    assert (room.taken, room.most > 0) == (0, True)


def test_a_reader_that_is_cancelled_gives_its_room_back() -> None:
    async def scenario() -> None:
        room = Room(1 << 20)
        task = asyncio.create_task(read(arriving(part(b"a"), 60.0), LIMITS, room.reserve))
        while not room.taken:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert room.taken == 0

    asyncio.run(scenario())


def test_an_encoded_body_is_refused_unread() -> None:
    error = refused(arriving(headers={"content-encoding": "gzip"}))
    assert (error.status, "gzip" in str(error)) == (415, True)


def through_wire(
    method: str, headers: dict[str, str], *, status: int = 200, read_first: bool = False
) -> list[Message]:
    """What is sent by an application that answers ``status``, having read the body before or not at all."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["method"] != "HEAD"
        if read_first:
            await receive()
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"answer", "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    sent: list[Message] = []

    async def receive() -> Message:
        return part(b"", more=False)

    async def send(message: Message) -> None:
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": "/", "headers": raw}
    asyncio.run(Wire(app)(scope, receive, send))
    return sent


@pytest.mark.parametrize(
    ("headers", "options", "closes"),
    [
        ({}, {}, False),
        ({"content-length": "100"}, {}, False),
        ({"content-length": "100"}, {"status": 408}, True),
        ({"content-length": "100000"}, {}, True),
        ({"content-length": "100000"}, {"read_first": True}, False),
        ({"content-length": "1e9"}, {}, True),
        ({"transfer-encoding": "chunked"}, {}, True),
        ({"transfer-encoding": "chunked"}, {"read_first": True}, False),
    ],
)
def test_a_connection_is_closed_when_much_of_a_body_is_unread(
    headers: Any, options: Any, closes: bool
) -> None:
    start = through_wire("POST", headers, **options)[0]
    assert ((b"connection", b"close") in start["headers"]) == closes


def test_head_is_answered_as_get_is_without_a_body() -> None:
    sent = through_wire("HEAD", {})
    assert [message.get("body", b"") for message in sent] == [b"", b""]
    assert [message.get("more_body") for message in sent] == [None, False]
