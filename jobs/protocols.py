"""The requests that a load is made of, and the answers to them, in each protocol. Pure functions."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

Read = Callable[[bytes, int, int], NDArray[np.float32]]
"""(payload, length of the JSON before binary tensors or 0, images asked about) → logits (images, classes).

Raises ValueError, KeyError, TypeError or IndexError for what is no such answer.
"""

INPUT, LOGITS = "images", "logits"
_LONGEST = 120


class Protocol(StrEnum):
    """How images are sent: as encoded files where they are such, as JSON, or as v2's binary tensors."""

    PREDICT = "predict"
    JSON = "json"
    V2 = "v2"


@dataclass(frozen=True)
class Request:
    """A request, encoded. Args: path: below the service's address."""

    path: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


def encode(images: NDArray[Any]) -> bytes:
    """The JSON body that asks about ``images``, pixels of shape (n, c, h, w)."""
    # Whole numbers are written as such: a third of the bytes, and exact.
    whole = images.astype(np.int64)
    pixels = whole if np.array_equal(whole, images) else images
    return json.dumps({"images": pixels.tolist()}, separators=(",", ":")).encode()


def json_request(images: NDArray[Any]) -> Request:
    """``POST /predict`` with pixels."""
    return Request("/predict", encode(images), {"Content-Type": "application/json"})


def image_request(encoded: bytes) -> Request:
    """``POST /predict`` with one PNG or JPEG file as it is."""
    kind = "image/png" if is_png(encoded) else "image/jpeg"
    return Request("/predict", encoded, {"Content-Type": kind})


def v2_pixels(images: NDArray[Any]) -> NDArray[Any]:
    """Pixels as v2 carries them: UINT8 where all are such, a quarter of the bytes and exact; else FP32."""
    small = np.clip(images, 0, 255).astype(np.uint8)
    return small if np.array_equal(small, images) else images.astype("<f4")


def v2_request(pixels: NDArray[Any], model: str) -> Request:
    """Open Inference Protocol v2 with binary tensors, both ways. Args: pixels: of `v2_pixels`."""
    raw = np.ascontiguousarray(pixels).tobytes()
    tensor = {
        "name": INPUT,
        "shape": list(pixels.shape),
        "datatype": "UINT8" if pixels.dtype == np.uint8 else "FP32",
        "parameters": {"binary_data_size": len(raw)},
    }
    wanted = [{"name": LOGITS, "parameters": {"binary_data": True}}]
    header = json.dumps({"inputs": [tensor], "outputs": wanted}, separators=(",", ":")).encode()
    headers = {
        "Content-Type": "application/octet-stream",
        "Inference-Header-Content-Length": str(len(header)),
    }
    return Request(f"/v2/models/{quote(model, safe='')}/infer", header + raw, headers)


def is_png(encoded: bytes) -> bool:
    return encoded.startswith(b"\x89PNG\r\n\x1a\n")


def is_jpeg(encoded: bytes) -> bool:
    return encoded.startswith(b"\xff\xd8\xff")


def to_png(image: Any) -> bytes:
    """A Pillow image as PNG, which loses nothing of it."""
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def read_predict(payload: bytes, json_length: int, images: int) -> NDArray[np.float32]:
    """The logits of an answer of ``POST /predict``."""
    predictions = json.loads(payload)["predictions"]
    return _checked(np.array([p["logits"] for p in predictions], np.float32), images)


def read_v2(payload: bytes, json_length: int, images: int) -> NDArray[np.float32]:
    """The logits of a v2 answer, which may come as a binary tensor or as JSON."""
    document = json.loads(payload[: json_length or len(payload)])
    offset = json_length
    for output in document["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size")
        if output["name"] == LOGITS:
            if output["datatype"] != "FP32":
                raise ValueError(f"the logits are {output['datatype']}")
            shape = output["shape"]
            if size is None:
                return _checked(np.array(output["data"], np.float32).reshape(shape), images)
            if size != 4 * math.prod(shape) or not json_length:
                raise ValueError(f"{size} bytes are no FP32 tensor of shape {shape}")
            raw = np.frombuffer(payload, "<f4", count=size // 4, offset=offset)
            return _checked(raw.reshape(shape).astype(np.float32), images)
        offset += size or 0
    raise ValueError("there is no output logits")


def _checked(logits: NDArray[np.float32], images: int) -> NDArray[np.float32]:
    if logits.ndim != 2 or logits.shape[0] != images or not logits.shape[1]:
        raise ValueError(f"logits of shape {logits.shape} for {images} images")
    if not np.isfinite(logits).all():
        raise ValueError("logits that are not finite")
    return logits


def reader(protocol: Protocol) -> Read:
    """What parses the answers of a protocol."""
    return read_v2 if protocol is Protocol.V2 else read_predict


def refusal(status: int, payload: bytes, *, keep_numbers: bool = False) -> str:
    """What an answer other than 200 says; without its numbers, so that those alike are counted as one."""
    try:
        said = json.loads(payload)["error"]
    except (ValueError, KeyError, TypeError):
        said = payload[: 4 * _LONGEST].decode("utf-8", "replace").strip()
    text = " ".join(str(said).split())
    if not keep_numbers:
        text = re.sub(r"\d+(\.\d+)?", "N", text)
    text = "".join(sign if sign.isprintable() else "?" for sign in text)
    longest = 4 * _LONGEST if keep_numbers else _LONGEST
    short = text if len(text) <= longest else f"{text[:longest]}…"
    return f"HTTP {status}: {short}" if short else f"HTTP {status}"


def groups(requests: int, per_request: int, images: int) -> list[tuple[int, ...]]:
    """Which images each different request carries: one after another, from the start again at the end.

    At most as many as it takes for every image to have had each turn.
    """
    different = min(requests, images // math.gcd(images, per_request))
    return [
        tuple((first * per_request + offset) % images for offset in range(per_request))
        for first in range(different)
    ]
