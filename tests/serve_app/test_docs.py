"""The documentation's page shows whatever a schema may say."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

from pydantic import BaseModel, Field

from serve_app.docs import page

VOID = {"meta"}


class Tree(BaseModel):
    name: str | None = Field(description="Called <so>.")
    children: list[Tree] = []


class Balanced(HTMLParser):
    """Every element that is opened is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, _: Any) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(schema: dict[str, Any]) -> str:
    parser = Balanced()
    parser.feed(page(schema))
    assert not parser.open
    return parser.text


def operation(**parts: Any) -> dict[str, Any]:
    responses = {"200": {"description": "Well."}, "422": {"description": "Not <so> well."}}
    paths = {"/a/{name}/b": {"post": {"description": "Does <it>.", "responses": responses, **parts}}}
    components = Tree.model_json_schema(ref_template="#/components/schemas/{model}")["$defs"]
    return {"info": {"title": "t", "version": "1"}, "paths": paths, "components": {"schemas": components}}


def test_schemas_that_refer_to_themselves_are_shown_once() -> None:
    body = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Tree"}}}}
    said = read(operation(requestBody=body))
    assert said.count("Called <so>.") == 1
    assert "name: string or null: Called <so>." in said
    assert "children (optional): array of Tree, as above" in said


def test_parameters_choices_and_empty_schemas_are_shown() -> None:
    parameters = [
        {
            "name": "name",
            "in": "path",
            "required": True,
            "schema": {"type": "string"},
            "description": "Which.",
        },
        {"name": "how", "in": "query", "schema": {"enum": ["a", "b"], "type": "string"}},
        {"name": "any", "in": "header"},
    ]
    body = {"content": {"text/plain": {}, "application/json": {"schema": {"type": ["string", "null"]}}}}
    said = read(operation(parameters=parameters, requestBody=body))
    for told in ("name (path, required)", "string: Which.", "how (query)", "string (a, b)", "any (header)"):
        assert told in said
    for told in ("POST /a/{name}/b", "Does <it>.", "text/plain", "string or null", "Not <so> well."):
        assert told in said
