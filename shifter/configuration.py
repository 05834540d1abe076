"""From what a user wrote to checked data: YAML, ``a.b=c`` overrides, and errors that can be acted on."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, Tag, ValidationError
from pydantic_core import ErrorDetails

from shifter.errors import RecipeError

Location = tuple[int | str, ...]

# Strict: `true` is no number, and a number in quotes is text.
Int = Annotated[int, Field(strict=True)]
Float = Annotated[float, Field(strict=True)]
Count = Annotated[Int, Field(ge=1)]


class Part(BaseModel):
    """A section of what a user writes: frozen, without unknown keys, without NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class _Loader(yaml.SafeLoader):
    """YAML with two repairs: ``1e-4`` is a number (as YAML 1.2 has it), a repeated key an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key.value!r} appears twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def parse_yaml(text: str, what: str) -> Any:
    """YAML as plain data. ``what`` names it in the RecipeError that says it is none."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"{what} is not YAML: {' '.join(str(error).split())}") from None


def read_mapping(path: Path, keys: Iterable[str]) -> dict[str, Any]:
    """A YAML file whose top level is a mapping of ``keys``; RecipeError if it cannot be had."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"recipe {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise RecipeError(f"recipe {path} is not text in UTF-8") from None
    data = parse_yaml(text, f"recipe {path}")
    if not isinstance(data, dict):
        raise RecipeError(f"recipe {path} should be a mapping with the keys {', '.join(keys)}")
    return data


def apply_override(data: dict[str, Any], override: str) -> None:
    """Sets ``a.b=c`` in ``data``, c being YAML; parts that are not there yet are made.

    Raises:
        RecipeError: if it does not read so, or leads into something that has no parts.
    """
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise RecipeError(f"override {override!r} should read path=value, e.g. training.learning_rate=0.05")
    for depth, key in enumerate(keys[:-1]):
        inner = data.setdefault(key, {})
        if not isinstance(inner, dict):
            raise RecipeError(
                f"override {override!r}: {'.'.join(keys[: depth + 1])} is {inner!r} and has no parts; "
                "give it whole"
            )
        data = inner
    data[keys[-1]] = parse_yaml(text, f"override {override!r}")


def explain(error: ValidationError, root: type[BaseModel]) -> list[str]:
    """Everything that is wrong, a line each: dotted path, value, and what would be right.

    A key that is missing only because it is misspelt is named once.

    Args:
        root: the model that refused.
    """
    faults = error.errors(include_url=False)
    lines: list[str] = []
    meant: set[str] = set()
    for fault in faults:
        if fault["type"] != "extra_forbidden":
            continue
        *parents, key = _walk(root, fault["loc"])[0]
        section = _walk(root, fault["loc"][:-1])[1]
        assert isinstance(section, type), section
        assert issubclass(section, BaseModel), section
        near = difflib.get_close_matches(key, section.model_fields, n=1)
        meant.update(".".join([*parents, name]) for name in near)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(section.model_fields)}"
        lines.append(f"{'.'.join([*parents, key])}: unknown key; {hint}")
    for fault in faults:
        keys, part = _walk(root, fault["loc"])
        path = ".".join(keys)
        if fault["type"] == "extra_forbidden" or (fault["type"] == "missing" and path in meant):
            continue
        if fault["type"] == "too_short" and any(_is_inside(f["loc"], fault["loc"]) for f in faults):
            continue  # its items were refused, so they are not counted
        lines += _explain_value(path, part, fault)
    return lines


def _explain_value(path: str, part: Any, fault: ErrorDetails) -> list[str]:
    kind, value, context = fault["type"], fault["input"], fault.get("ctx", {})
    if kind == "missing":
        return [f"{path}: missing"]
    if kind == "union_tag_not_found":
        return [f"{path}.name: missing; known are {', '.join(_names(part))}"]
    if kind == "union_tag_invalid":
        tag = value["name"] if isinstance(value, Mapping) else value
        known = nearest_first(str(tag), _names(part))
        return [f"{path}.name: {tag!r} is unknown; known are {', '.join(known)}"]
    if kind == "literal_error":
        return [f"{path}: {value!r} is unknown; known are {', '.join(get_args(part))}"]
    if kind == "value_error":
        problems = str(context["error"]).split("\n")
        return [f"{path}: {problem}" if path else problem for problem in problems]
    if kind == "string_pattern_mismatch":
        return [f"{path}: {value!r} should be 1 to 64 letters, digits, '.', '_' or '-', not led by a mark"]
    if kind == "too_short":
        return [f"{path}: {value!r} should have at least {context['min_length']} item"]
    expected = fault["msg"].removeprefix("Input ").replace("a valid tuple", "a list")
    expected = re.sub(r"valid dictionary or (instance of \w+|object to extract .*)", "mapping", expected)
    shown = repr(value)
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    return [f"{path}: {shown} {expected[0].lower()}{expected[1:]}"]


def _walk(root: type[BaseModel], location: Location) -> tuple[list[str], Any]:
    """The keys as a user writes them, and the annotation they lead to.

    pydantic puts the tag of a union's chosen member between its keys; a user does not.
    """
    keys: list[str] = []
    part: Any = root
    for key in location:
        tagged = _tagged(part)
        if key in tagged:
            part = tagged[str(key)]
            continue
        keys.append(str(key))
        if isinstance(part, type) and issubclass(part, BaseModel) and key in part.model_fields:
            part = part.model_fields[str(key)].annotation
    return keys, part


def nearest_first(word: str, known: Iterable[str]) -> list[str]:
    """The ``known`` words, those most like ``word`` first."""

    def likeness(other: str) -> float:
        return difflib.SequenceMatcher(None, word.lower(), other.lower()).ratio()

    return sorted(known, key=likeness, reverse=True)


def _names(annotation: Any) -> list[str]:
    """What a user may write for ``name`` in a union of models; a member may list its own."""
    found: list[str] = []
    for tag, member in _tagged(annotation).items():
        found += getattr(member, "known_names", (tag,))
    return found


def _tagged(annotation: Any) -> dict[str, type[BaseModel]]:
    """Members of a union of models by the ``name`` that chooses them; empty for anything else.

    A member with a :class:`pydantic.Tag` goes by that.
    """
    members: dict[str, type[BaseModel]] = {}
    for member in get_args(annotation):
        if get_origin(member) is Annotated:
            model, *notes = get_args(member)
            members |= {note.tag: model for note in notes if isinstance(note, Tag)}
        elif isinstance(member, type) and issubclass(member, BaseModel) and "name" in member.model_fields:
            tag = member.model_fields["name"].annotation
            if get_origin(tag) is Literal:
                members[get_args(tag)[0]] = member
    return members


def _is_inside(location: Location, outer: Location) -> bool:
    return len(location) > len(outer) and location[: len(outer)] == outer
