"""Reading a request's body, which may be slow, cut off, or larger than it says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager
from typing import Final

from starlette.requests import ClientDisconnect, Request

from serve_app.protocol import Limits, too_large
from shifter.errors import RequestError

Reserve = Callable[[int], AbstractContextManager[object]]
"""Room for so many bytes more, until it is left.

Raises:
    OverloadError: when called or entered, if there is none.
"""

_STEP: Final = 64 * 1024  # a reservation; one each for the bytes of whoever sends them singly would cost more


async def read(
    request: Request, limits: Limits, reserve: Reserve | None = None, encodings: Collection[str] = ()
) -> bytes:
    """The whole body; what was reserved for it is free again once it is here. See :func:`reading`."""
    async with reading(request, limits, reserve, encodings) as body:
        return body


@asynccontextmanager
async def reading(
    request: Request, limits: Limits, reserve: Reserve | None = None, encodings: Collection[str] = ()
) -> AsyncIterator[bytes]:
    """The whole body, for which room is reserved until the block is left.

    Given up as soon as it is known to be too large, or too late. Room is reserved as the bytes come in,
    not as they are declared: a client that declares much and sends nothing holds nothing.

    Args:
        encodings: the values of Content-Encoding that the caller undoes.

    Raises:
        RequestError: if it is too large, takes too long, is encoded, or ends before its declared length.
        OverloadError: if there is no room for it.
    """
    _check(request, limits, encodings)
    with ExitStack() as reserved:
        body = bytearray()
        room = 0
        parts = request.stream().__aiter__()
        whole = asyncio.timeout(limits.body_s)
        try:
            async with whole:
                while (part := await _next(parts, limits)) is not None:
                    if len(body) + len(part) > limits.body_bytes:
                        raise too_large(limits)
                    if reserve is not None and len(body) + len(part) > room:
                        step = max(_STEP, len(part))
                        reserved.enter_context(reserve(step))
                        room += step
                    body += part
        except TimeoutError as error:
            took = f"is not here after {limits.body_s:g} s" if whole.expired() else str(error)
            raise RequestError(f"the body {took}: send it faster, or a smaller one", status=408) from error
        except ClientDisconnect as error:
            raise RequestError("the body ends before its declared length", status=400) from error
        complete = bytes(body)
        body.clear()  # what is reserved is once its length
        yield complete


async def _next(parts: AsyncIterator[bytes], limits: Limits) -> bytes | None:
    silence = asyncio.timeout(limits.silence_s)
    try:
        async with silence:
            return await anext(parts, None)
    except TimeoutError:
        if not silence.expired():
            raise
        raise TimeoutError(f"has stopped coming for {limits.silence_s:g} s") from None


def _check(request: Request, limits: Limits, encodings: Collection[str]) -> None:
    """What the headers tell already."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity", *encodings):
        known = f", or with one of {', '.join(encodings)}" if encodings else ""
        raise RequestError(
            f"the Content-Encoding is {encoding[:100]!r}: send the body as it is, without one{known}",
            status=415,
        )
    limit = limits.body_bytes
    declared = request.headers.get("content-length", "").lstrip("0")
    # Its length first: int() refuses thousands of digits.
    if declared.isdecimal() and (len(declared) > len(str(limit)) or int(declared) > limit):
        raise too_large(limits)
