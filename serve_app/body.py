"""Reading a request's body, which may be late, cut off, or larger than it says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager

from starlette.requests import ClientDisconnect, Request

from serve_app.protocol import Limits, too_large
from shifter.errors import RequestError

Reserve = Callable[[int], AbstractContextManager[object]]
"""Room for so many bytes more, until it is left.

Raises:
    OverloadError: when called or entered, if there is none.
"""


async def read(request: Request, limits: Limits, reserve: Reserve | None = None) -> bytes:
    """The whole body; what was reserved for it is free again once it is here. See `reading`."""
    async with reading(request, limits, reserve) as body:
        return body


@asynccontextmanager
async def reading(request: Request, limits: Limits, reserve: Reserve | None = None) -> AsyncIterator[bytes]:
    """The whole body, for which room is reserved until the block is left.

    Given up as soon as it is known to be too large. Room is reserved as the bytes come in, not as they
    are declared: a client that declares much and sends nothing holds nothing.

    Raises:
        RequestError: if it is too large, or ends before its declared length.
        OverloadError: if there is no room for it.
    """
    limit = limits.body_bytes
    declared = request.headers.get("content-length", "").lstrip("0")
    # Its length first: int() refuses thousands of digits.
    if declared.isdecimal() and (len(declared) > len(str(limit)) or int(declared) > limit):
        raise too_large(limits)
    body = bytearray()
    with ExitStack() as reserved:
        try:
            async for chunk in request.stream():
                if len(body) + len(chunk) > limit:
                    raise too_large(limits)
                if reserve is not None and chunk:
                    reserved.enter_context(reserve(len(chunk)))
                body += chunk
        except ClientDisconnect as error:
            raise RequestError("the body ends before its declared length", status=400) from error
        yield bytes(body)
