"""Several images in one form, and forms that are none."""

from __future__ import annotations

import asyncio
import contextlib
import io
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from serve_app.multipart import images_of
from serve_app.protocol import IMAGE_TYPES, Limits, decode
from serve_app.service import EdgeService
from serve_app.settings import Settings
from shifter.errors import RequestError
from shifter.portfolio import Portfolio
from shifter.values import InputSpec

from .in_process import asking

SPEC = InputSpec(1, 8, 8, 16.0, (0.3,), (0.4,), ("zero", "one", "two"))
GREYS = np.random.default_rng(1).integers(0, 256, (5, 8, 8), np.uint8)
KIND = "multipart/form-data; boundary=b"
LIMITS = Limits(images=3)


def png(grey: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(grey).save(stream, "PNG")
    return stream.getvalue()


def form(*parts: tuple[str, bytes], end: bytes = b"--b--\r\n") -> bytes:
    written = [b"--b\r\n" + head.encode() + b"\r\n\r\n" + content + b"\r\n" for head, content in parts]
    return b"".join(written) + end


def file(kind: str = "image/png") -> str:
    return f'Content-Disposition: form-data; name="i"; filename="a.png"\r\nContent-Type: {kind}'


def test_each_image_is_answered_in_its_order(portfolio_bytes: bytes) -> None:
    async def scenario() -> None:
        service = EdgeService(Portfolio.open(portfolio_bytes), Settings(portfolio="x.zip", decide_every_s=10))
        async with asking(service) as client:
            files = [("images", (f"{i}.png", png(grey), "image/png")) for i, grey in enumerate(GREYS)]
            together = await client.post("/predict", files=files)
            assert together.status_code == 200, together.text
            kind = {"content-type": "image/png"}
            alone: list[httpx.Response] = [
                await client.post("/predict", content=png(grey), headers=kind) for grey in GREYS
            ]
            logits = [[p["logits"] for p in answer.json()["predictions"]] for answer in (together, *alone)]
            assert np.allclose(logits[0], np.concatenate(logits[1:]), rtol=1e-4, atol=1e-4)

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", ["image/png", "image/jpeg", "application/octet-stream"])
def test_a_file_is_taken_by_what_it_is(kind: str) -> None:
    body = form((file(kind), png(GREYS[0])))
    assert (decode(body, KIND, SPEC, LIMITS) == decode(png(GREYS[0]), "image/png", SPEC, LIMITS)).all()


@pytest.mark.parametrize(
    ("body", "kind", "status", "says"),
    [
        (form((file(), b"x")), "multipart/form-data", 400, "needs a boundary"),
        (form((file(), b"x")), f"multipart/form-data; boundary={'b' * 300}", 400, "readable multipart"),
        (b"", KIND, 400, "ends before"),
        (form(), KIND, 400, "no part"),
        (b"nonsense", KIND, 400, "readable multipart"),
        (form((file(), png(GREYS[0])), end=b""), KIND, 400, "ends before its last boundary"),
        (form((file(), b"nonsense")), KIND, 400, r"images[0]: the body is not a"),
        (form((file(), png(GREYS[0])), (file(), png(GREYS[0])[:40])), KIND, 400, "images[1]: "),
        (form(*[(file(), png(GREYS[0]))] * 4), KIND, 413, "at most that many"),
        (form((file("text/plain"), b"x")), KIND, 415, "part 0 of the form is of the type 'text/plain'"),
        (form(('Content-Disposition: form-data; name="variant"', b"4x")), KIND, 415, "a field and no file"),
        (form((file() + "\r\nX: " + "x" * 5000, b"x")), KIND, 400, "readable multipart"),
        (form((file() + "\r\nX: x" * 20, b"x")), KIND, 400, "readable multipart"),
    ],
)
def test_what_is_no_form_of_images_is_told_what_is_right(
    body: bytes, kind: str, status: int, says: str
) -> None:
    with pytest.raises(RequestError) as told:
        decode(body, kind, SPEC, LIMITS)
    assert (told.value.status, says in str(told.value)) == (status, True), str(told.value)


def test_pixels_are_bounded_together() -> None:
    body = form(*[(file(), png(GREYS[0]))] * 3)
    assert len(decode(body, KIND, SPEC, Limits(image_pixels=192))) == 3
    with pytest.raises(RequestError, match=r"images\[2\]: .* more than 191 pixels together") as told:
        decode(body, KIND, SPEC, Limits(image_pixels=191))
    assert told.value.status == 413


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_whatever_the_bytes_it_is_read_or_told(data: Any) -> None:
    whole = bytearray(form((file(), png(GREYS[0])), (file("image/jpeg"), b"\r\n--b\r\n")))
    for _ in range(data.draw(st.integers(0, 6))):
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    found: list[bytes] = [b""]
    with contextlib.suppress(RequestError):
        found = images_of(bytes(whole), KIND, IMAGE_TYPES, 3)
    assert 1 <= len(found) <= 3
    assert sum(map(len, found)) < len(whole)


def test_pillow_sees_no_part_that_is_not_stripped(monkeypatch: pytest.MonkeyPatch) -> None:
    """It walks through segments one by one, seconds for a body full of empty ones."""

    def opened(*_: object, **__: object) -> None:
        raise AssertionError("Pillow was given what nobody has looked through")

    monkeypatch.setattr("serve_app.protocol.Image.open", opened)
    hostile = b"\xff\xd8" + b"\xff\xe2\x00\x02" * 100_000 + b"\xff\xd9"
    with pytest.raises(RequestError, match=r"images\[0\]: "):
        decode(form((file("image/jpeg"), hostile)), KIND, SPEC, LIMITS)
