"""The sparse checkpoint: what one round of pruning leaves, without its zeros.

An Arrow IPC file, one record batch of one row per tensor, uncompressed::

    name     string        under the schema's order of names
    dtype    string        numpy's name: float32, bfloat16, int64, …
    shape    list<int64>
    mask     large_binary  bits in C order, most significant first; null when nothing is masked
    values   large_binary  the elements that the mask keeps, in C order, little-endian
    sha256   binary        of the fields above

The schema's metadata holds a header (JSON: format, :class:`CheckpointMeta`, names, which of them are
prunable) and its sha256. A reader that wants one tensor fetches the footer and that tensor's batch.
Arrays come back bit for bit: -0.0 and the payload of a NaN included. A tensor costs about 750 bytes
beyond its mask and values, which networks of few weights feel and others do not.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shifter.errors import CheckpointError, StoreError
from shifter.values import Mask, Tensors

assert sys.byteorder == "little", "tensors are stored as they lie in memory"

_FORMAT = 1
_DTYPES = {
    name: np.dtype(name)
    for name in (
        *("float16", "float32", "float64", "bool"),
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    )
} | {"bfloat16": np.dtype(ml_dtypes.bfloat16)}
_FIELDS = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("dtype", pa.string(), nullable=False),
        pa.field("shape", pa.list_(pa.int64()), nullable=False),
        pa.field("mask", pa.large_binary()),
        pa.field("values", pa.large_binary(), nullable=False),
        pa.field("sha256", pa.binary(32), nullable=False),
    ]
)


@dataclass(frozen=True)
class CheckpointMeta:
    """What is known of a round besides its tensors.

    Args:
        round: 0 is the dense one. step: optimiser iterations that the round trained for.
        ratio: compression ratio C of the prunable tensors.
        mask_digest: of the round's mask (:meth:`shifter.values.Mask.digest`).
    """

    round: int
    step: int
    ratio: float
    validation_accuracy: float
    test_accuracy: float
    mask_digest: str


def encode(tensors: Tensors, mask: Mask, meta: CheckpointMeta) -> bytes:
    """A checkpoint of ``tensors``, of which ``mask`` says what is kept. Same input, same bytes.

    Tensors that the mask does not name are stored whole.

    Raises:
        CheckpointError: if a masked element is not zero in every bit (-0.0 is not), if the mask does
            not fit the tensors or ``meta``, or a dtype cannot be stored.
    """
    unknown = sorted(mask.keys() - tensors.keys())
    if unknown:
        raise CheckpointError(f"the mask names tensors that the network has not: {', '.join(unknown)}")
    if mask.digest() != meta.mask_digest:
        raise CheckpointError(f"the mask's digest is {mask.digest()}, not {meta.mask_digest}")
    header = json.dumps(
        {"format": _FORMAT, "meta": asdict(meta), "names": list(tensors), "prunable": list(mask)},
        sort_keys=True,
    ).encode()
    schema = _FIELDS.with_metadata({"shifter": header, "sha256": hashlib.sha256(header).hexdigest()})
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, schema) as writer:
        for name, array in tensors.items():
            writer.write_batch(_to_batch(name, np.asarray(array), mask.get(name), schema))
    return sink.getvalue()


class SparseCheckpoint:
    """A checkpoint opened for reading; tensors are read when they are asked for.

    Attributes:
        meta: what is known of the round.
        names: its tensors, in the order they were written.
    """

    def __init__(self, reader: pa.ipc.RecordBatchFileReader, source: str) -> None:
        self._reader = reader
        self._source = source
        metadata = reader.schema.metadata or {}
        header = metadata.get(b"shifter", b"")
        if hashlib.sha256(header).hexdigest().encode() != metadata.get(b"sha256"):
            raise CheckpointError(f"{source} is damaged: its header does not match its sha256")
        fields = json.loads(header)
        if fields["format"] != _FORMAT:
            raise CheckpointError(f"{source} has format {fields['format']}; this version reads {_FORMAT}")
        self.meta = CheckpointMeta(**fields["meta"])
        self.names: tuple[str, ...] = tuple(fields["names"])
        self._index = {name: i for i, name in enumerate(self.names)}
        self._prunable: tuple[str, ...] = tuple(fields["prunable"])
        if reader.num_record_batches != len(self.names):
            raise CheckpointError(
                f"{source} is damaged: {reader.num_record_batches} tensors instead of {len(self.names)}"
            )

    @classmethod
    def open(cls, file: BinaryIO | bytes | Path) -> SparseCheckpoint:
        """Opens a seekable file, bytes in memory, or a path. Reads no tensor yet.

        Raises:
            CheckpointError: if it is no sparse checkpoint, is cut short or damaged.
        """
        source = str(file) if isinstance(file, Path) else "the sparse checkpoint"
        with _as_checkpoint_error(source):
            if isinstance(file, Path):
                opened = pa.OSFile(str(file))
            elif isinstance(file, bytes):
                opened = pa.BufferReader(file)
            else:
                opened = pa.PythonFile(file, mode="r")
            return cls(pa.ipc.open_file(opened), source)

    def read(self, name: str) -> NDArray[Any]:
        """One tensor, a fresh array equal to the written one in every bit.

        Raises:
            CheckpointError: if there is no such tensor, or its bytes do not match its sha256.
        """
        return self._tensor(self._row(name), name)

    def mask(self) -> Mask:
        """Which elements of the prunable tensors are kept.

        Raises:
            CheckpointError: if a tensor is damaged, or the masks do not match ``meta.mask_digest``.
        """
        with _as_checkpoint_error(self._source):
            mask = Mask({name: _bits(self._row(name)) for name in self._prunable})
        if mask.digest() != self.meta.mask_digest:
            raise CheckpointError(f"{self._source} is damaged: its masks do not match their digest")
        return mask

    def tensors(self) -> dict[str, NDArray[Any]]:
        """All of them."""
        return {name: self.read(name) for name in self.names}

    def _row(self, name: str) -> dict[str, Any]:
        if name not in self._index:
            raise CheckpointError(
                f"{self._source} has no tensor {name!r}; it has {', '.join(self.names) or 'none'}"
            )
        with _as_checkpoint_error(f"{self._source}, tensor {name!r},"):
            batch = self._reader.get_batch(self._index[name])
            batch.validate(full=True)
            (row,) = batch.to_pylist()
            if row["name"] != name or _digest(row) != row["sha256"]:
                raise CheckpointError(f"{self._source} is damaged: {name!r} does not match its sha256")
        assert isinstance(row, dict)
        return row

    def _tensor(self, row: Mapping[str, Any], name: str) -> NDArray[Any]:
        with _as_checkpoint_error(f"{self._source}, tensor {name!r},"):
            values = np.frombuffer(row["values"], _DTYPES[row["dtype"]])
            if row["mask"] is None:
                return values.reshape(row["shape"]).copy()
            array = np.zeros(row["shape"], values.dtype)
            # Boolean indexing refuses another number of values than the mask keeps.
            array[_bits(row)] = values
            return array


def _to_batch(
    name: str, array: NDArray[Any], mask: NDArray[np.bool_] | None, schema: pa.Schema
) -> pa.RecordBatch:
    if array.dtype not in _DTYPES.values():
        raise CheckpointError(f"{name!r} is {array.dtype}; a checkpoint holds {', '.join(_DTYPES)}")
    flat = np.ascontiguousarray(array).reshape(-1)
    bits = None
    if mask is not None:
        if mask.shape != array.shape:
            raise CheckpointError(f"the mask of {name!r} has shape {mask.shape}, the tensor {array.shape}")
        kept = mask.reshape(-1)
        # As integers of the same width: -0.0 == 0.0, but it is not the same bits.
        astray = np.count_nonzero(flat.view(f"u{array.itemsize}")[~kept])
        if astray:
            raise CheckpointError(
                f"{astray} masked elements of {name!r} are not zero: a pruned weight should be +0.0"
            )
        if not kept.all():
            bits = np.packbits(kept).tobytes()
            flat = flat[kept]
    row: dict[str, Any] = {
        "name": name,
        "dtype": array.dtype.name,
        "shape": list(array.shape),
        "mask": bits,
        "values": flat.tobytes(),
    }
    row["sha256"] = _digest(row)
    return pa.RecordBatch.from_pylist([row], schema=schema)


def _digest(row: Mapping[str, Any]) -> bytes:
    """sha256 of a row's fields; the description first, with the lengths that part mask from values."""
    bits = row["mask"]
    described = [row["name"], row["dtype"], row["shape"], None if bits is None else len(bits)]
    whole = hashlib.sha256(json.dumps(described).encode())
    whole.update(bits or b"")
    whole.update(row["values"])
    return whole.digest()


def _bits(row: Mapping[str, Any]) -> NDArray[np.bool_]:
    if row["mask"] is None:
        return np.ones(row["shape"], np.bool_)
    count = math.prod(row["shape"])
    bits = np.frombuffer(row["mask"], np.uint8)
    if bits.size != -(-count // 8):
        raise ValueError(f"a mask of {bits.size} bytes for {count} elements")
    return np.unpackbits(bits, count=count).astype(np.bool_).reshape(row["shape"])


@contextmanager
def _as_checkpoint_error(source: str) -> Iterator[None]:
    """What Arrow, JSON and numpy say of broken bytes, as an error of ours."""
    try:
        yield
    except (CheckpointError, StoreError):
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{source} is no sparse checkpoint, or a damaged one: {reason}") from error
