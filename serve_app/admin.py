"""Administration: pin a variant, look for a newer portfolio; behind a token, and not there without one."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Final

import orjson
from fastapi import APIRouter, Request, Security
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer

from serve_app.body import read
from serve_app.protocol import JSON_TYPE, Limits
from serve_app.secret import Token
from serve_app.service import EdgeService
from shifter.errors import RequestError

_LIMITS: Final = Limits(body_bytes=4096)


def router(service: EdgeService) -> APIRouter:
    """The routes, on ``service``; none, unless its settings say where the token is."""
    token = service.admin_token
    if token is None:
        return APIRouter()
    routes = APIRouter(
        prefix="/admin",
        route_class=_behind(token),
        dependencies=[Security(HTTPBearer(auto_error=False, description="The token of this service."))],
        responses={401: {"description": "The token is missing or wrong."}},
    )

    @routes.put("/pin", openapi_extra=_PIN, responses=_PINNED)
    async def pin(request: Request) -> dict[str, Any]:
        """Holds a variant, whatever the load, until it is unpinned or the service ends."""
        variant = _variant(await read(request, _LIMITS))
        return {"pinned": variant, "active": await service.upkeep.pin(variant)}

    @routes.delete("/pin", responses={200: _PINNED[200]})
    async def unpin() -> dict[str, Any]:
        """Lets the policy choose again, which the setting ``policy`` names."""
        return {"pinned": None, "active": await service.upkeep.pin(None)}

    @routes.post("/reload", responses=_RELOADED)
    async def reload() -> Response:
        """Looks for a newer portfolio now, takes it over if it can be, and says what came of it."""
        done = await service.upkeep.reload()
        if done.outcome == "refused":
            said = f"{done.reason}; the portfolio {done.portfolio} goes on serving"
            return JSONResponse({"error": said}, 409)
        return JSONResponse({"outcome": done.outcome, "portfolio": done.portfolio})

    return routes


def _behind(token: Token) -> type[APIRoute]:
    """Routes that look at nothing of a request before its token."""

    class Guarded(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def guarded(request: Request) -> Response:
                if token.allows(request.headers.get("authorization", "")):
                    return await handle(request)
                said = (
                    "administration needs the header 'Authorization: Bearer' with the token of this service"
                )
                return JSONResponse({"error": said}, 401, {"WWW-Authenticate": "Bearer"})

            return guarded

    return Guarded


def _variant(body: bytes) -> str:
    right = 'send {"variant": "its name"}'
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"the body is not JSON: {error}; {right}", status=400) from error
    if not isinstance(document, dict) or document.keys() != {"variant"}:
        raise RequestError(f"{right} and nothing else")
    if not isinstance(document["variant"], str):
        raise RequestError(f"{right}; to let the policy choose again: DELETE")
    return document["variant"]


def _document(description: str, **properties: dict[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", "required": list(properties), "properties": properties}
    return {"description": description, "content": {JSON_TYPE: {"schema": schema}}}


_NAME: Final = {"type": "string", "minLength": 1, "description": "A variant's."}
_PIN: Final[dict[str, Any]] = {"requestBody": {"required": True, **_document("Which.", variant=_NAME)}}
_PINNED: Final[dict[int | str, dict[str, Any]]] = {
    200: _document(
        "What is held, and what serves now: the same, unless there was no memory for it.",
        pinned={"type": ["string", "null"]},
        active={"type": "string"},
    ),
    400: {"description": "The body is not JSON."},
    413: {"description": "The body is far larger than a name."},
    422: {"description": "There is no such variant, or it cannot serve on this node."},
}
_RELOADED: Final[dict[int | str, dict[str, Any]]] = {
    200: _document(
        "What came of it, and the digest of the portfolio that serves now.",
        outcome={"enum": ["taken over", "nothing new"]},
        portfolio={"type": "string"},
    ),
    409: {"description": "What is there cannot serve, or cannot be looked at; the old one goes on."},
}
