"""The answers that mean no, as the schema declares them: one place for all routes.

A route says which of them it gives, ``responses={200: …, **errors(400, 422)}``; what any route may give
(`EVERYWHERE`) the application declares by itself. All carry an :class:`Error`.
"""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel, Field

Responses = dict[int | str, dict[str, Any]]


class Error(BaseModel):
    error: str = Field(description="What is wrong, the offending value, and what would be right.")


def _header(kind: str, description: str) -> dict[str, Any]:
    return {"description": description, "schema": {"type": kind}}


_KNOWN: Final[Responses] = {
    400: {"description": "The body cannot be read as what it claims to be."},
    401: {
        "description": "The token is missing or wrong.",
        "headers": {"WWW-Authenticate": _header("string", "What kind of token is asked for.")},
    },
    403: {"description": "This is not allowed here."},
    404: {"description": "There is no such thing here."},
    405: {
        "description": "This path knows other methods.",
        "headers": {"Allow": _header("string", "Those methods.")},
    },
    408: {"description": "The body takes too long to come."},
    409: {"description": "The service is not in the state for this."},
    413: {"description": "The body, the image or their number is above a limit."},
    415: {"description": "The Content-Type is none that this model reads, or the body is encoded."},
    422: {"description": "What is asked for cannot be: the pixels are not what this model reads."},
    500: {"description": "The variant that serves failed."},
    503: {
        "description": "There is too much to do.",
        "headers": {"Retry-After": _header("integer", "Seconds after which to ask again.")},
    },
}


def errors(*statuses: int) -> Responses:
    """The declarations of ``statuses``, for a route's ``responses``."""
    return {status: {"model": Error, **_KNOWN[status]} for status in statuses}


EVERYWHERE: Final = errors(405, 500)
READING: Final = errors(400, 408, 413, 415, 422, 503)
"""What a route gives that reads a body with `serve_app.body` and infers."""
