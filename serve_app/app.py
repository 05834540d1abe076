"""The HTTP side of an edge node: a FastAPI application around `serve_app.service.EdgeService`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException

from serve_app import admin, live, predict, v2
from serve_app.docs import page
from serve_app.service import EdgeService
from shifter import __version__
from shifter.errors import EngineError, OverloadError, RequestError


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
    )

    @app.exception_handler(RequestError)
    async def wrong_request(_: Request, error: RequestError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, error.status)

    @app.exception_handler(OverloadError)
    async def overloaded(_: Request, error: OverloadError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 503, {"Retry-After": str(error.retry_after_s)})

    @app.exception_handler(EngineError)
    async def failed(_: Request, error: EngineError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 500)

    @app.exception_handler(HTTPException)
    async def no_such_route(request: Request, error: HTTPException) -> JSONResponse:
        paths = app.openapi()["paths"]
        known = ", ".join(f"{m.upper()} {path}" for path, methods in paths.items() for m in methods)
        said = f"{request.method} {request.url.path}: {error.detail.lower()}; there are {known}"
        return JSONResponse({"error": said}, error.status_code, error.headers)

    for part in (predict, v2, admin, live):
        app.include_router(part.router(service))

    @app.get("/status")
    async def status() -> dict[str, Any]:
        """The active variant and why, the load, the memory, the last switches, the portfolio."""
        return service.status()

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(page(app.openapi()))

    return app
