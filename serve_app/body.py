"""Reading a request's body, which may be late, cut off, or larger than it says."""

from __future__ import annotations

from starlette.requests import ClientDisconnect, Request

from serve_app.protocol import Limits, too_large
from shifter.errors import RequestError


async def read(request: Request, limits: Limits) -> bytes:
    """The whole body, given up as soon as it is known to be too large.

    Raises:
        RequestError: if it is too large, or ends before its declared length.
    """
    limit = limits.body_bytes
    declared = request.headers.get("content-length", "").lstrip("0")
    # Its length first: int() refuses thousands of digits.
    if declared.isdecimal() and (len(declared) > len(str(limit)) or int(declared) > limit):
        raise too_large(limits)
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise too_large(limits)
    except ClientDisconnect as error:
        raise RequestError("the body ends before its declared length", status=400) from error
    return bytes(body)
