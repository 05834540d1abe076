"""A network that exists already: from a file of weights and its description to a smaller one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import nn

from shifter.errors import CheckpointError
from shifter.model_spec import WeightsFile
from shifter.models.apply import TORCH_PLAN, TORCH_WEIGHTS
from shifter.models.files import load_weights, read_weights, without_prefixes
from shifter.models.prune import PruneResult, prune
from shifter.models.registry import Spec, build

Arrays = dict[str, NDArray[Any]]

_GUESS = 10
_OTHERWISE_NAMED = (
    "most of the names differ: the file was written by another implementation of this network. Give that "
    "one: --model package.module:function, which returns the network for classes= and channels="
)
_HALF = (torch.float16, torch.bfloat16)


def read_state(path: Path) -> Arrays:
    """The tensors of a ``.safetensors`` file, or of what ``torch.save`` wrote; half precision as float32.

    Raises:
        CheckpointError: if it cannot be read, is damaged, or holds something else than named tensors.
    """
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    tensors = read_weights(WeightsFile(path=str(path), sha256=digest))
    return {name: (t.float() if t.dtype in _HALF else t).detach().numpy() for name, t in tensors.items()}


def prune_existing(
    spec: Spec,
    arrays: Mapping[str, NDArray[Any]],
    images: NDArray[np.float32],
    *,
    classes: int | None,
    round_to: int,
    ratio: float | None,
    source: str,
) -> tuple[PruneResult, dict[str, bytes]]:
    """:func:`shifter.prune` of the network of ``spec`` with the weights ``arrays``.

    Args:
        images: (n, channels, height, width), to prove it on.
        classes: its outputs; None to tell it from the weights.
        source: names the file of weights in errors.

    Returns:
        The result, and the files that :func:`shifter.models.apply.load_pruned` reads.

    Raises:
        RecipeError: if there is no such network.
        CheckpointError: with everything that does not fit it.
        GraphError, InexactError: as :func:`shifter.prune`.
    """
    network = _network(spec, arrays, images.shape[1], classes, source)
    result = prune(network, torch.from_numpy(images), round_to=round_to, ratio=ratio)
    # A tensor of two names is two tensors in a file.
    state = {name: tensor.clone().contiguous() for name, tensor in result.model.state_dict().items()}
    plan = json.dumps(result.plan.to_json(), indent=1).encode()
    return result, {TORCH_WEIGHTS: safetensors.torch.save(state), TORCH_PLAN: plan}


def _network(
    spec: Spec, arrays: Mapping[str, NDArray[Any]], channels: int, classes: int | None, source: str
) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        network = build(spec, classes=classes or _GUESS, channels=channels)
        own = network.state_dict()
        given = without_prefixes({name: torch.from_numpy(array) for name, array in arrays.items()}, own)
        # The tensors that only their first axis, the classes, keeps from fitting.
        found = {
            tensor.shape[0]
            for name, tensor in given.items()
            if name in own
            and tensor.dim() > 0
            and own[name].shape[:1] == (_GUESS,)
            and own[name].shape[1:] == tensor.shape[1:]
            and own[name].shape != tensor.shape
        }
        if classes is None and len(found) == 1:
            network = build(spec, classes=found.pop(), channels=channels)
    try:
        load_weights(network, given, source=source)
    except CheckpointError as error:
        named = own.keys() & given.keys()
        if 2 * len(named) >= len(own):
            raise
        raise CheckpointError(f"{error}\n{_OTHERWISE_NAMED}") from error
    return network
