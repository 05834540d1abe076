"""The state of a round in the middle: all that the rest of it depends on, and its form in a file.

One safetensors file holds every worker's part, so that it is whole or not there, and the workers'
parts belong together.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from shifter.errors import CheckpointError
from shifter.values import Step, Tensors

_FORMAT = 1


@dataclass(frozen=True)
class Own:
    """What each worker has of its own.

    Args:
        buffers: of the network; batch norm's statistics are of the worker's part of the images.
        random: states of torch's random number generators, uint8, by device (``cpu``, ``cuda``).
        loss: the sum of its losses since the epoch began.
    """

    buffers: Tensors
    random: Tensors
    loss: float


@dataclass(frozen=True)
class Progress:
    """A round that has come to ``step``.

    Args:
        weights, momentum: by parameter; the same on every worker. No momentum: an empty mapping.
        workers: by rank.
    """

    round: int
    step: Step
    weights: Tensors
    momentum: Tensors
    workers: tuple[Own, ...]

    def to_bytes(self, recipe: str) -> bytes:
        """As a safetensors file.

        Args:
            recipe: the recipe's digest.
        """
        tensors: dict[str, NDArray[Any]] = {}
        tensors |= {f"weights/{name}": array for name, array in self.weights.items()}
        tensors |= {f"momentum/{name}": array for name, array in self.momentum.items()}
        for rank, own in enumerate(self.workers):
            tensors |= {f"{rank}/buffers/{name}": array for name, array in own.buffers.items()}
            tensors |= {f"{rank}/random/{name}": array for name, array in own.random.items()}
            tensors[f"{rank}/loss"] = np.array([own.loss], np.float64)
        header = {
            "format": _FORMAT,
            "recipe": recipe,
            "round": self.round,
            "iteration": self.step.iteration,
            "workers": len(self.workers),
        }
        return pack(tensors, header)

    @classmethod
    def from_bytes(cls, data: bytes, recipe: str) -> Progress:
        """What :meth:`to_bytes` gave.

        Raises:
            CheckpointError: if it is damaged, of another recipe or written by another version.
        """
        tensors, header = unpack(data)
        try:
            if header["format"] != _FORMAT:
                raise CheckpointError(f"it has format {header['format']}; this version reads {_FORMAT}")
            if header["recipe"] != recipe:
                raise CheckpointError(f"it belongs to the recipe {header['recipe']}, not {recipe}")
            return cls(
                round=header["round"],
                step=Step(header["iteration"]),
                weights=_under(tensors, "weights/"),
                momentum=_under(tensors, "momentum/"),
                workers=tuple(_own(tensors, rank) for rank in range(header["workers"])),
            )
        except (KeyError, TypeError, IndexError) as error:
            raise CheckpointError(f"it is damaged: {type(error).__name__}: {error}") from error


def pack(tensors: Tensors, header: Mapping[str, Any]) -> bytes:
    """A safetensors file of both, and a sha256 of the tensors, which the format itself has not."""
    whole = {**header, "sha256": _digest(tensors)}
    return safetensors.numpy.save(dict(tensors), {"shifter": json.dumps(whole)})


def unpack(data: bytes) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """What :func:`pack` was given.

    Raises:
        CheckpointError: if it is damaged.
    """
    try:
        tensors = safetensors.numpy.load(data)
        (length,) = np.frombuffer(data[:8], "<u8")
        header = json.loads(json.loads(data[8 : 8 + int(length)])["__metadata__"]["shifter"])
        if header.pop("sha256") != _digest(tensors):
            raise CheckpointError("it is damaged: its tensors do not match their sha256")
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"it is damaged: {type(error).__name__}: {error}") from error
    return tensors, header


def _own(tensors: Tensors, rank: int) -> Own:
    return Own(
        buffers=_under(tensors, f"{rank}/buffers/"),
        random=_under(tensors, f"{rank}/random/"),
        loss=float(tensors[f"{rank}/loss"][0]),
    )


def _under(tensors: Tensors, prefix: str) -> Tensors:
    return {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}


def _digest(tensors: Mapping[str, NDArray[Any]]) -> str:
    whole = hashlib.sha256()
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        whole.update(f"{name} {array.dtype.name} {array.shape}".encode())
        whole.update(array.data if array.size else b"")
    return whole.hexdigest()
