"""The classifiers of torchvision, with random weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from shifter.configuration import nearest_first
from shifter.errors import RecipeError

_SHOWN = 10
_CHANNELS = 3

# In training these two answer with auxiliary outputs, which would be trained and pruned for nothing.
# Their own way to draw first weights has to be asked for.
_WITHOUT_AUXILIARIES: Mapping[str, Mapping[str, Any]] = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}


def torchvision_network(name: str, arguments: Mapping[str, Any], *, classes: int, channels: int) -> nn.Module:
    """``torchvision:NAME`` with one output a class, without auxiliary outputs.

    Args:
        arguments: more keyword arguments of its builder.

    Raises:
        RecipeError: if torchvision has no such classifier (the known ones are listed, the nearest
            first), if it refuses ``arguments``, or if the images do not have 3 channels.
    """
    from torchvision import models  # takes seconds, and the other networks do not need it

    plain = name.removeprefix("torchvision:")
    known = models.list_models(module=models)
    if plain not in known:
        near = ", ".join(nearest_first(plain, known)[:_SHOWN])
        raise RecipeError(
            f"model {name}: torchvision has no classifier {plain!r}; "
            f"of its {len(known)} the nearest are {near}"
        )
    if channels != _CHANNELS:
        raise RecipeError(
            f"model {name} reads images of {_CHANNELS} channels, and these have {channels}: "
            "take another network, or write a function that adapts it (package.module:function)"
        )
    fixed = {"weights": None, "num_classes": classes, **_WITHOUT_AUXILIARIES.get(plain, {})}
    taken = sorted(fixed.keys() & arguments.keys())
    if taken:
        raise RecipeError(f"model {name}: {', '.join(taken)} cannot be chosen with arguments")
    try:
        network = models.get_model(plain, **fixed, **arguments)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"model {name} does not take the arguments {dict(arguments)}: {error}") from error
    assert isinstance(network, nn.Module)
    return network
