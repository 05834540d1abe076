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
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>body{{font:16px/1.5 sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem}}
code{{background:#f2f2f2;padding:.1em .3em}} dt{{margin-top:.5rem}} dd{{margin-left:1.5rem}}
@media(prefers-color-scheme:dark){{
html{{background:#181818;color:#ddd}} code{{background:#333}} a{{color:#8cf}}}}
</style></head>
<body><h1>{title} {version}</h1>
<p>{summary} As a schema for programs: <a href="openapi.json">openapi.json</a>.</p>
"""


def page(schema: Mapping[str, Any]) -> str:
    """HTML that refers to nothing but ``openapi.json`` beside it.

    Args:
        schema: an OpenAPI 3 document (``FastAPI.openapi()``).
    """
    info = {key: escape(str(schema["info"].get(key, ""))) for key in ("title", "version", "summary")}
    known = schema.get("components", {}).get("schemas", {})
    routes = [(m, path, o) for path, operations in schema["paths"].items() for m, o in operations.items()]
    contents = "".join(
        f'<li><a href="#{_anchor(m, path)}">{_code(m, path)}</a></li>' for m, path, _ in routes
    )
    sections = ("\n".join(_operation(m, path, operation, known)) for m, path, operation in routes)
    return "\n".join([_HEAD.format(**info), f"<ul>{contents}</ul>", *sections, "</body></html>\n"])


def _anchor(method: str, path: str) -> str:
    return escape(method + path.replace("/", "-").translate({ord(sign): None for sign in "{}"}))


def _code(method: str, path: str) -> str:
    return f"<code>{method.upper()} {escape(path)}</code>"


def _operation(
    method: str, path: str, operation: Mapping[str, Any], known: Mapping[str, Any]
) -> Iterator[str]:
    yield f'<h2 id="{_anchor(method, path)}">{_code(method, path)}</h2>'
    yield f"<p>{escape(operation.get('description', operation.get('summary', '')))}</p>"
    if parameters := operation.get("parameters"):
        yield "<h3>Parameters</h3><dl>"
        for one in parameters:
            must = ", required" if one.get("required") else ""
            yield f"<dt><code>{escape(one['name'])}</code> ({escape(one['in'])}{must})</dt>"
            yield f"<dd>{_shape({**one.get('schema', {}), **_described(one)}, known)}</dd>"
        yield "</dl>"
    if body := operation.get("requestBody", {}).get("content", {}):
        yield f"<h3>Body</h3><dl>{_contents(body, known)}</dl>"
    yield "<h3>Answers</h3><dl>"
    for status, response in operation["responses"].items():
        headers = "".join(f" Header <code>{escape(name)}</code>." for name in response.get("headers", {}))
        yield f"<dt><code>{escape(status)}</code></dt>"
        yield f"<dd>{escape(response['description'])}{headers}"
        if int(status) < 400:  # errors are all alike
            yield f"<dl>{_contents(response.get('content', {}), known)}</dl>"
        yield "</dd>"
    yield "</dl>"


def _contents(content: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    return "".join(
        f"<dt><code>{escape(kind)}</code></dt><dd>{_shape(one.get('schema', {}), known)}</dd>"
        for kind, one in content.items()
    )


def _described(part: Mapping[str, Any]) -> dict[str, Any]:
    return {"description": part["description"]} if "description" in part else {}


def _shape(schema: Mapping[str, Any], known: Mapping[str, Any], within: tuple[str, ...] = ()) -> str:
    """A schema in words: what it is, what it means, and what it is made of, each once."""
    name = schema.get("$ref", "").rpartition("/")[2]
    if name:
        if name in within or name not in known:
            return f"<code>{escape(name)}</code>, as above"
        return _shape({**known[name], **_described(schema)}, known, (*within, name))
    if choices := schema.get("anyOf", schema.get("oneOf", schema.get("allOf", []))):
        said = " or ".join(_shape(choice, known, within) for choice in choices)
        return f"{said}{_meaning(schema)}"
    kind = schema.get("type", "any")
    said = escape(
        " or ".join(kind) if isinstance(kind, list) else f"{schema.get('format', '')} {kind}".strip()
    )
    if "enum" in schema or "const" in schema:
        said += f" ({escape(', '.join(map(str, schema.get('enum', [schema.get('const')]))))})"
    said += _meaning(schema)
    if "properties" in schema:
        required = schema.get("required", ())
        parts = (
            f"<li><code>{escape(part)}</code>{'' if part in required else ' (optional)'}: "
            f"{_shape(shape, known, within)}</li>"
            for part, shape in schema["properties"].items()
        )
        said += f"<ul>{''.join(parts)}</ul>"
    elif isinstance(schema.get("items"), Mapping) and schema["items"]:
        said += f" of {_shape(schema['items'], known, within)}"
    return said


def _meaning(schema: Mapping[str, Any]) -> str:
    return f": {escape(schema['description'])}" if "description" in schema else ""
