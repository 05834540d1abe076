"""The sparse checkpoint gives back every bit, and never a damaged tensor."""

from __future__ import annotations

import hashlib
import io
import json
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from shifter.errors import CheckpointError
from shifter.sparse import CheckpointMeta, SparseCheckpoint, _inflated, encode
from shifter.values import Mask

DTYPES = ["float16", "float32", "float64", "int8", "int32", "int64", "uint8", "uint64", "bool", "bfloat16"]


def meta(mask: Mask, **changes: Any) -> CheckpointMeta:
    fields = {"round": 3, "step": 120, "ratio": 8.0, "validation_accuracy": 0.97, "test_accuracy": 0.96}
    return CheckpointMeta(**{**fields, **changes}, mask_digest=mask.digest())  # type: ignore[arg-type]


def dtype_of(name: str) -> np.dtype[Any]:
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


def bits(array: NDArray[Any]) -> bytes:
    return array.tobytes()


@st.composite
def arrays(draw: st.DrawFn) -> NDArray[Any]:
    """Any bit pattern of any stored dtype, 0-d and empty shapes included."""
    dtype = dtype_of(draw(st.sampled_from(DTYPES)))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
    if dtype == np.bool_:
        return draw(hnp.arrays(dtype, shape))
    patterns = draw(hnp.arrays(f"u{dtype.itemsize}", shape))
    return patterns.view(dtype)


@st.composite
def checkpoints(draw: st.DrawFn) -> tuple[dict[str, NDArray[Any]], Mask]:
    names = draw(st.lists(st.text(min_size=1, max_size=8), unique=True, max_size=4))
    tensors, masks = {}, {}
    for name in names:
        array = draw(arrays())
        if draw(st.booleans()):
            masks[name] = draw(hnp.arrays(np.bool_, array.shape))
            array = array.copy()
            array[~masks[name]] = 0
        tensors[name] = array
    return tensors, Mask(masks)


@given(checkpoints())
def test_a_round_trip_gives_back_every_bit(checkpoint: tuple[dict[str, NDArray[Any]], Mask]) -> None:
    tensors, mask = checkpoint
    opened = SparseCheckpoint.open(encode(tensors, mask, meta(mask)))
    assert opened.meta == meta(mask)
    assert opened.names == tuple(tensors)
    back = opened.tensors()
    for name, array in tensors.items():
        assert back[name].dtype == array.dtype
        assert back[name].shape == array.shape
        assert bits(back[name]) == bits(array)
        assert back[name].flags.writeable
    assert opened.mask().keys() == mask.keys()
    assert opened.mask().digest() == mask.digest()


def test_the_same_input_gives_the_same_bytes() -> None:
    mask, tensors = pruned()
    assert encode(tensors, mask, meta(mask)) == encode(tensors, mask, meta(mask))


def test_signed_zeros_and_nan_payloads_survive() -> None:
    special = np.array([0x80000000, 0x7FC12345, 0xFFC00001, 0x7F800001, 1], np.uint32).view(np.float32)
    mask = Mask({"w": np.ones(5, np.bool_)})
    back = SparseCheckpoint.open(encode({"w": special}, mask, meta(mask))).read("w")
    assert bits(back) == bits(special)


@pytest.mark.parametrize("stray", [1e-45, -0.0, 1.0, float("nan")])
def test_a_masked_weight_that_is_not_zero_is_refused(stray: float) -> None:
    mask, tensors = pruned()
    weight = tensors["conv.weight"].copy()
    weight[np.unravel_index(np.flatnonzero(~mask["conv.weight"])[0], weight.shape)] = stray
    with pytest.raises(CheckpointError, match=r"1 masked elements of 'conv\.weight' are not zero"):
        encode({**tensors, "conv.weight": weight}, mask, meta(mask))


def test_masks_that_do_not_fit_are_refused() -> None:
    mask, tensors = pruned()
    with pytest.raises(CheckpointError, match="has not: elsewhere"):
        encode(tensors, Mask({"elsewhere": np.ones(2, np.bool_)}), meta(mask))
    other = Mask({"conv.weight": np.ones((2, 2), np.bool_)})
    with pytest.raises(CheckpointError, match="shape"):
        encode(tensors, other, meta(other))
    with pytest.raises(CheckpointError, match="digest"):
        encode(tensors, mask, meta(other))


@pytest.mark.parametrize("dtype", ["complex64", "object", ">f4", "U3"])
def test_a_dtype_that_cannot_be_stored_is_refused(dtype: str) -> None:
    with pytest.raises(CheckpointError, match="'w' is"):
        encode({"w": np.zeros(2, dtype)}, Mask({}), meta(Mask({})))


def test_an_unknown_name_lists_the_known_ones() -> None:
    mask, tensors = pruned()
    with pytest.raises(CheckpointError, match=r"no tensor 'conv\.wieght'; it has conv\.weight, norm"):
        SparseCheckpoint.open(encode(tensors, mask, meta(mask))).read("conv.wieght")


def test_the_size_is_that_of_masks_and_values() -> None:
    rng = np.random.default_rng(0)
    kept = rng.random((256, 256, 3, 3)) < 1 / 16
    weight = np.where(kept, rng.normal(size=kept.shape), 0).astype(np.float32)
    mask = Mask({"w": kept})
    least = kept.size // 8 + int(kept.sum()) * 4
    assert len(encode({"w": weight}, mask, meta(mask))) < least + 4096


def test_a_dense_tensor_carries_no_mask() -> None:
    weight = np.ones(80_000, np.float32)
    mask = Mask({"w": np.ones(80_000, np.bool_)})
    assert len(encode({"w": weight}, mask, meta(mask))) < weight.nbytes + 4096


def test_one_tensor_is_read_without_the_others(tmp_path: Path) -> None:
    tensors = {f"w{i}": np.full(100_000, i, np.float32) for i in range(5)}
    data = encode(tensors, Mask({}), meta(Mask({})))

    class Counting(io.BytesIO):
        count = 0

        def read(self, size: int | None = -1) -> bytes:
            found = super().read(size)
            self.count += len(found)
            return found

    file = Counting(data)
    opened = SparseCheckpoint.open(file)
    assert file.count < 20_000
    assert opened.read("w3")[0] == 3
    assert file.count < tensors["w3"].nbytes + 20_000

    path = tmp_path / "round-00.arrow"
    path.write_bytes(data)
    assert bits(SparseCheckpoint.open(path).read("w4")) == bits(tensors["w4"])


def test_small_tensors_share_a_batch_and_are_read_with_those_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {f"norm{i}": np.full(64, i, np.float32) for i in range(300)}
    reader = pa.ipc.open_file(encode(tensors, Mask({}), meta(Mask({}))))
    sizes = [reader.get_batch(i).nbytes for i in range(reader.num_record_batches)]
    assert reader.num_record_batches == 5
    assert max(sizes) < 32_000
    opened = SparseCheckpoint(reader, "it")
    fetched: list[int] = []

    def get_batch(number: int) -> pa.RecordBatch:
        fetched.append(number)
        return reader.get_batch(number)

    monkeypatch.setattr(opened, "_reader", SimpleNamespace(get_batch=get_batch))
    for name in ("norm299", "norm298", "norm0", "norm1"):
        assert bits(opened.read(name)) == bits(tensors[name])
    assert fetched == [4, 0]


def test_a_file_of_format_1_is_read() -> None:
    """A batch to each tensor, and masks as they are."""
    mask, tensors = pruned()
    about = {"format": 1, "meta": vars(meta(mask)), "names": list(tensors), "prunable": list(mask)}
    header = json.dumps(about, sort_keys=True).encode()
    new = pa.ipc.open_file(encode(tensors, mask, meta(mask)))
    schema = new.schema.with_metadata({"shifter": header, "sha256": hashlib.sha256(header).hexdigest()})
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, schema) as writer:
        for row in new.read_all().to_pylist():
            if row["mask"] is not None:
                row["mask"] = zlib.decompress(row["mask"])
                described = [row["name"], row["dtype"], row["shape"], len(row["mask"])]
                whole = json.dumps(described).encode() + row["mask"] + row["values"]
                row["sha256"] = hashlib.sha256(whole).digest()
            writer.write_batch(pa.RecordBatch.from_pylist([row], schema=schema))
    opened = SparseCheckpoint.open(sink.getvalue())
    assert opened.meta == meta(mask)
    assert opened.mask().digest() == mask.digest()
    assert {n: bits(a) for n, a in opened.tensors().items()} == {n: bits(a) for n, a in tensors.items()}


def test_a_mask_that_would_inflate_without_end_is_refused() -> None:
    with pytest.raises(ValueError, match="does not inflate to 100 bytes"):
        _inflated(zlib.compress(bytes(10**7)), 100)


def pruned() -> tuple[Mask, dict[str, NDArray[Any]]]:
    rng = np.random.default_rng(1)
    kept = rng.random((4, 3, 3, 3)) < 0.3
    weight = np.where(kept, rng.normal(size=kept.shape), 0).astype(np.float32)
    return Mask({"conv.weight": kept}), {"conv.weight": weight, "norm.bias": np.arange(4, dtype=np.float64)}


@given(st.data())
@settings(max_examples=40)
def test_a_file_cut_short_is_refused(data: st.DataObject) -> None:
    mask, tensors = pruned()
    whole = encode(tensors, mask, meta(mask))
    length = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(CheckpointError):
        SparseCheckpoint.open(whole[:length]).tensors()


@given(st.data())
@settings(max_examples=300)
def test_a_flipped_bit_is_refused_or_changes_nothing(data: st.DataObject) -> None:
    """Nothing: there is padding in the file that nobody reads."""
    mask, tensors = pruned()
    whole = bytearray(encode(tensors, mask, meta(mask)))
    position = data.draw(st.integers(0, len(whole) * 8 - 1))
    whole[position // 8] ^= 1 << position % 8
    try:
        opened = SparseCheckpoint.open(bytes(whole))
        back, found = opened.tensors(), opened.mask()
    except CheckpointError:
        return
    assert opened.meta == meta(mask)
    assert found.digest() == mask.digest()
    assert {n: bits(a) for n, a in back.items()} == {n: bits(a) for n, a in tensors.items()}


@pytest.mark.parametrize("field", [b'"test_accuracy": 0.96', b'"round": 3', b"conv.weight"])
def test_the_header_is_part_of_the_check(field: bytes) -> None:
    mask, tensors = pruned()
    whole = encode(tensors, mask, meta(mask))
    assert field in whole
    changed = bytes([*field[:-1], field[-1] ^ 1])
    with pytest.raises(CheckpointError):
        SparseCheckpoint.open(whole.replace(field, changed)).tensors()


@pytest.mark.parametrize("junk", [b"", b"ARROW1", b"\x00" * 500, b'{"round": 1}'])
def test_what_is_no_checkpoint_is_refused(junk: bytes) -> None:
    with pytest.raises(CheckpointError, match="no sparse checkpoint"):
        SparseCheckpoint.open(junk)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.arrow"):
        SparseCheckpoint.open(tmp_path / "nowhere.arrow")
