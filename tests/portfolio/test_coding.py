import math
import zlib
from typing import get_args

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shifter.errors import PackageError
from shifter.portfolio import deflating
from shifter.portfolio.coding import Coding, DType, decode, encode

CODINGS = get_args(Coding)
DTYPES = get_args(DType)


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


@given(tensors(), st.sampled_from(CODINGS))
def test_what_is_decoded_is_what_was_encoded_bit_for_bit(tensor: np.ndarray, coding: Coding) -> None:
    back = decode(encode(tensor, coding), coding, tensor.dtype.name, tensor.shape)
    assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape)
    assert back.tobytes() == tensor.tobytes()
    assert back.flags.c_contiguous
    assert back.flags.writeable


@pytest.mark.parametrize("coding", CODINGS)
def test_negative_zeros_and_the_payloads_of_nans_survive(coding: Coding) -> None:
    bits = np.array([0x80000000, 0x7FC00001, 0xFFC12345, 0x7F800001, 0x00000001, 0x00000000], np.uint32)
    back = decode(encode(bits.view(np.float32), coding), coding, "float32", (6,))
    assert back.view(np.uint32).tolist() == bits.tolist()


@pytest.mark.parametrize("coding", CODINGS)
def test_a_tensor_that_is_not_contiguous_is_stored_in_its_logical_order(coding: Coding) -> None:
    tensor = np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1)[::2]
    assert np.array_equal(decode(encode(tensor, coding), coding, "float32", tensor.shape), tensor)


def test_sparse_coding_stores_a_bit_an_element_and_the_values() -> None:
    tensor = np.zeros(100, np.float32)
    tensor[[3, 50]] = 1.5, -2.0
    coded = encode(tensor, "sparse")
    assert len(coded) == 13 + 2 * 4
    # Bytes by significance: both lowest bytes first, both highest last.
    assert coded[13:] == bytes([0, 0, 0, 0, 0xC0, 0x00, 0x3F, 0xC0])


def test_grouped_sparse_coding_is_smaller_than_deflate_alone_on_pruned_weights() -> None:
    random = np.random.default_rng(0)
    weights = random.standard_normal(50_000).astype(np.float32) * 0.05
    weights[random.random(weights.size) > 0.08] = 0
    coded = len(deflating.deflate(encode(weights, "sparse")))
    assert coded < 0.8 * len(zlib.compress(weights.tobytes(), 6))


@pytest.mark.parametrize(
    ("coded", "coding", "shape"),
    [
        (b"\0" * 11, "dense", (3,)),  # a byte short of three floats
        (b"\0" * 12, "dense", (2, 2)),
        (b"", "sparse", (1,)),  # no mask
        (b"\x01" + b"\0" * 3, "sparse", (8,)),  # a value cut short
        (b"\x01" + b"\0" * 8, "sparse", (8,)),  # two values for one bit
        (b"\x03" + b"\0" * 4, "sparse", (8,)),  # one value for two bits
        (b"\x80" + b"\0" * 4, "sparse", (7,)),  # the bit is in the padding
        (b"\xff" * 5, "sparse", (2**40, 2**40)),
        (b"", "dense", (0, -1)),
    ],
)
def test_a_coding_of_another_shape_is_refused(coded: bytes, coding: Coding, shape: tuple[int, ...]) -> None:
    with pytest.raises(PackageError):
        decode(coded, coding, "float32", shape)
