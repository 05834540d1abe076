"""The sparse checkpoint: what one round of pruning leaves, without its zeros.

An Arrow IPC file, uncompressed, of record batches with one row per tensor::

    name     string        under the schema's order of names
    dtype    string        numpy's name: float32, bfloat16, int64, …
    shape    list<int64>
    mask     large_binary  bits in C order, most significant first, as zlib has them; null: all are kept
    values   large_binary  the elements that the mask keeps, in C order, little-endian
    sha256   binary        of the fields above

The schema's metadata holds a header (JSON: format, :class:`CheckpointMeta`, names, which of them are
prunable, how many rows each batch has) and its sha256. A reader that wants one tensor fetches the
footer and that tensor's batch: a large tensor has one of its own, small ones share one of 16 KiB, since
a batch costs some 600 bytes beside its rows. Arrays come back bit for bit: -0.0 and the payload of a
NaN included. Files of format 1, whose every tensor has its own batch and whose masks are not deflated,
are read as well.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import sys
import zlib
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

_FORMAT = 2
_READ = (1, 2)
_BATCH = 16 * 2**10
"""Bytes of masks and values in a batch of more than one tensor."""
_PER_TENSOR, _PER_BATCH, _PER_FILE = 200, 700, 1500
"""Bytes of names, digests and Arrow's own headers; names of up to 40 letters."""
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
    arrays = {name: np.asarray(array) for name, array in tensors.items()}
    batches = _in_batches(arrays, mask)
    header = json.dumps(
        {
            "format": _FORMAT,
            "meta": asdict(meta),
            "names": list(tensors),
            "prunable": list(mask),
            "rows": [len(names) for names in batches],
        },
        sort_keys=True,
    ).encode()
    schema = _FIELDS.with_metadata({"shifter": header, "sha256": hashlib.sha256(header).hexdigest()})
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, schema) as writer:
        for names in batches:
            rows = [_to_row(name, arrays[name], mask.get(name)) for name in names]
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))
    return sink.getvalue()


def most_bytes(content: int, tensors: int) -> int:
    """What a checkpoint takes at most, of tensors whose masks, not deflated, and values take ``content``."""
    # Two neighbouring batches hold more than one may.
    batches = min(tensors, 1 + 2 * (content // _BATCH))
    return content + _PER_TENSOR * tensors + _PER_BATCH * batches + _PER_FILE


def _in_batches(arrays: Tensors, mask: Mask) -> list[list[str]]:
    """Names, in order; what is larger than a batch is one."""
    batches: list[list[str]] = []
    left = 0
    for name, array in arrays.items():
        kept = int(np.count_nonzero(mask[name])) if name in mask else array.size
        size = kept * array.itemsize + (array.size // 8 if name in mask else 0)
        if not batches or size > left:
            batches.append([])
            left = _BATCH
        batches[-1].append(name)
        left -= size
    return batches


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
        if fields["format"] not in _READ:
            raise CheckpointError(f"{source} has format {fields['format']}; this version reads {_FORMAT}")
        self._deflated = fields["format"] > 1
        self.meta = CheckpointMeta(**fields["meta"])
        self.names: tuple[str, ...] = tuple(fields["names"])
        self._prunable: tuple[str, ...] = tuple(fields["prunable"])
        rows = fields.get("rows", [1] * len(self.names))
        places = [(batch, row) for batch, count in enumerate(rows) for row in range(count)]
        if (reader.num_record_batches, len(places)) != (len(rows), len(self.names)):
            raise CheckpointError(
                f"{source} is damaged: {reader.num_record_batches} batches instead of {len(rows)}"
            )
        self._places = dict(zip(self.names, places, strict=True))
        self._shared: tuple[int, pa.RecordBatch] | None = None  # the last batch of several tensors

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
        if name not in self._places:
            raise CheckpointError(
                f"{self._source} has no tensor {name!r}; it has {', '.join(self.names) or 'none'}"
            )
        number, place = self._places[name]
        with _as_checkpoint_error(f"{self._source}, tensor {name!r},"):
            row: dict[str, Any] = self._batch(number).slice(place, 1).to_pylist()[0]
            if row["name"] != name or _digest(row) != row["sha256"]:
                raise CheckpointError(f"{self._source} is damaged: {name!r} does not match its sha256")
            if self._deflated and row["mask"] is not None:
                row["mask"] = _inflated(row["mask"], -(-math.prod(row["shape"]) // 8))
        return row

    def _batch(self, number: int) -> pa.RecordBatch:
        """Kept for the next tensor in it; one of its own is asked for once."""
        if self._shared is not None and self._shared[0] == number:
            return self._shared[1]
        batch = self._reader.get_batch(number)
        batch.validate(full=True)
        if batch.num_rows > 1:
            self._shared = number, batch
        return batch

    def _tensor(self, row: Mapping[str, Any], name: str) -> NDArray[Any]:
        with _as_checkpoint_error(f"{self._source}, tensor {name!r},"):
            values = np.frombuffer(row["values"], _DTYPES[row["dtype"]])
            if row["mask"] is None:
                return values.reshape(row["shape"]).copy()
            array = np.zeros(row["shape"], values.dtype)
            # Boolean indexing refuses another number of values than the mask keeps.
            array[_bits(row)] = values
            return array


def _to_row(name: str, array: NDArray[Any], mask: NDArray[np.bool_] | None) -> dict[str, Any]:
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
            bits = zlib.compress(np.packbits(kept).tobytes(), level=1)
            flat = flat[kept]
    row: dict[str, Any] = {
        "name": name,
        "dtype": array.dtype.name,
        "shape": list(array.shape),
        "mask": bits,
        "values": flat.tobytes(),
    }
    row["sha256"] = _digest(row)
    return row


def _digest(row: Mapping[str, Any]) -> bytes:
    """sha256 of a row's fields; the description first, with the lengths that part mask from values."""
    bits = row["mask"]
    described = [row["name"], row["dtype"], row["shape"], None if bits is None else len(bits)]
    whole = hashlib.sha256(json.dumps(described).encode())
    whole.update(bits or b"")
    whole.update(row["values"])
    return whole.digest()


def _inflated(data: bytes, size: int) -> bytes:
    """No more than ``size`` bytes, whatever a damaged file says."""
    inflater = zlib.decompressobj()
    bits = inflater.decompress(data, size + 1)
    if not inflater.eof or len(bits) != size:
        raise ValueError(f"a mask that does not inflate to {size} bytes")
    return bits


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
    except (pa.ArrowException, zlib.error, OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{source} is no sparse checkpoint, or a damaged one: {reason}") from error
