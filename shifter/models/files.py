"""Weights from files: a ``state_dict``, or one of our sparse checkpoints."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from shifter.errors import CheckpointError
from shifter.model_spec import WeightsFile
from shifter.sparse import SparseCheckpoint

WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Where training scripts put the ``state_dict`` among what else they save."""

PREFIXES = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before every name."""

_T = TypeVar("_T")

_COUNTER = "num_batches_tracked"

_SHOWN = 8
"""Mismatches of one kind that an error lists."""


def read_weights(file: WeightsFile) -> dict[str, Tensor]:
    """The tensors of a file by name, on the CPU, the kind being told by the name's ending.

    ``.arrow``: a sparse checkpoint, zeros filled in; ``.safetensors``; otherwise what ``torch.save``
    wrote, read without executing any of it: a ``state_dict``, or a mapping that holds one under a
    name of :data:`WRAPPERS`.

    Raises:
        CheckpointError: if the file cannot be read, is damaged, has not the sha256 that ``file`` says,
            or holds something else than named tensors.
    """
    try:
        data = Path(file.path).read_bytes()
    except OSError as error:
        raise CheckpointError(f"weights {file.path} cannot be read: {error.strerror}") from None
    found = hashlib.sha256(data).hexdigest()
    if found != file.sha256:
        raise CheckpointError(
            f"weights {file.path} are not those of the recipe: their sha256 is {found}, "
            f"it should be {file.sha256}"
        )
    if file.path.lower().endswith(".arrow"):
        arrays = SparseCheckpoint.open(data).tensors()
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
    if file.path.lower().endswith(".safetensors"):
        try:
            return dict(safetensors.torch.load(data))
        except safetensors.SafetensorError as error:
            raise CheckpointError(f"weights {file.path} are no safetensors: {error}") from error
    return _unpack(_unpickle(data, file.path), file.path)


def load_weights(network: nn.Module, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Gives ``network`` the weights ``tensors``, in place: every one of its own, and nothing over.

    A prefix of :data:`PREFIXES` that all names of the file share is taken off. Floating point numbers
    become the network's float32. Batch norm's ``num_batches_tracked``, which old files and sparse
    checkpoints do not have and nothing here reads, may be missing.

    Args:
        source: names the file in errors.

    Raises:
        CheckpointError: with the mismatches of name, shape or kind of number, and the tensors that
            hold NaN or infinity, the first of each kind; the network is then as it was.
    """
    state = network.state_dict()
    given = without_prefixes(tensors, state)
    problems = [
        f"{name}: missing in the file" for name in state if name not in given and not name.endswith(_COUNTER)
    ]
    problems += [f"{name}: not in the network" for name in given if name not in state]
    problems += [
        f"{name}: {problem}"
        for name, own in state.items()
        if name in given and (problem := _misfit(given[name], own))
    ]
    if problems:
        raise CheckpointError(
            "\n  ".join([f"weights {source} do not fit the network:", *_shortened(problems)])
        )
    with torch.no_grad():
        for name, tensor in given.items():
            state[name].copy_(tensor)


def _shortened(problems: Sequence[str]) -> Iterator[str]:
    """The first of each kind, and how many more there are."""
    kinds: dict[str, list[str]] = {}
    for problem in problems:
        _, _, what = problem.partition(": ")
        kinds.setdefault(what.split()[0], []).append(problem)
    for alike in kinds.values():
        yield from alike[:_SHOWN]
        if len(alike) > _SHOWN:
            yield f"… and {len(alike) - _SHOWN} more such, up to {alike[-1]}"


def _misfit(tensor: Tensor, own: Tensor) -> str | None:
    if tensor.shape != own.shape:
        return f"shape {tuple(tensor.shape)} in the file, {tuple(own.shape)} in the network"
    if tensor.dtype != own.dtype and not (tensor.is_floating_point() and own.is_floating_point()):
        kinds = (str(t.dtype).removeprefix("torch.") for t in (tensor, own))
        return "{} in the file, {} in the network".format(*kinds)
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor.to(own.dtype)).all()):
        return f"holds NaN, infinity, or what {str(own.dtype).removeprefix('torch.')} cannot hold"
    return None


def _unpickle(data: bytes, path: str) -> Any:
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    # A file that is damaged, or made to harm, can fail in any way.
    except Exception as error:
        # Its first sentence; behind it torch tells how to execute the file nevertheless.
        reason = str(error).strip().partition(". ")[0].partition("\n")[0] or "no reason given"
        found = re.search(r"GLOBAL (\S+)", str(error))
        holds = f", it holds a {found[1]}" if found else ""
        raise CheckpointError(
            f"weights {path} cannot be read as tensors and nothing else "
            f"({type(error).__name__}: {reason}{holds}): "
            "they should be written by torch.save(network.state_dict(), …)"
        ) from error


def _unpack(content: Any, path: str) -> dict[str, Tensor]:
    if _is_state(content):
        return dict(content)
    keys = list(content) if isinstance(content, Mapping) else []
    found = [key for key in keys if key in WRAPPERS and _is_state(content[key])]
    if len(found) == 1:
        return dict(content[found[0]])
    what = f"a mapping of {', '.join(map(repr, keys))}" if keys else f"a {type(content).__name__}"
    raise CheckpointError(
        f"weights {path} hold {what}: they should hold a state_dict, by itself or under one of "
        f"{', '.join(WRAPPERS)}"
    )


def _is_state(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(name, str) for name in content)
        and all(isinstance(t, Tensor) and t.layout == torch.strided for t in content.values())
    )


def without_prefixes(tensors: Mapping[str, _T], own: Iterable[str]) -> dict[str, _T]:
    """``tensors`` without the prefixes of :data:`PREFIXES` that all their names share, and ``own`` do not."""
    found, own = dict(tensors), list(own)
    while prefix := next((p for p in PREFIXES if _all_have(p, found) and not _all_have(p, own)), None):
        found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    return found


def _all_have(prefix: str, names: Iterable[str]) -> bool:
    listed = list(names)
    return bool(listed) and all(name.startswith(prefix) for name in listed)
