"""The interactive documentation's stand-in: one page, from the schema alone.

An edge node may be offline, and so may whoever reads; FastAPI's own pages fetch their scripts from
elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

_HEAD = """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>body{{font:16px/1.5 sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem}}
code{{background:#f2f2f2;padding:.1em .3em}} dt{{margin-top:.5rem}} dd{{margin-left:1.5rem}}</style></head>
<body><h1>{title} {version}</h1>
<p>{summary} As a schema for programs: <a href="openapi.json">openapi.json</a>.</p>
"""


def page(schema: Mapping[str, Any]) -> str:
    """HTML that refers to nothing but ``openapi.json`` beside it.

    Args:
        schema: an OpenAPI 3 document (``FastAPI.openapi()``).
    """
    info = {key: escape(str(schema["info"].get(key, ""))) for key in ("title", "version", "summary")}
    sections = (
        "\n".join(_operation(method, path, operation))
        for path, operations in schema["paths"].items()
        for method, operation in operations.items()
    )
    return "\n".join([_HEAD.format(**info), *sections, "</body></html>\n"])


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f"<h2><code>{method.upper()} {escape(path)}</code></h2>"
    yield f"<p>{escape(operation.get('description', ''))}</p>"
    body = operation.get("requestBody", {}).get("content", {})
    if body:
        yield "<h3>Body</h3><dl>"
        for kind, content in body.items():
            yield f"<dt><code>{escape(kind)}</code></dt><dd>{_shape(content['schema'])}</dd>"
        yield "</dl>"
    yield "<h3>Answers</h3><dl>"
    for status, response in operation["responses"].items():
        headers = "".join(f" Header <code>{escape(name)}</code>." for name in response.get("headers", {}))
        yield f"<dt><code>{escape(status)}</code></dt>"
        yield f"<dd>{escape(response['description'])}{headers}</dd>"
    yield "</dl>"


def _shape(schema: Mapping[str, Any]) -> str:
    """A body in words; the properties of an object, each with its description."""
    properties = schema.get("properties", {})
    if not properties:
        return escape(f"{schema.get('format', '')} {schema['type']}".strip())
    return "; ".join(
        f"<code>{escape(name)}</code>, {escape(_kind(part))}: {escape(part.get('description', ''))}"
        for name, part in properties.items()
    )


def _kind(schema: Mapping[str, Any]) -> str:
    kinds = schema["type"]
    return kinds if isinstance(kinds, str) else " or ".join(kinds)
