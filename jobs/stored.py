"""The variants of a run in its store, of which no more is read than is asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, BinaryIO

from numpy.typing import NDArray
from safetensors.numpy import load as load_tensors

from shifter.errors import CheckpointError
from shifter.run import Run
from shifter.store import Store
from shifter.values import Profile, Variant

GRAPH, TENSORS, PLAN = "graph.onnx", "tensors.safetensors", "plan.json"
FACTS, PROFILE = "reduced.json", "profile.json"
"""What says that a round is reduced and proved; and that all of a run's rounds are, and are measured."""


class StoredTensors(Mapping[str, NDArray[Any]]):
    """Tensors of a safetensors file in a store: each is read when it is asked for, and not kept.

    Raises:
        CheckpointError: when one is asked for, if the file is damaged.
    """

    def __init__(self, store: Store, key: str) -> None:
        self._store, self._key = store, key

    def __getitem__(self, name: str) -> NDArray[Any]:
        described = dict(self._header[name])
        begin, end = described["data_offsets"]
        with self._store.open_file(self._key) as file:
            file.seek(self._data + begin)
            data = _exactly(file, end - begin, self._key)
        header = json.dumps({name: described | {"data_offsets": [0, end - begin]}}).encode()
        return load_tensors(len(header).to_bytes(8, "little") + header + data)[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._header)

    def __len__(self) -> int:
        return len(self._header)

    @property
    def _header(self) -> dict[str, Any]:
        return self._read[0]

    @property
    def _data(self) -> int:
        """Where the tensors begin."""
        return self._read[1]

    @cached_property
    def _read(self) -> tuple[dict[str, Any], int]:
        with self._store.open_file(self._key) as file:
            length = int.from_bytes(_exactly(file, 8, self._key), "little")
            try:
                header = json.loads(_exactly(file, length, self._key))
            except ValueError as error:
                raise CheckpointError(f"{self._key} is damaged: its header is no JSON ({error})") from error
        header.pop("__metadata__", None)
        return header, 8 + length


def read_variant(run: Run, name: str, profile: Profile) -> Variant:
    """A variant whose tensors stay in the store until they are asked for."""
    graph = run.store.read(run.variant_key(name, GRAPH))
    return Variant(name, graph, StoredTensors(run.store, run.variant_key(name, TENSORS)), profile)


def read_profile(run: Run, name: str) -> Profile:
    return Profile.from_json(json.loads(run.store.read(run.variant_key(name, PROFILE))))


def write_anew(store: Store, key: str, data: bytes) -> None:
    """Writes a key of a round that is not complete: another's bytes are what an interruption left."""
    if not store.create(key, data):
        store.delete(key)
        store.write(key, data)


def to_json(data: Any) -> bytes:
    return json.dumps(data, indent=1).encode()


def _exactly(file: BinaryIO, length: int, key: str) -> bytes:
    data = file.read(length) if length < 2**40 else b""
    if len(data) != length:
        raise CheckpointError(f"{key} is damaged: it ends too early")
    return data
