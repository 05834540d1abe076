"""Checkpoints of any kind as named arrays, and the network that the command line names."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from shifter.configuration import Part, explain, parse_yaml
from shifter.errors import CheckpointError, RecipeError
from shifter.model_spec import Model

if TYPE_CHECKING:
    from shifter.models.registry import Spec

Arrays = dict[str, NDArray[Any]]

# torch takes seconds to import, and sparse checkpoints and ONNX files do not need it.

_ORIGINAL, _MASK = "_orig", "_mask"


class _Asked(Part):
    model: Model


def read_arrays(path: Path) -> Arrays:
    """The tensors of a ``.arrow``, ``.safetensors``, ``.pt``, ``.pth`` or ``.th`` file by name.

    Half precision becomes float32. What ``torch.nn.utils.prune`` saves as two, an original and its
    mask, becomes the masked weight.

    Raises:
        CheckpointError: if the file cannot be read, is damaged, holds something else, or a mask does
            not fit.
    """
    if path.suffix == ".arrow":
        from shifter.sparse import SparseCheckpoint

        checkpoint = SparseCheckpoint.open(path)
        checkpoint.mask()  # refuses what does not match its digest
        return checkpoint.tensors()
    from shifter.models.existing import read_state

    return apply_masks(read_state(path))


def read_arrays_for(names: Iterable[str], path: Path) -> Arrays:
    """As :func:`read_arrays`, without a prefix that all of the file's names share and ``names`` do not."""
    arrays = read_arrays(path)
    if path.suffix == ".arrow":
        return arrays
    from shifter.models.files import without_prefixes

    return without_prefixes(arrays, names)


def apply_masks(arrays: Arrays) -> Arrays:
    """``x`` = ``x_orig`` times ``x_mask`` wherever both are there; the rest as it is.

    Raises:
        CheckpointError: if a mask is not of its tensor's shape, or holds anything but 0 and 1.
    """
    found = dict(arrays)
    for name in arrays:
        plain = name.removesuffix(_ORIGINAL)
        if plain == name or plain + _MASK not in arrays:
            continue
        weight, mask = found.pop(name), found.pop(plain + _MASK)
        if mask.shape != weight.shape:
            raise CheckpointError(
                f"{plain}{_MASK} has shape {mask.shape}, and {name} {weight.shape}: they should be the same"
            )
        if not np.isin(mask, (0, 1)).all():
            raise CheckpointError(f"{plain}{_MASK} should hold 0 and 1 only")
        found[plain] = np.where(mask.astype(bool), weight, weight.dtype.type(0))
    return found


def read_spec(text: str) -> Spec:
    """A network as ``--model`` names it: ``vgg16``, ``torchvision:resnet18``, ``package.module:function``.

    With arguments it is a mapping in YAML, as in a recipe.

    Raises:
        RecipeError: naming what is wrong and what would be right.
    """
    given = parse_yaml(text, f"--model {text!r}")
    try:
        return _Asked.model_validate({"model": given if isinstance(given, dict) else {"name": text}}).model
    except ValidationError as error:
        raise RecipeError("\n  ".join(["--model is wrong:", *explain(error, _Asked)])) from error
