"""The HTTP side of an edge node: a FastAPI application around `serve_app.service.EdgeService`.

A part of it is a module with ``router(service)``, named in ``create_app``. For each of its routes it
declares the schema of a 200, what it refuses (`serve_app.responses.errors`), and its body, if it reads one,
as ``openapi_extra``. It reads that with `serve_app.body`, and raises `RequestError` with the status. What any
route may answer (404, 405, 500, HEAD) is done here. ``tests/serve_app/test_schema.py`` holds every route to
its declarations, and ``python -m serve_app.openapi`` writes them down.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.exceptions import HTTPException
from starlette.routing import Match

from serve_app import admin, live, predict, v2
from serve_app.docs import page
from serve_app.responses import EVERYWHERE
from serve_app.service import EdgeService
from serve_app.wire import Wire
from shifter import __version__
from shifter.errors import EngineError, OverloadError, RequestError

_SHOWN: Final = 200  # characters of a path that was asked for
_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_STATUS: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "What the service is doing. Times are in milliseconds, or UTC.",
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["model", "portfolio", "active", "reason", "load", "memory", "variants"],
                    "properties": {
                        "model": {"type": "string", "description": "What the portfolio is of."},
                        "portfolio": {"type": "string", "description": "Its digest."},
                        "active": {"type": "string", "description": "The variant that answers."},
                        "reason": {"type": "string", "description": "Why it does."},
                        "load": {"type": "object", "description": "Requests, and how many wait."},
                        "memory": {"type": "object", "description": "What is taken of the budget, in bytes."},
                        "variants": {
                            "type": "array",
                            "description": "The portfolio's, each with its profile.",
                            "items": {"type": "object", "required": ["name", "active"]},
                        },
                    },
                }
            }
        },
    }
}


def create_app(service: EdgeService) -> FastAPI:
    """The application; ``service`` starts and stops with it."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service:
            yield

    app = FastAPI(
        title="shifter",
        version=__version__,
        summary="Answers with whichever variant the load allows.",
        lifespan=lifespan,
        docs_url=None,  # both would fetch scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # whereto, the client's own Host header would say
        responses=EVERYWHERE,
    )
    app.add_middleware(Wire)

    @app.exception_handler(RequestError)
    async def wrong_request(_: Request, error: RequestError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, error.status)

    @app.exception_handler(OverloadError)
    async def overloaded(_: Request, error: OverloadError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 503, {"Retry-After": str(error.retry_after_s)})

    @app.exception_handler(EngineError)
    async def failed(_: Request, error: EngineError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 500)

    @app.exception_handler(RequestValidationError)
    async def wrong_parameters(_: Request, error: RequestValidationError) -> JSONResponse:
        said = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        return JSONResponse({"error": said}, 422)

    @app.exception_handler(HTTPException)
    async def no_such_route(request: Request, error: HTTPException) -> Response:
        prefix = request.scope.get("root_path", "")
        if error.status_code == 404 and prefix and request.scope["path"] == prefix:
            # Relative, because the Host header may say anything.
            return RedirectResponse(f"{prefix.rpartition('/')[2]}/")
        headers = dict(error.headers or {})
        if error.status_code == 405:
            headers["Allow"] = ", ".join(_allowed(app, request))
        paths = app.openapi()["paths"]
        known = ", ".join(f"{m.upper()} {path}" for path, methods in paths.items() for m in methods)
        # Not request.url, which trusts the Host header to be one.
        asked = request.scope["path"].encode(errors="replace").decode()[:_SHOWN]
        said = f"{request.method} {asked}: {error.detail.lower()}; there are {known}"
        return JSONResponse({"error": said}, error.status_code, headers)

    @app.exception_handler(Exception)
    async def our_fault(_: Request, __: Exception) -> JSONResponse:
        return JSONResponse({"error": "the service failed on this request; its log says how"}, 500)

    for part in (predict, v2, admin, live):
        app.include_router(part.router(service))

    @app.get("/status", responses=_STATUS)
    async def status() -> dict[str, Any]:
        """The active variant and why, the load, the memory, the last switches, the portfolio."""
        return service.status()

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(page(app.openapi()))

    return app


def _allowed(app: FastAPI, request: Request) -> list[str]:
    """The methods of every route on this path, where a 405 by itself names the first one's."""

    def known(method: str) -> bool:
        scope = {**request.scope, "method": "GET" if method == "HEAD" else method}
        return any(route.matches(scope)[0] is Match.FULL for route in app.routes)

    return [method for method in _METHODS if known(method)]
