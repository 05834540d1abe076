"""What others build on: the public names of shifter, and the command line.

Pinned in ``surface.txt``, so that a change of it is seen in review. ``make surface`` writes the
file anew.
"""

import ast
import dataclasses
import inspect
import pkgutil
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import typer

PINNED = Path(__file__).with_name("surface.txt")


def surface() -> list[str]:
    """A line for each public name with its parameters, then one for each command with its options."""
    names = {line for module in public_modules() for line in module_lines(module)}
    return [*sorted(names), *sorted(command_lines())]


def public_modules() -> Iterator[ModuleType]:
    """``shifter`` and what lies directly in it; deeper modules only where a package has no ``__all__``."""
    root = import_module("shifter")
    yield root
    yield from children(root)


def children(package: ModuleType) -> Iterator[ModuleType]:
    for child in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        if not child.name.rpartition(".")[2].startswith("_"):
            module = import_module(child.name)
            yield module
            if child.ispkg and not hasattr(module, "__all__"):
                yield from children(module)


def module_lines(module: ModuleType) -> Iterator[str]:
    for name in public_names(module):
        if module.__name__ == "shifter":  # only points at names that are spelt out elsewhere
            yield f"shifter.{name}"
        else:
            yield from lines(f"{module.__name__}.{name}", getattr(module, name))


def public_names(module: ModuleType) -> list[str]:
    """``__all__``, or else what the module itself defines."""
    if hasattr(module, "__all__"):
        return [name for name in module.__all__ if not name.startswith("_")]
    names: list[str] = []
    for node in ast.parse(Path(str(module.__file__)).read_text()).body:
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                names.append(name)
            case ast.AnnAssign(target=ast.Name(id=name)):
                names.append(name)
            case ast.Assign(targets=targets):
                names += [target.id for target in targets if isinstance(target, ast.Name)]
    return [name for name in names if not name.startswith("_")]


def lines(name: str, value: Any) -> Iterator[str]:
    if inspect.isclass(value):
        own_init = not dataclasses.is_dataclass(value) and vars(value).get("__init__")
        yield f"class {name}{parameters(own_init)}"
        for attribute in class_attributes(value):
            member = inspect.getattr_static(value, attribute, None)
            member = member.__func__ if isinstance(member, classmethod | staticmethod) else member
            yield f"{name}.{attribute}{parameters(member)}"
    else:
        yield f"{name}{parameters(value)}"


def class_attributes(cls: type) -> list[str]:
    """Public fields, properties and methods that shifter's own classes define."""
    names: set[str] = set(getattr(cls, "model_fields", ()))
    if dataclasses.is_dataclass(cls):
        names |= {field.name for field in dataclasses.fields(cls)}
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] == "shifter":
            names |= vars(base).keys() | inspect.get_annotations(base).keys()
    return sorted(name for name in names if not name.startswith("_") and name != "model_config")


def parameters(value: Any) -> str:
    if not inspect.isfunction(value):
        return ""
    kept = [p for p in inspect.signature(value).parameters.values() if p.name not in ("self", "cls")]
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    return f"({', '.join(stars.get(p.kind, '') + p.name for p in kept)})"


def command_lines() -> Iterator[str]:
    """``shifter generate RECIPE [--dry-run] ...`` of every job, hidden ones left out."""
    from jobs.__main__ import app

    yield from click_lines("shifter", typer.main.get_command(app))


def click_lines(name: str, command: Any) -> Iterator[str]:
    """``command``: of click, or of the copy of click that typer brings along."""
    if hasattr(command, "commands"):
        for child, inner in command.commands.items():
            if not inner.hidden:
                yield from click_lines(f"{name} {child}", inner)
        return
    options = [p for p in command.params if not getattr(p, "hidden", False)]
    words = [
        (p.metavar or p.name.upper())
        if p.param_type_name == "argument"
        else f"[{'/'.join([*p.opts, *p.secondary_opts])}]"
        for p in options
    ]
    yield " ".join([name, *words])


def test_the_surface_is_the_pinned_one() -> None:
    pinned, found = set(PINNED.read_text().splitlines()), surface()
    gone, new = sorted(pinned - set(found)), sorted(set(found) - pinned)
    assert not gone, "no longer there (if that is meant: make surface)"
    assert not new, "public, but not pinned (if that is meant: make surface)"


def test_every_job_is_a_command() -> None:
    """``python -m jobs.NAME`` and ``shifter NAME`` are the same."""
    folder = Path(__file__).parents[1] / "jobs"
    runnable = {p.stem for p in folder.glob("[!_]*.py") if '\nif __name__ == "__main__":' in p.read_text()}
    assert runnable == {line.split()[1] for line in command_lines()}


if __name__ == "__main__":
    sys.stdout.write("\n".join(surface()) + "\n")
