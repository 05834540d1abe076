"""What the OpenAPI schema tells of the routes of the Open Inference Protocol v2."""

from __future__ import annotations

from typing import Any

from serve_app.answers import PORTFOLIO_HEADER, VARIANT_HEADER
from serve_app.predict import NEEDS_HEADERS
from serve_app.protocol import JSON_TYPE
from serve_app.responses import READING, Responses, errors
from serve_app.v2_request import BYTES, DTYPES, NEEDS, OUTPUTS
from serve_app.v2_response import BINARY_TYPE, HEADER_LENGTH

Said = dict[str, Any]

_COUNT = {"type": "integer", "minimum": 0}
_TEXT = {"type": "string"}
_FLAG = {"type": "boolean"}


def _object(properties: Said, *required: str, description: str = "") -> Said:
    said: Said = {"type": "object", "properties": properties, "additionalProperties": False}
    if required:
        said["required"] = list(required)
    return {**said, "description": description} if description else said


def _or_null(schema: Said) -> Said:
    """What is left out may be there as null: some clients write all fields that they know of."""
    return {**schema, "type": [schema["type"], "null"]}


def of_model(path: str) -> Said:
    """The parameters in a path that names a model, and perhaps its version."""
    told = {"name": "The model that serves.", "version": "The digest of the portfolio that serves."}
    named = [
        {"name": name, "in": "path", "required": True, "schema": _TEXT, "description": description}
        for name, description in told.items()
        if f"{{{name}}}" in path
    ]
    return {"parameters": named}


NO_SUCH_MODEL: Responses = errors(404)
UNREADABLE: Responses = errors(400, 408, 413, 415)
ENDING: Responses = errors(503)
INDEX: Said = {
    "requestBody": {
        "content": {
            JSON_TYPE: {
                "schema": _object({"ready": {**_FLAG, "description": "Only models that are ready: all are."}})
            }
        }
    }
}

_INPUT = _object(
    {
        "name": {"type": "string", "enum": ["images", "encoded"]},
        "shape": {"type": "array", "items": _COUNT, "minItems": 1, "maxItems": 4},
        "datatype": {"type": "string", "enum": [*DTYPES, BYTES]},
        "parameters": _or_null(_object({"binary_data_size": _COUNT})),
        "data": {"type": ["array", "null"], "items": {}},
    },
    "name",
    "shape",
    "datatype",
)
_OUTPUT = _object(
    {
        "name": {"type": "string", "enum": list(OUTPUTS)},
        "parameters": _or_null(_object({"binary_data": _FLAG, "classification": _COUNT})),
    },
    "name",
)
_NEEDED: dict[str, Said] = {"variant": _TEXT, "min_accuracy": {"type": "number", "minimum": 0, "maximum": 1}}
assert tuple(_NEEDED) == NEEDS
_REQUEST = _object(
    {
        "id": {"type": ["string", "null"], "description": "Given back with the answer."},
        "model_name": {**_TEXT, "description": "That of the address, if at all."},
        "parameters": _or_null(
            _object(
                {"binary_data_output": _FLAG, **_NEEDED},
                description="binary_data_output: whether outputs follow the JSON as binary data.",
            )
        ),
        "inputs": {
            "type": "array",
            "minItems": 1,
            "maxItems": 1,
            "items": _INPUT,
            "description": "images: pixels in the data set's own range, of shape (n, channels, height, "
            "width) or without n, as numbers or binary data; or encoded: n PNG or JPEG files, as such.",
        },
        "outputs": {
            "type": ["array", "null"],
            "items": _OUTPUT,
            "description": "Which of them; logits and classes, if there is no list.",
        },
    },
    "inputs",
)
_BINARY = {
    "type": "string",
    "format": "binary",
    "description": f"The same as JSON, as long as {HEADER_LENGTH} says, then the tensors' bytes.",
}
_ANSWER = {
    "type": "object",
    "required": ["model_name", "model_version", "parameters", "outputs"],
    "properties": {
        "id": _TEXT,
        "model_name": _TEXT,
        "model_version": _TEXT,
        "parameters": _object({"variant": _TEXT, "portfolio": _TEXT}, "variant", "portfolio"),
        "outputs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "datatype", "shape"],
                "properties": {
                    "name": {"type": "string", "enum": list(OUTPUTS)},
                    "datatype": {"type": "string", "enum": ["FP32", "INT64", BYTES]},
                    "shape": {"type": "array", "items": _COUNT},
                    "parameters": _object({"binary_data_size": _COUNT}),
                    "data": {"type": "array", "items": {}},
                },
            },
        },
    },
}
_IN_HEADERS = [
    *NEEDS_HEADERS,
    {
        "name": HEADER_LENGTH,
        "in": "header",
        "schema": _COUNT,
        "description": "How many of the body's bytes are JSON; 0 for one image as FP32 and nothing else.",
    },
    {"name": "Content-Encoding", "in": "header", "schema": {"type": "string", "enum": ["gzip", "deflate"]}},
]


def infer(path: str) -> Said:
    """The request to a model's ``infer``."""
    content = {JSON_TYPE: {"schema": _REQUEST}, BINARY_TYPE: {"schema": _BINARY}}
    return {
        "parameters": [*of_model(path)["parameters"], *_IN_HEADERS],
        "requestBody": {"required": True, "content": content},
    }


INFER_ANSWERS: Responses = {
    200: {
        "description": "The outputs, and which variant of which portfolio computed them.",
        "headers": {
            **{name: {"schema": _TEXT} for name in (VARIANT_HEADER, PORTFOLIO_HEADER)},
            HEADER_LENGTH: {"schema": _COUNT, "description": "If there is binary data."},
        },
        "content": {
            JSON_TYPE: {"schema": _ANSWER},
            BINARY_TYPE: {"schema": {"type": "string", "format": "binary"}},
        },
    },
    **READING,
    **NO_SUCH_MODEL,
}
