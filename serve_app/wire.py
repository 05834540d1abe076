"""What HTTP asks of every route alike, done around the application."""

from __future__ import annotations

from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_READ_ON: Final = 64 * 1024
"""Bytes of a body that nobody read which the server may read rather than have the client connect anew."""


class Wire:
    """HEAD is a GET without its body; whoever is refused in the middle of a body is cut off.

    A server that has answered goes on reading the rest of the body, however long it is and comes, before the
    connection's next request. ``Connection: close`` ends that.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        head = scope["method"] == "HEAD"
        headers = Headers(scope=scope)
        left = _declared(headers)
        answered = False

        async def receiving() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if not message.get("more_body", False):
                left = 0
            return message

        async def sending(message: Message) -> None:
            nonlocal answered
            if answered:
                return
            if message["type"] == "http.response.start" and (left > _READ_ON or message["status"] == 408):
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            await send(message)
            if head and message["type"] == "http.response.start":
                answered = True
                await send({"type": "http.response.body", "body": b"", "more_body": False})

        await self._app({**scope, "method": "GET"} if head else scope, receiving, sending)


def _declared(headers: Headers) -> float:
    """Bytes of the body to come; infinitely many where that is not said."""
    if "transfer-encoding" in headers:
        return float("inf")
    length = headers.get("content-length", "0")
    return float(length) if length.isascii() and length.isdecimal() else float("inf")
