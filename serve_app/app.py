"""The HTTP side of an edge node: a FastAPI application around `serve_app.service.EdgeService`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from serve_app.docs import page
from serve_app.protocol import IMAGE_TYPES, JSON_TYPE, too_large
from serve_app.service import EdgeService
from shifter import __version__
from shifter.errors import EngineError, OverloadError, RequestError

VARIANT_HEADER = "X-Shifter-Variant"
PORTFOLIO_HEADER = "X-Shifter-Portfolio"


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

    @app.post("/predict", openapi_extra=_REQUEST, responses=_RESPONSES, response_model=None)
    async def predict(request: Request) -> Response:
        """Classifies the images in the body; the answer names its variant, and that one's portfolio."""
        service.admit()  # before a body is read only to be refused
        body = await _read(request, service)
        answer = await service.predict(body, request.headers.get("content-type", ""))
        headers = {VARIANT_HEADER: answer.variant, PORTFOLIO_HEADER: answer.portfolio}
        return Response(answer.content, media_type=JSON_TYPE, headers=headers)

    @app.get("/status")
    async def status() -> dict[str, Any]:
        """The active variant and why, the load, the memory, the last switches, the portfolio."""
        return service.status()

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(page(app.openapi()))

    return app


async def _read(request: Request, service: EdgeService) -> bytes:
    """The whole body, given up as soon as it is known to be too large."""
    limit = service.limits.body_bytes
    declared = request.headers.get("content-length", "").lstrip("0")
    # Its length first: int() refuses thousands of digits.
    if declared.isdecimal() and (len(declared) > len(str(limit)) or int(declared) > limit):
        raise too_large(service.limits)
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise too_large(service.limits)
    except ClientDisconnect as error:
        raise RequestError("the body ends before its declared length", status=400) from error
    return bytes(body)


_IMAGE = {"schema": {"type": "string", "format": "binary"}}
_REQUEST: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            JSON_TYPE: {
                "schema": {
                    "type": "object",
                    "required": ["images"],
                    "additionalProperties": False,
                    "properties": {
                        "images": {
                            "type": "array",
                            "minItems": 1,
                            "items": {"type": "array", "items": {}},
                            "description": "Per image a nested list of numbers in the data set's own "
                            "range, of shape (channels, height, width); (height, width) where there is "
                            "one channel.",
                        }
                    },
                }
            },
            **dict.fromkeys(IMAGE_TYPES, _IMAGE),
        },
    }
}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The variant, and per image its class and logits.",
        "headers": {name: {"schema": {"type": "string"}} for name in (VARIANT_HEADER, PORTFOLIO_HEADER)},
        "content": {JSON_TYPE: {"schema": {"type": "object"}}},
    },
    400: {"description": "The body cannot be read as what it claims to be."},
    413: {"description": "The body, the image or their number is above a limit."},
    415: {"description": "The Content-Type is none that this model reads."},
    500: {"description": "The variant that serves failed on these images."},
    422: {"description": "The pixels are not what this model reads."},
    503: {
        "description": "Too many requests wait already.",
        "headers": {"Retry-After": {"schema": {"type": "integer"}}},
    },
}
