"""The Open Inference Protocol v2, as KServe defines it and Triton's clients speak it.

What of Triton's extensions has no meaning here is answered with 404 and the reason.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response

from serve_app.answers import respond
from serve_app.body import read, reading
from serve_app.needs import needs_of
from serve_app.protocol import JSON_TYPE, Limits
from serve_app.request_id import request_id_of
from serve_app.service import EdgeService
from serve_app.v2_images import images
from serve_app.v2_model import SERVER, configuration, metadata
from serve_app.v2_request import BYTES, ENCODINGS, InferRequest, inflate, parse, shown, wrong
from serve_app.v2_response import BINARY_TYPE, HEADER_LENGTH, Answer
from serve_app.v2_schema import ENDING, INDEX, INFER_ANSWERS, NO_SUCH_MODEL, UNREADABLE, of_model
from serve_app.v2_schema import infer as infer_schema
from serve_app.v2_statistics import Statistics
from shifter.errors import RequestError

# JSON up to here is read on the event loop, which is quicker than to hand it over.
_LIGHT_BYTES = 16_384
_INDEX_BYTES = 4096
_SHARED_MEMORY = "shared memory is not served: send tensors in the body"
_ABSENT = {
    "/v2/systemsharedmemory/{rest:path}": _SHARED_MEMORY,
    "/v2/cudasharedmemory/{rest:path}": _SHARED_MEMORY,
    "/v2/trace/setting": "there is no tracing",
    "/v2/models/{name}/trace/setting": "there is no tracing",
    "/v2/logging": "what is logged is set where the service is started",
    "/v2/repository/models/{rest:path}": "which model serves is set where the service is started, "
    "and a newer portfolio of it is taken over by itself",
}


def router(service: EdgeService) -> APIRouter:
    """The routes, on ``service``."""
    routes = APIRouter()
    statistics = Statistics()
    service.observers.append(statistics)
    engine = service.settings.engine

    def name() -> str:
        return service.model

    def model(request: Request) -> str:
        """The name in the address; 404 unless that model, and version, serves."""
        named, digest = request.path_params, service.portfolio.digest
        if named["name"] != name():
            raise _unknown("model", named["name"], name())
        if "version" in named and named["version"] != digest:
            raise _unknown("version", named["version"], digest)
        return name()

    async def infer(request: Request) -> Response:
        """Classifies the images in the body; the answer names its variant, and that one's portfolio."""
        asked_of = model(request)
        headers = request.headers
        length, encoding = headers.get(HEADER_LENGTH), headers.get("content-encoding", "identity")
        with service.admit(request_id_of(headers)) as arrival:  # before a body is read only to be refused
            async with reading(request, service.limits, arrival.reserve, ENCODINGS) as body:
                arrived = time.perf_counter()
                parsing = partial(_parsed, body, length, encoding, asked_of, service.limits)
                # Inflated, it may be as long as the longest.
                inflated = service.limits.body_bytes if encoding != "identity" else 0
                with arrival.reserve(inflated):
                    asked = (
                        parsing() if _is_light(body, length, encoding) else await service.read_large(parsing)
                    )
                    answer = Answer(asked_of, asked)
                    inferred = await service.infer(
                        partial(images, asked.input, limits=service.limits),
                        answer.outputs,
                        needs=needs_of(headers, asked.parameters),
                        request_id=arrival.request_id,
                        is_light=len(body) <= _LIGHT_BYTES and not inflated and asked.input.datatype != BYTES,
                        spent_s=time.perf_counter() - arrived,
                    )
        version = request.path_params.get("version", inferred.portfolio)
        if version != inferred.portfolio:  # replaced while the request waited
            raise _unknown("version", version, inferred.portfolio)
        inferred = answer.completed(inferred)
        if answer.is_binary:
            return respond(inferred, BINARY_TYPE, {HEADER_LENGTH: str(answer.json_bytes)})
        return respond(inferred, JSON_TYPE)

    async def described(request: Request) -> dict[str, Any]:
        """The model's inputs and outputs; its version is the digest of the portfolio that serves."""
        return metadata(model(request), service.portfolio.digest, engine, service.portfolio.input_spec)

    async def model_ready(request: Request) -> dict[str, Any]:
        """Whether the model answers: from the first request that this service takes, switches included."""
        if not service.ready:
            raise RequestError(f"{model(request)} is not ready: this service is ending", status=503)
        return {"name": model(request), "ready": True}

    async def config(request: Request) -> dict[str, Any]:
        """What of Triton's model configuration has a meaning here."""
        return configuration(model(request), engine, service.portfolio.input_spec, service.limits.images)

    async def stats(request: Request) -> dict[str, Any]:
        """What was answered since the start, by whichever protocol."""
        return {"model_stats": [statistics.to_json(model(request))]}

    async def all_stats(_: Request) -> dict[str, Any]:
        """What was answered since the start, of the one model that there is."""
        return {"model_stats": [statistics.to_json(name())]}

    async def server(_: Request) -> dict[str, Any]:
        """Name, version, and the extensions of the protocol that are served."""
        return SERVER

    async def live(_: Request) -> dict[str, Any]:
        """Whether the service answers at all."""
        return {"live": True}

    async def ready(_: Request) -> dict[str, Any]:
        """Whether inference is answered: the service takes requests once a variant has been warmed up."""
        if not service.ready:
            raise RequestError("not ready: this service is ending", status=503)
        return {"ready": True}

    async def index(request: Request) -> list[dict[str, str]]:
        """The model that serves; there is no other."""
        _check_index(await read(request, replace(service.limits, body_bytes=_INDEX_BYTES)))
        return [{"name": name(), "version": service.portfolio.digest, "state": "READY", "reason": ""}]

    for version in ("", "/versions/{version}"):
        path = f"/v2/models/{{name}}{version}"
        routes.add_api_route(
            f"{path}/infer",
            infer,
            methods=["POST"],
            response_model=None,
            responses=INFER_ANSWERS,
            openapi_extra=infer_schema(path),
        )
    routes.add_api_route("/v2/models/stats", all_stats)  # before a model of that name
    parts = {"": described, "/ready": model_ready, "/config": config, "/stats": stats}
    for version in ("", "/versions/{version}"):
        path = f"/v2/models/{{name}}{version}"
        for part, endpoint in parts.items():
            said = NO_SUCH_MODEL | ENDING if part == "/ready" else NO_SUCH_MODEL
            routes.add_api_route(path + part, endpoint, responses=said, openapi_extra=of_model(path))
    routes.add_api_route("/v2", server)
    routes.add_api_route("/v2/health/live", live)
    routes.add_api_route("/v2/health/ready", ready, responses=ENDING)
    routes.add_api_route(
        "/v2/repository/index", index, methods=["POST"], responses=UNREADABLE, openapi_extra=INDEX
    )
    for path, reason in _ABSENT.items():
        routes.add_route(path, _absent(reason), methods=["GET", "POST"], include_in_schema=False)
    return routes


def _absent(reason: str) -> Callable[[Request], Awaitable[Response]]:
    async def absent(request: Request) -> Response:
        raise RequestError(f"{request.url.path}: {reason}", status=404)

    return absent


def _unknown(what: str, named: str, there: str) -> RequestError:
    return RequestError(f"unknown {what} {shown(named)}: {there!r} serves", status=404)


def _is_light(body: bytes, length: str | None, encoding: str) -> bool:
    if encoding != "identity":
        return False
    if len(body) <= _LIGHT_BYTES:
        return True
    return length is not None and length.isdecimal() and len(length) < 10 and int(length) <= _LIGHT_BYTES


def _parsed(body: bytes, length: str | None, encoding: str, model: str, limits: Limits) -> InferRequest:
    return parse(inflate(body, encoding, limits.body_bytes), length, model)


def _check_index(body: bytes) -> None:
    """An index request is ``{}``, nothing, or says whether only ready models are to be listed: all are."""
    try:
        document = orjson.loads(body or b"{}")
    except orjson.JSONDecodeError as error:
        raise wrong(f"the body is not JSON: {error}") from error
    if not isinstance(document, dict) or not all(
        name == "ready" and isinstance(value, bool) for name, value in document.items()
    ):
        raise wrong(f'the body is {shown(document)}: it has to be {{"ready": true}}, {{}} or nothing')
