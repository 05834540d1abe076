import math
import tracemalloc
import zlib
from typing import get_args

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shifter.errors import PackageError
from shifter.portfolio import deflating, positions
from shifter.portfolio.coding import VERSION_1, WRITTEN, Coding, DType, decode, encode

CODINGS: tuple[Coding, ...] = (*WRITTEN, *VERSION_1)
DTYPES = get_args(DType)


def coded(tensor: np.ndarray, coding: Coding) -> tuple[bytes, int | None]:
    """Content and number of values; of the codings of version 1, as its releases wrote them."""
    if coding in WRITTEN:
        made = encode(tensor, coding)
        return made.content, made.values
    flat = np.ascontiguousarray(tensor).reshape(-1)
    kept = flat.view(f"u{flat.itemsize}") != 0
    mask = np.packbits(kept, bitorder="little").tobytes() if coding == "sparse" else b""
    values = flat[kept] if coding == "sparse" else flat
    return mask + values.view(np.uint8).reshape(-1, flat.itemsize).T.tobytes(), None


def back(tensor: np.ndarray, coding: Coding) -> np.ndarray:
    content, values = coded(tensor, coding)
    return decode(content, coding, tensor.dtype.name, tensor.shape, values)


@st.composite
def tensors(draw: st.DrawFn) -> np.ndarray:
    """Any bit patterns, many of them zero, in any dtype and shape."""
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = draw(arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6))
    size = math.prod(shape)
    if dtype == np.bool_:
        return draw(arrays.arrays(np.bool_, shape))
    bits = draw(arrays.arrays(np.dtype(f"u{dtype.itemsize}"), size, fill=st.just(0)))
    return bits.view(dtype).reshape(shape)


@given(tensors(), st.sampled_from(CODINGS), st.sampled_from([8, 24, positions.AT_A_TIME]))
def test_what_is_decoded_is_what_was_encoded_bit_for_bit(
    tensor: np.ndarray, coding: Coding, at_a_time: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(positions, "AT_A_TIME", at_a_time)
        found = back(tensor, coding)
    assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
    assert found.tobytes() == tensor.tobytes()
    assert found.flags.c_contiguous
    assert found.flags.writeable


@pytest.mark.parametrize("coding", CODINGS)
def test_negative_zeros_and_the_payloads_of_nans_survive(coding: Coding) -> None:
    bits = np.array([0x80000000, 0x7FC00001, 0xFFC12345, 0x7F800001, 0x00000001, 0x00000000], np.uint32)
    assert back(bits.view(np.float32), coding).view(np.uint32).tolist() == bits.tolist()


@pytest.mark.parametrize("coding", CODINGS)
def test_a_tensor_that_is_not_contiguous_is_stored_in_its_logical_order(coding: Coding) -> None:
    tensor = np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1)[::2]
    assert np.array_equal(back(tensor, coding), tensor)


@pytest.mark.parametrize("coding", WRITTEN)
def test_a_tensor_is_made_where_there_is_room_for_it(coding: Coding) -> None:
    tensor = np.float32([[0, 1.5, 0], [0, 0, -2]])
    room = np.zeros(24, np.uint8)
    made = encode(tensor, coding)
    found = decode(made.content, coding, "float32", (2, 3), made.values, room)
    assert np.shares_memory(found, room)
    assert np.array_equal(found, tensor)


def test_what_is_stored() -> None:
    tensor = np.zeros(600, np.float32)
    tensor[[3, 50, 580]] = 1.5, -2.0, 0.0
    tensor[580] = -0.0
    # Rotated: 1.5 is 7f.80.00.00, -2.0 is 80.00.00.01, -0.0 is 00.00.00.01; lowest bytes first.
    values = bytes([0, 1, 1, 0, 0, 0, 0x80, 0, 0, 0x7F, 0x80, 0])
    mask = bytearray(75)
    mask[0], mask[6], mask[72] = 1 << 3, 1 << 2, 1 << 4
    gaps = bytes([3, 46, 255, 255, 580 - 51 - 510])
    made = {coding: encode(tensor, coding) for coding in WRITTEN}
    assert made["gaps"].content == values + gaps
    assert made["mask"].content == values + mask
    assert len(made["whole"].content) == 2400
    assert [each.values for each in made.values()] == [600, 3, 3]
    assert [each.noise for each in made.values()] == [1800, 9, 9]


@pytest.mark.parametrize(
    ("dtype", "noise"), [("float64", 6), ("float16", 1), ("int64", 0), ("bool", 0), ("uint8", 0)]
)
def test_only_the_bytes_of_mantissas_are_noise(dtype: str, noise: int) -> None:
    assert encode(np.ones(7, dtype), "whole").noise == 7 * noise


@pytest.mark.parametrize("far", [0, 1, 254, 255, 256, 509, 510, 511, 10_000])
def test_a_gap_of_any_length_comes_back(far: int) -> None:
    tensor = np.zeros(far + 3, np.float32)
    tensor[[0, far + 1]] = 1, 2
    assert np.array_equal(back(tensor, "gaps"), tensor)


@pytest.mark.parametrize("coding", WRITTEN)
def test_decoding_takes_little_more_memory_than_the_tensor(coding: Coding) -> None:
    tensor = np.random.default_rng(0).standard_normal(4_000_000).astype(np.float32)
    tensor[::3] = 0
    made = encode(tensor, coding)
    tracemalloc.start()
    found = decode(made.content, coding, "float32", tensor.shape, made.values)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert np.array_equal(found, tensor)
    assert tensor.nbytes <= peak < tensor.nbytes + 10_000_000


@pytest.mark.parametrize("density", [0.01, 0.08, 0.3])
def test_pruned_weights_come_within_a_tenth_of_their_entropy(density: float) -> None:
    random = np.random.default_rng(0)
    weights = random.standard_normal(50_000).astype(np.float32) * 0.05
    weights[np.abs(weights) < np.quantile(np.abs(weights), 1 - density)] = 0
    kept = weights[weights != 0].view(np.uint32)
    _, exponents = np.unique(kept >> 23, return_counts=True)
    bits = 23 * kept.size - float((exponents * np.log2(exponents / kept.size)).sum())
    bits -= weights.size * (density * math.log2(density) + (1 - density) * math.log2(1 - density))
    made = encode(weights, "gaps")
    deflated = len(deflating.deflate(made.content, made.noise))
    assert deflated < 1.1 * bits / 8
    assert deflated < 0.8 * len(zlib.compress(weights.tobytes(), 6))


@pytest.mark.parametrize(
    ("content", "coding", "shape", "values"),
    [
        (b"\0" * 11, "whole", (3,), 3),  # a byte short of three floats
        (b"\0" * 12, "whole", (2, 2), 4),
        (b"\0" * 12, "whole", (3,), 2),
        (b"\0" * 12, "whole", (3,), None),
        (b"", "mask", (1,), 0),  # no mask
        (b"\0" * 3 + b"\x01", "mask", (8,), 1),  # a value cut short
        (b"\0" * 8 + b"\x01", "mask", (8,), 2),  # two values for one bit
        (b"\0" * 4 + b"\x03", "mask", (8,), 1),  # one value for two bits
        (b"\0" * 4 + b"\x80", "mask", (7,), 1),  # the bit is in the padding
        (b"\xff" * 5, "mask", (2**40, 2**40), 1),
        (b"\0" * 4 + b"\x08", "gaps", (8,), 1),  # leads to the ninth of eight
        (b"\0" * 8 + b"\x03\x04", "gaps", (8,), 2),
        (b"\0" * 4 + b"\xff", "gaps", (300,), 1),  # the gap goes on, and no value comes
        (b"\0" * 4 + b"\0\0", "gaps", (300,), 1),  # two gaps for one value
        (b"\0" * 4, "gaps", (300,), 1),
        (b"\0" * 4 + b"\xff" * 3 + b"\0", "gaps", (300,), 1),  # more than there can be
        (b"\0" * 6, "gaps", (1,), 2),  # more values than elements
        (b"", "gaps", (2**40,), -1),
        (b"\0" * 11, "dense", (3,), None),
        (b"\0" * 12, "dense", (3,), 3),  # version 1 did not say how many
        (b"", "sparse", (1,), None),
        (b"\x01" + b"\0" * 3, "sparse", (8,), None),
        (b"\x01" + b"\0" * 8, "sparse", (8,), None),
        (b"\x03" + b"\0" * 4, "sparse", (8,), None),
        (b"\x80" + b"\0" * 4, "sparse", (7,), None),
        (b"", "whole", (0, -1), 0),
        (b"", "dense", (0, -1), None),
    ],
)
def test_a_coding_of_another_shape_is_refused(
    content: bytes, coding: Coding, shape: tuple[int, ...], values: int | None
) -> None:
    with pytest.raises(PackageError):
        decode(content, coding, "float32", shape, values)


@pytest.mark.parametrize("coding", ["whole", "dense"])
def test_a_truth_value_is_no_other_number(coding: Coding) -> None:
    with pytest.raises(PackageError, match="0 or 1, not 2"):
        decode(b"\0\1\2", coding, "bool", (3,), 3 if coding == "whole" else None)
