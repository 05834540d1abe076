"""``POST /predict``: encoded images or JSON pixels to classes, the project's own protocol."""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from serve_app.answers import PORTFOLIO_HEADER, VARIANT_HEADER, respond
from serve_app.body import reading
from serve_app.multipart import MULTIPART_TYPE
from serve_app.needs import MIN_ACCURACY_HEADER, WANT_VARIANT_HEADER, needs_of
from serve_app.protocol import IMAGE_TYPES, JSON_TYPE, answer, decode, is_light
from serve_app.request_id import request_id_of
from serve_app.responses import READING, Responses
from serve_app.service import EdgeService


def router(service: EdgeService) -> APIRouter:
    """The route, on ``service``."""
    routes = APIRouter()

    @routes.post("/predict", openapi_extra=_REQUEST, responses=_RESPONSES, response_model=None)
    async def predict(request: Request) -> Response:
        """Classifies the images in the body; the answer names its variant, and that one's portfolio."""
        headers = request.headers
        with service.admit(request_id_of(headers)) as arrival:  # before a body is read only to be refused
            needs = needs_of(headers)
            async with reading(request, service.limits, arrival.reserve) as body:
                kind = headers.get("content-type", "")
                answered = await service.infer(
                    partial(decode, body, kind, limits=service.limits),
                    answer,
                    needs=needs,
                    request_id=arrival.request_id,
                    is_light=is_light(body, kind),
                )
        return respond(answered, JSON_TYPE)

    return routes


_IMAGE = {"schema": {"type": "string", "format": "binary"}}
_FORM = {
    "schema": {
        "type": "object",
        "required": ["images"],
        "properties": {
            "images": {
                "type": "array",
                "minItems": 1,
                "items": {"type": "string", "format": "binary"},
                "description": "PNG or JPEG files, whatever their fields are called.",
            }
        },
    },
    "encoding": {"images": {"contentType": ", ".join(IMAGE_TYPES)}},
}
NEEDS_HEADERS: list[dict[str, Any]] = [
    {
        "name": WANT_VARIANT_HEADER,
        "in": "header",
        "schema": {"type": "string", "minLength": 1},
        "description": "The variant that is to answer; refused if it cannot.",
    },
    {
        "name": MIN_ACCURACY_HEADER,
        "in": "header",
        "schema": {"type": "number", "minimum": 0, "maximum": 1},
        "description": "The least validation accuracy of the variant; refused if none has it.",
    },
]
_REQUEST: dict[str, Any] = {
    "parameters": NEEDS_HEADERS,
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
            MULTIPART_TYPE: _FORM,
        },
    },
}
_ANSWER: dict[str, Any] = {
    "type": "object",
    "required": ["variant", "predictions"],
    "properties": {
        "variant": {"type": "string", "description": "The one that computed this."},
        "predictions": {
            "type": "array",
            "minItems": 1,
            "description": "One per image.",
            "items": {
                "type": "object",
                "required": ["class", "index", "probability", "logits"],
                "properties": {
                    "class": {"type": "string"},
                    "index": {"type": "integer", "minimum": 0, "description": "The class's."},
                    "probability": {"type": "number", "minimum": 0, "maximum": 1},
                    "logits": {"type": "array", "minItems": 1, "items": {"type": "number"}},
                },
            },
        },
    },
}
_RESPONSES: Responses = {
    200: {
        "description": "The variant, and per image its class and logits.",
        "headers": {name: {"schema": {"type": "string"}} for name in (VARIANT_HEADER, PORTFOLIO_HEADER)},
        "content": {JSON_TYPE: {"schema": _ANSWER}},
    },
    **READING,
}
