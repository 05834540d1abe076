"""Bodies to pixels: what is taken is read exactly, everything else is a 4xx that says what is right."""

from __future__ import annotations

import io
import json
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from serve_app.protocol import Limits, answer, decode
from shifter.errors import RequestError
from shifter.values import InputSpec

GREY = InputSpec(1, 4, 6, 16.0, (0.25,), (0.5,), ("a", "b"))
COLOUR = InputSpec(3, 4, 6, 255.0, (0.25, 0.5, 0.75), (0.5, 0.25, 1.0), ("a", "b"))
LIMITS = Limits(body_bytes=1 << 16, images=4, image_pixels=10_000)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def as_json(document: object) -> bytes:
    return json.dumps(document).encode()


def refused(body: bytes, content_type: str, spec: InputSpec = GREY) -> RequestError:
    with pytest.raises(RequestError) as caught:
        decode(body, content_type, spec, LIMITS)
    assert 400 <= caught.value.status < 500
    return caught.value


@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.just(1), st.just(4), st.just(6)),
        elements=st.floats(0, 16, width=32, allow_subnormal=False),
    )
)
def test_json_pixels_arrive_bitwise(pixels: np.ndarray) -> None:
    for shape in (pixels, pixels[:, 0]):
        read = decode(as_json({"images": shape.tolist()}), "application/json; charset=utf-8", GREY, LIMITS)
        assert read.dtype == np.float32
        assert np.array_equal(read, GREY.normalise(pixels))


def test_images_of_both_shapes_may_be_mixed() -> None:
    plain = np.arange(24).reshape(4, 6) % 16
    body = as_json({"images": [plain.tolist(), plain[None].tolist()]})
    assert np.array_equal(
        decode(body, "application/json", GREY, LIMITS), GREY.normalise(np.stack([plain[None]] * 2))
    )


@given(hnp.arrays(np.uint8, (4, 6, 3)))
def test_a_png_of_the_right_size_is_read_exactly(pixels: np.ndarray) -> None:
    read = decode(encoded(Image.fromarray(pixels)), "image/png", COLOUR, LIMITS)
    assert np.array_equal(read, COLOUR.normalise(pixels.transpose(2, 0, 1)[None]))


def test_encoded_images_are_brought_to_the_data_sets_range_channels_and_size() -> None:
    white = GREY.normalise(np.full((1, 1, 4, 6), 16.0))
    for mode in ("L", "RGB", "RGBA", "P", "1", "LA"):
        body = encoded(Image.new(mode, (13, 9), "white"))
        assert np.allclose(decode(body, "image/png", GREY, LIMITS), white, atol=1e-6), mode
    jpeg = encoded(Image.new("RGB", (13, 9), "white"), "JPEG")
    assert np.allclose(decode(jpeg, "image/jpeg", GREY, LIMITS), white, atol=1e-6)


def test_a_sixteen_bit_png_keeps_its_greys() -> None:
    pixels = np.linspace(0, 65535, 24).astype(np.uint16).reshape(4, 6)
    body = encoded(Image.fromarray(pixels))
    expected = GREY.normalise(pixels[None, None] / 65535 * 16)
    assert np.allclose(decode(body, "image/png", GREY, LIMITS), expected, atol=1e-5)
    three = decode(body, "image/png", COLOUR, LIMITS)
    assert np.allclose(three, COLOUR.normalise(np.repeat(pixels[None, None] / 257, 3, axis=1)), atol=1e-4)


def test_a_photograph_is_turned_as_its_orientation_says() -> None:
    pixels = np.zeros((6, 4, 3), np.uint8)
    pixels[0] = 255
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter to the right: the upper row becomes the right column
    stream = io.BytesIO()
    image.save(stream, "PNG", exif=exif)
    read = decode(stream.getvalue(), "image/png", COLOUR, LIMITS)
    turned = np.zeros((4, 6, 3), np.uint8)
    turned[:, -1] = 255
    assert np.array_equal(read, COLOUR.normalise(turned.transpose(2, 0, 1)[None]))


ROW = [0] * 6
IMAGE = [ROW] * 4


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ([IMAGE], r"images"),
        ({"pixels": [IMAGE]}, r"pixels"),
        ({"images": [IMAGE], "extra": 1}, r"extra"),
        ({"images": []}, r"at least one"),
        ({"images": IMAGE}, r"images\[0\] has the shape \(6,\).*\(1, 4, 6\) or \(4, 6\)"),
        ({"images": [IMAGE, [ROW] * 3]}, r"images\[1\] has the shape \(3, 6\)"),
        ({"images": [IMAGE, [ROW, [0]]]}, r"images\[1\] is ragged"),
        ({"images": [[["7"] * 6] * 4]}, r"images\[0\] holds something that is not a number"),
        ({"images": [IMAGE, [[None] * 6] * 4]}, r"images\[1\] holds something that is not a number"),
        ({"images": [[[True] * 6] * 4]}, r"not a number"),
        ({"images": [[[-1] * 6] * 4]}, r"pixel -1"),
        ({"images": [[[255] * 6] * 4]}, r"pixel 255: .* between 0 and 16"),
        ({"images": [IMAGE] * 5}, r"5 images in one request: at most 4"),
    ],
)
def test_wrong_json_is_refused_with_the_image_and_what_is_right(document: object, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        decode(as_json(document), "application/json", GREY, LIMITS)


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"\xff\xfe\x00", b"[" * 20_000),
        b'{"images": [1' + b"0" * 5000 + b"]}",  # a number beyond float64
        *(b'{"images": [[[NaN]]]}', b'{"images": [[[Infinity]]]}', b'{"images": [[[1e999]]]}'),
    ],
)
def test_what_is_no_json_is_refused(body: bytes) -> None:
    error = refused(body, "application/json")
    assert error.status == 400
    assert str(error).startswith("the body is not JSON: ")


@pytest.mark.parametrize("content_type", ["", "text/plain", "image/gif", "application/x-www-form-urlencoded"])
def test_other_types_are_refused_with_the_known_ones(content_type: str) -> None:
    error = refused(b"{}", content_type)
    assert error.status == 415
    assert "application/json, image/png, image/jpeg" in str(error)


@pytest.mark.parametrize("body", [b"", b"no image", encoded(Image.new("L", (4, 4)), "GIF")])
def test_what_is_no_png_or_jpeg_is_refused_plainly(body: bytes) -> None:
    error = refused(body, "image/png")
    assert (error.status, str(error)) == (400, "the body is not a PNG or JPEG image")


def test_a_cut_off_png_is_refused_with_what_is_wrong() -> None:
    whole = encoded(NOISE)
    assert "truncated" in str(refused(whole[: len(whole) // 2], "image/png"))


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20), np.uint8))


@given(st.data())
def test_a_damaged_image_is_read_or_refused_but_never_an_error_of_ours(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["PNG", "JPEG"]))
    body = bytearray(encoded(NOISE, kind))
    for _ in range(data.draw(st.integers(1, 5))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(body)), st.integers(0, len(body))))
    try:
        read = decode(bytes(body[:cut]), f"image/{kind.lower()}", GREY, LIMITS)
    except RequestError as refusal:
        status, read = refusal.status, np.zeros((1, 1, 4, 6), np.float32)
    else:
        status = 200
    assert status == 200 or 400 <= status < 500
    assert read.shape == (1, 1, 4, 6)
    assert np.all(np.isfinite(read))


def bomb(width: int, height: int) -> bytes:
    """A PNG of 100 bytes that claims to be of any size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"0"))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [101, 10_000, 12_000, 60_000])
def test_a_decompression_bomb_is_refused_by_its_header(side: int) -> None:
    """Just above our limit, and around the two of Pillow's own, a warning and an error."""
    error = refused(bomb(side, side), "image/png")
    assert error.status == 413
    assert "at most 10000" in str(error)


def test_a_large_body_is_refused() -> None:
    assert refused(b" " * (LIMITS.body_bytes + 1), "application/json").status == 413


def test_channels_that_no_image_file_carries_are_asked_for_as_json() -> None:
    spec = InputSpec(2, 4, 6, 1.0, (0.0, 0.0), (1.0, 1.0), ("a",))
    assert refused(encoded(Image.new("L", (6, 4))), "image/png", spec).status == 415


@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 5), st.just(2)),
        elements=st.floats(-100, 100, width=32, allow_subnormal=False),
    )
)
def test_an_answer_carries_the_logits_bitwise_and_their_class(logits: np.ndarray) -> None:
    document = json.loads(answer("4x", logits, GREY))
    assert document["variant"] == "4x"
    read = np.array([p["logits"] for p in document["predictions"]], np.float32)
    assert np.array_equal(read, logits)
    for row, prediction in zip(logits, document["predictions"], strict=True):
        assert prediction["index"] == int(np.argmax(row))
        assert prediction["class"] == GREY.classes[prediction["index"]]
        assert 0.5 - 1e-6 <= prediction["probability"] <= 1


def test_texts_among_the_pixels_cost_no_memory() -> None:
    """numpy would give each of them the room of the longest: forty megabytes for this body."""
    body = as_json({"images": [[["a" * 2_000] + ["b"] * 5_000]]})
    tracemalloc.start()
    try:
        assert "not a number" in str(refused(body, "application/json"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100 * len(body)
