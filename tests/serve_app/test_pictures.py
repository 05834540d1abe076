"""Image files made to cost: what is decoded is the pixels, whatever else the file holds."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from serve_app.pictures import MOST_SCANS, strip
from serve_app.protocol import Limits, decode
from shifter.errors import RequestError
from shifter.values import InputSpec

COLOUR = InputSpec(3, 4, 6, 255.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), ("a", "b"))
LIMITS = Limits(body_bytes=8 << 20, images=4, image_pixels=1 << 20)
PIXELS = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def read(body: bytes, limits: Limits = LIMITS) -> np.ndarray:
    """Pixels of shape (4, 6, 3) in 0…255."""
    return 255 * decode(body, "image/png", COLOUR, limits)[0].transpose(1, 2, 0)


def refused(body: bytes, limits: Limits = LIMITS) -> str:
    with pytest.raises(RequestError) as caught:
        decode(body, "image/png", COLOUR, limits)
    assert caught.value.status in (400, 413)
    return str(caught.value)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_chunks(png: bytes, *chunks: bytes) -> bytes:
    """Right behind the header."""
    return png[:33] + b"".join(chunks) + png[33:]


PNG = encoded(Image.fromarray(PIXELS))
JPEG = encoded(Image.fromarray(PIXELS), "JPEG", quality=95)
ZEROS = zlib.compress(bytes(64 << 20), 9)


@pytest.mark.parametrize(
    "chunks",
    [
        [chunk(b"iCCP", b"profile\0\0" + ZEROS)],
        [chunk(b"zTXt", b"text\0\0" + ZEROS)] * 8,
        [chunk(b"iTXt", b"text\0\1\0\0\0" + ZEROS)] * 8,
        [chunk(b"tEXt", b"Raw profile type exif\0" + b"A" * 100_000)],
        [chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0)), chunk(b"fcTL", bytes(26))],
        [chunk(b"eXIf", b"II*\0" + struct.pack("<LH", 8, 65535) + b"\x12\x34\x02\0" * 100_000)],
        [chunk(b"sBIT", b""), chunk(b"gAMA", b""), chunk(b"pHYs", b"1"), chunk(b"xxXx", b"")],
    ],
)
def test_what_a_png_holds_beside_pixels_is_not_unfolded(chunks: list[bytes]) -> None:
    body = with_chunks(PNG, *chunks)
    tracemalloc.start()
    try:
        assert np.allclose(read(body), PIXELS, atol=1e-3)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * len(body) + 100_000


def test_chunks_and_segments_without_end_are_refused() -> None:
    many = with_chunks(PNG, *[chunk(b"IDAT", b"")] * 100_000)
    assert "chunks: write larger ones" in refused(many)
    assert "segments: leave out its metadata" in refused(JPEG[:2] + b"\xff\xfe\0\2" * 500_000 + JPEG[2:])


def exif(order: str, orientation: int, *, entries: int = 1) -> bytes:
    head = b"II*\0" if order == "<" else b"MM\0*"
    entry = struct.pack(f"{order}HHLHH", 0x0112, 3, 1, orientation, 0)
    return head + struct.pack(f"{order}LH", 8, entries) + entry


UPRIGHT = {
    **{
        0: lambda a: a,
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        9: lambda a: a,
    },
    **{5: lambda a: a.transpose(1, 0, 2), 6: lambda a: np.rot90(a, -1), 8: np.rot90},
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_every_orientation_is_set_upright(orientation: int, order: str) -> None:
    turns = orientation in (5, 6, 7, 8)
    stored = PIXELS.transpose(1, 0, 2) if turns else PIXELS
    body = with_chunks(encoded(Image.fromarray(stored)), chunk(b"eXIf", exif(order, orientation)))
    assert np.allclose(read(body), UPRIGHT[orientation](stored), atol=1e-3)
    jpeg = encoded(Image.fromarray(np.full((4, 6, 3), 9, np.uint8)), "JPEG")
    told = b"Exif\0\0" + exif(order, orientation)
    with_exif = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(told)) + told + jpeg[2:]
    assert strip(with_exif).orientation == (orientation if 1 <= orientation <= 8 else 1)


@given(st.binary(max_size=200), st.sampled_from(["<", ">"]), st.integers(0, 65535))
def test_an_orientation_that_cannot_be_read_is_upright(noise: bytes, order: str, entries: int) -> None:
    body = with_chunks(PNG, chunk(b"eXIf", exif(order, 99, entries=entries)[:12] + noise))
    assert 1 <= strip(body).orientation <= 8
    assert strip(with_chunks(PNG, chunk(b"eXIf", noise))).orientation in range(1, 9)


def scans(side: int, count: int) -> bytes:
    """A grey progressive JPEG whose scans say "nothing changes" in a few bytes each."""
    small = encoded(Image.new("L", (16, 16), 128), "JPEG", progressive=True)
    frame = small.index(b"\xff\xc2")
    head = small[: frame + 5] + struct.pack(">HH", side, side) + small[frame + 9 : small.index(b"\xff\xda")]
    blocks = ((side + 7) // 8) ** 2
    bits = "0" + "1" * 14  # a run of 32,767 blocks that end here
    bits *= -(-blocks // 32767)
    bits += "1" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")

    def table(kind: int, symbol: int) -> bytes:
        return b"\xff\xc4" + struct.pack(">HB", 20, kind) + bytes([1] + [0] * 15) + bytes([symbol])

    def scan(first: int, last: int) -> bytes:
        return b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, first, last, 0)

    flat = table(0x00, 0) + scan(0, 0) + bytes(blocks // 8 + 1)
    return head + flat + table(0x10, 0xE0) + (scan(1, 63) + data) * count + b"\xff\xd9"


def test_a_progressive_jpeg_of_thousands_of_scans_is_refused() -> None:
    assert read(scans(64, 10)).shape == (4, 6, 3)
    assert f"more than {MOST_SCANS} scans" in refused(scans(64, 100_000))
    large = Limits(image_pixels=512 * 512)
    assert read(scans(512, 10), large).shape == (4, 6, 3)
    assert "512x512 pixels in 41 scans" in refused(scans(512, 40), large)


def test_an_ordinary_progressive_jpeg_is_read_as_a_plain_decoder_reads_it() -> None:
    for options in (
        {"progressive": True},
        {"optimize": True},
        {"subsampling": 2},
        {"restart_marker_blocks": 1},
    ):
        body = encoded(Image.fromarray(np.tile(PIXELS, (9, 7, 1))), "JPEG", **options)
        plain = Image.open(io.BytesIO(body)).convert("RGB").resize((6, 4), Image.Resampling.BILINEAR)
        assert np.allclose(read(body), np.asarray(plain), atol=1e-3), options


def test_colours_are_as_the_file_says_in_adobes_segment_too() -> None:
    four = Image.fromarray(np.full((4, 6, 4), (10, 200, 30, 40), np.uint8), "CMYK")
    body = encoded(four, "JPEG")
    plain = Image.open(io.BytesIO(body)).convert("RGB")
    assert np.allclose(read(body), np.asarray(plain), atol=1e-3)
    palette = Image.fromarray(PIXELS).quantize(16)
    assert np.allclose(read(encoded(palette)), np.asarray(palette.convert("RGB")), atol=1e-3)


@pytest.mark.parametrize(
    "body",
    [
        JPEG[:2] + JPEG[2:].replace(b"\xff\xda", b"\xff\xc0\0\x0b\x08\xff\xff\xff\xff\x01\x01\x11\0\xff\xda"),
        JPEG[:2] + b"\xff\xe0\0\0" + JPEG[2:],
        JPEG[:2] + b"\xff\xdb",
        b"\xff\xd8\xff",
        b"\xff\xd8\xff\xd9",
        b"\x89PNG\r\n\x1a\n",
        PNG[:33],
        PNG[:20],
        with_chunks(PNG, struct.pack(">I", 2**31) + b"IDAT"),
        with_chunks(PNG, struct.pack(">I", 2**32 - 1) + b"tEXt"),
        PNG[:33] + chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)) + PNG[33:],
    ],
)
def test_a_file_that_contradicts_itself_is_refused(body: bytes) -> None:
    assert refused(body)


@given(st.data())
def test_a_damaged_file_is_read_or_refused(data: st.DataObject) -> None:
    whole = bytearray(data.draw(st.sampled_from([PNG, JPEG, scans(64, 3)])))
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(2, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        pixels = read(bytes(whole))
    except RequestError as refusal:
        status, pixels = refusal.status, PIXELS
    else:
        status = 200
    assert status in (200, 400, 413)
    assert np.all((pixels >= 0) & (pixels <= 256))
