"""The page to look at, and what it draws.

The page asks once a second instead of being sent events: behind Ray's proxies a stream would hold
one of the replica's places for as long as somebody looks.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import orjson
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from serve_app.live_history import History
from serve_app.observer import Cause
from serve_app.protocol import JSON_TYPE
from serve_app.responses import errors
from serve_app.service import EdgeService

_FOLDER: Final = Path(__file__).with_name("page")
_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_HEADERS: Final = {
    # What the page shows comes from the node alone; blob: is the preview of an image that was dropped.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # kept, but asked about each time: a service may be renewed at any time
}
_REMEMBERED = 8


class Seconds(BaseModel):
    """Seconds of the past, oldest first: in each list one element for each.

    Args:
        id: changes when the service was started anew, and with it the numbers.
        next: the number after the last; to be given as ``since``.
        begin: when the first began, in seconds since 1970-01-01 UTC.
        arrived, answered, refused: requests; the latter by cause, for those causes that there were.
        p50_ms, p99_ms: latency of those answered; null where none was.
        queue: the most requests inside. variant: what served at the end.
    """

    model_config = ConfigDict(extra="forbid")

    id: str
    next: int
    begin: float
    arrived: list[int]
    answered: list[int]
    refused: dict[Cause, list[int]]
    p50_ms: list[float | None]
    p99_ms: list[float | None]
    queue: list[int]
    variant: list[str]


class Live(BaseModel):
    """What the page draws.

    Args:
        status: as ``GET /status`` answers, at most a second ago, without the layers of the variants.
        classes: of the model; left out where ``since`` was given.
    """

    model_config = ConfigDict(extra="forbid")

    status: dict[str, Any]
    history: Seconds
    classes: list[str] = Field(default=[])


class _Documents:
    """The answers to ``GET /live.json``: each is made once a second, however many look."""

    def __init__(self, service: EdgeService, history: History) -> None:
        self._service, self._history = service, history
        self._made: OrderedDict[int | None, bytes] = OrderedDict()
        self._second = -1
        self._status: dict[str, Any] = {}

    def get(self, since: int | None) -> bytes:
        begin, following, seconds = self._history.since(since or 0)
        if following != self._second:
            self._second, self._status = following, _brief(self._service.status())
            self._made.clear()
        if since not in self._made:
            causes = sorted({cause for second in seconds for cause in second.refused})
            document: dict[str, Any] = {
                "status": self._status,
                "history": {
                    "id": self._history.id,
                    "next": following,
                    "begin": round(begin, 3),
                    "arrived": [second.arrived for second in seconds],
                    "answered": [second.answered for second in seconds],
                    "refused": {
                        cause: [second.refused.get(cause, 0) for second in seconds] for cause in causes
                    },
                    "p50_ms": [_rounded(second.p50_ms) for second in seconds],
                    "p99_ms": [_rounded(second.p99_ms) for second in seconds],
                    "queue": [second.queue for second in seconds],
                    "variant": [second.variant for second in seconds],
                },
            }
            if since is None:
                document["classes"] = self._service.portfolio.input_spec.classes
            self._made[since] = orjson.dumps(document)
            if len(self._made) > _REMEMBERED:
                self._made.popitem(last=False)
        return self._made[since]


def _brief(status: dict[str, Any]) -> dict[str, Any]:
    """Without what is long and not drawn."""
    variants = [{k: v for k, v in variant.items() if k != "layers"} for variant in status["variants"]]
    return {**status, "variants": variants}


def _rounded(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else round(milliseconds, 3)


@dataclass(frozen=True)
class _File:
    """One of the page's files."""

    content: bytes
    media_type: str
    tag: str

    @classmethod
    def read(cls, path: Path) -> _File:
        content = path.read_bytes()
        return cls(content, _TYPES[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')

    def respond(self, request: Request) -> Response:
        headers = {**_HEADERS, "ETag": self.tag}
        asked = request.headers.get("if-none-match", "")
        # A proxy that compresses marks the tag as weak.
        if self.tag in (each.strip().removeprefix("W/") for each in asked.split(",")):
            return Response(status_code=304, headers=headers)
        return Response(self.content, media_type=self.media_type, headers=headers)


def router(service: EdgeService) -> APIRouter:
    """The routes, on ``service``, which from now on tells its history."""
    routes = APIRouter()
    history = History("")  # until it is told, when the service starts
    service.observers.append(history)
    documents = _Documents(service, history)

    @routes.get("/live.json", response_model=Live, responses=errors(422))
    async def live(
        since: Annotated[
            int | None,
            Query(ge=0, description="The number of the first second wanted, `next` of the last answer."),
        ] = None,
    ) -> Response:
        """The status, and what happened in each second of the last quarter of an hour."""
        return Response(documents.get(since), media_type=JSON_TYPE, headers={"Cache-Control": "no-store"})

    for path in sorted(_FOLDER.iterdir()):
        _add(routes, "/" if path.name == "index.html" else f"/page/{path.name}", _File.read(path))
    return routes


def _add(routes: APIRouter, path: str, file: _File) -> None:
    @routes.api_route(path, methods=["GET", "HEAD"], include_in_schema=False)
    async def get(request: Request) -> Response:
        return file.respond(request)
