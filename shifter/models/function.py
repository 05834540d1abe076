"""The user's own network, by the name of the function that makes it."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from torch import nn

from shifter.configuration import nearest_first
from shifter.errors import RecipeError


def call_function(name: str, arguments: Mapping[str, Any], *, classes: int, channels: int) -> nn.Module:
    """What ``package.module:function`` returns for ``classes=``, ``channels=`` and ``arguments``.

    In training mode; a class that is a ``torch.nn.Module`` is such a function as well.

    Raises:
        RecipeError: if it cannot be imported or called so, fails, or returns something else than a
            network whose parameters are float32 on the CPU.
    """
    module_name, _, function_name = name.partition(":")
    function = _attribute(_import(module_name, name), function_name, name)
    given = {"classes": classes, "channels": channels}
    taken = sorted(given.keys() & arguments.keys())
    if taken:
        raise RecipeError(f"model {name}: {', '.join(taken)} comes from the data, not from arguments")
    given |= arguments
    try:
        inspect.signature(function).bind(**given)
    except TypeError as error:
        raise RecipeError(
            f"model {name} cannot be called with {', '.join(f'{key}=' for key in given)} ({error}): "
            f"it is {function_name}{inspect.signature(function)}, and should take classes and channels, as "
            f"in: def make(classes, channels): return {function_name}(…)"
        ) from error
    try:
        network = function(**given)
    except Exception as error:
        raise RecipeError(f"model {name} failed: {type(error).__name__}: {error}") from error
    if not isinstance(network, nn.Module):
        raise RecipeError(f"model {name} returned a {type(network).__name__}: it should be a torch.nn.Module")
    for key, parameter in network.named_parameters():
        if parameter.dtype != torch.float32 or parameter.device.type != "cpu":
            found = f"{str(parameter.dtype).removeprefix('torch.')} on {parameter.device}"
            raise RecipeError(f"model {name}: {key} is {found}: parameters should be float32 on the CPU")
    return network.train()


def _import(module_name: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise _not_importable(name, error) from error
        raise RecipeError(
            f"model {name}: there is no module {error.name!r}: it should be installed, or lie in a folder "
            "of PYTHONPATH, on every node that trains"
        ) from None
    except Exception as error:
        raise _not_importable(name, error) from error


def _not_importable(name: str, error: Exception) -> RecipeError:
    return RecipeError(f"model {name}: importing its module failed: {type(error).__name__}: {error}")


def _attribute(module: ModuleType, function_name: str, name: str) -> Any:
    if not hasattr(module, function_name):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        near = ", ".join(nearest_first(function_name, known)[:5]) or "none"
        raise RecipeError(
            f"model {name}: {module.__name__} has no {function_name!r}; its functions are {near}"
        )
    function = getattr(module, function_name)
    if not callable(function):
        raise RecipeError(
            f"model {name}: {function_name} is a {type(function).__name__}: it should be a function that "
            "returns a torch.nn.Module"
        )
    return function
