"""The service's own protocol: request bodies to pixels, logits to an answer.

No Ray, no HTTP framework: bytes and arrays, so that the same functions serve any transport.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from serve_app import pictures
from serve_app.multipart import MULTIPART_TYPE, images_of
from shifter.errors import RequestError
from shifter.values import InputSpec

JSON_TYPE = "application/json"
IMAGE_TYPES = ("image/png", "image/jpeg")
BODY_TYPES = (JSON_TYPE, *IMAGE_TYPES, MULTIPART_TYPE)

# Bytes of JSON that are decoded in less time than another thread takes to be woken: about 50 µs.
_LIGHT_BYTES = 8192

# Passes over the largest image that a progressive JPEG may take; a smaller one may take more.
_MOST_PASSES = 16
# From EXIF's orientations to what sets the image upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# What Pillow's PNG and JPEG readers raise on broken or hostile bytes.
_UNREADABLE = (OSError, SyntaxError, ValueError, IndexError, EOFError, struct.error, zlib.error, MemoryError)


@dataclass(frozen=True)
class Limits:
    """What one request may ask for.

    Args:
        body_bytes: of the body as sent.
        images: in one request.
        image_pixels: width x height of an encoded image before it is resized; of all in one request
            together.
        body_s, silence_s: until the body is there, and until more of it is.
    """

    body_bytes: int = 8 * 2**20
    images: int = 256
    image_pixels: int = 16 * 2**20
    body_s: float = 30.0
    silence_s: float = 10.0


def decode(body: bytes, content_type: str, spec: InputSpec, limits: Limits) -> NDArray[np.float32]:
    """A request's body to the network's input, float32 of shape (images, channels, height, width).

    Raises:
        RequestError: with the status and the message for the client.
    """
    if len(body) > limits.body_bytes:
        raise too_large(limits)
    kind = content_type.partition(";")[0].strip().lower()
    if kind == JSON_TYPE:
        pixels = _from_json(body, spec, limits)
    elif kind in IMAGE_TYPES:
        pixels = _from_image(body, spec, limits)
    elif kind == MULTIPART_TYPE:
        pixels = _from_form(body, content_type, spec, limits)
    else:
        raise RequestError(
            f"the Content-Type is {content_type!r}: send one of {', '.join(BODY_TYPES)}", status=415
        )
    return spec.normalise(pixels)


def is_light(body: bytes, content_type: str) -> bool:
    """Whether `decode` is done with it at once; an image's bytes do not tell how many pixels they become."""
    return len(body) <= _LIGHT_BYTES and content_type.startswith(JSON_TYPE)


def too_large(limits: Limits) -> RequestError:
    """The refusal of a body above the limit, which the transport may raise before it has read all."""
    return RequestError(f"the body is larger than {limits.body_bytes} bytes, the limit", status=413)


def _from_image(body: bytes, spec: InputSpec, limits: Limits) -> NDArray[np.float32]:
    """One encoded image, in whatever mode, to pixels of shape (1, c, h, w) in 0…pixel_max."""
    return _from_picture(pictures.strip(body), spec, limits)


def _from_picture(picture: pictures.Picture, spec: InputSpec, limits: Limits) -> NDArray[np.float32]:
    if spec.channels not in (1, 3):
        raise RequestError(
            f"this model reads {spec.channels} channels, which PNG and JPEG do not carry: "
            f"send {JSON_TYPE} with pixel arrays",
            status=415,
        )
    try:
        image: Image.Image = Image.open(io.BytesIO(picture.content), formats=(picture.kind,))
        # The header is read, no pixel is decoded yet: a bomb is refused before it unfolds.
        pixel_count = image.width * image.height
        if pixel_count > limits.image_pixels:
            raise RequestError(
                f"the image has {image.width}x{image.height} pixels: at most {limits.image_pixels}",
                status=413,
            )
        if pixel_count * picture.scans > _MOST_PASSES * limits.image_pixels:
            raise RequestError(
                f"the image has {image.width}x{image.height} pixels in {picture.scans} scans: send it "
                "smaller, with fewer scans, or as a baseline JPEG",
                status=413,
            )
        image.load()
        if picture.orientation in _UPRIGHT:
            image = image.transpose(_UPRIGHT[picture.orientation])
        if image.mode.startswith("I"):  # 16-bit grey, which convert("L") would clip at 255
            image = Image.fromarray(np.asarray(image, np.float32) / np.float32(257))
        else:
            image = image.convert("L" if spec.channels == 1 else "RGB")
        if image.size != (spec.width, spec.height):
            image = image.resize((spec.width, spec.height), Image.Resampling.BILINEAR)
        array = np.asarray(image, np.float32)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise RequestError(
            f"the image is too large: at most {limits.image_pixels} pixels ({error})", status=413
        ) from error
    except RequestError:
        raise
    except UnidentifiedImageError as error:
        raise RequestError(
            "the body is not a readable PNG or JPEG image: its header is broken", status=400
        ) from error
    except _UNREADABLE as error:
        raise RequestError(f"the body is not a readable PNG or JPEG image: {error}", status=400) from error
    if array.ndim == 2:
        array = np.repeat(array[:, :, None], spec.channels, axis=2)
    pixels: NDArray[np.float32] = array.transpose(2, 0, 1)[None] * np.float32(spec.pixel_max / 255)
    return pixels


def _from_form(body: bytes, content_type: str, spec: InputSpec, limits: Limits) -> NDArray[np.float32]:
    """Several encoded images to pixels of shape (n, c, h, w) in 0…pixel_max."""
    pixels: list[NDArray[np.float32]] = []
    left = limits.image_pixels
    for index, image in enumerate(images_of(body, content_type, IMAGE_TYPES, limits.images)):
        try:
            picture = pictures.strip(image)
            left -= _pixels_in(picture)
            if left < 0:
                raise RequestError(
                    f"the images up to this one have more than {limits.image_pixels} pixels together: "
                    "send fewer, or smaller ones",
                    status=413,
                )
            pixels.append(_from_picture(picture, spec, limits))
        except RequestError as error:
            raise RequestError(f"images[{index}]: {error}", error.status) from error
    return np.concatenate(pixels)


def _pixels_in(picture: pictures.Picture) -> int:
    """As its header says; none if it cannot be read, which decoding will tell."""
    try:
        with Image.open(io.BytesIO(picture.content), formats=(picture.kind,)) as image:
            return image.width * image.height
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, *_UNREADABLE):
        return 0


def _from_json(body: bytes, spec: InputSpec, limits: Limits) -> NDArray[Any]:
    """``{"images": [...]}`` to pixels of shape (n, c, h, w) in 0…pixel_max."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"the body is not JSON: {error}", status=400) from error
    if not isinstance(document, dict) or set(document) != {"images"}:
        found = sorted(document) if isinstance(document, dict) else type(document).__name__
        raise RequestError(f'the body must be {{"images": [...]}} and nothing else; it holds {found}')
    images = document["images"]
    if not isinstance(images, list) or not images:
        raise RequestError('"images" must be a list of at least one image')
    if len(images) > limits.images:
        raise RequestError(f"{len(images)} images in one request: at most {limits.images}", status=413)
    # More than the key: numpy would pad every text to the longest one's length. And beside numbers it takes
    # truth values for such.
    if body.count(b'"') > 2 or b"true" in body or b"false" in body:
        for index, image in enumerate(images):
            if _holds_text(image):
                raise RequestError(f"images[{index}] holds something that is not a number: {_wanted(spec)}")
        if body.count(b'"images"') > 1:  # the only key, and no text besides
            raise RequestError('the body names "images" more than once: once is right')
    try:
        whole = np.array(images)
    except ValueError:  # ragged: images differ in shape, or one is broken
        whole = np.empty(0, object)
    if whole.dtype.kind in "iuf" and whole.shape[1:] in _shapes(spec):
        pixels = whole.reshape(-1, *spec.shape)
    else:
        pixels = np.stack([_one_image(image, index, spec) for index, image in enumerate(images)])
    bad = (pixels < 0) | (pixels > spec.pixel_max)  # JSON knows no NaN
    if bad.any():
        index = int(np.argmax(bad.reshape(len(pixels), -1).any(axis=1)))
        value = pixels[index][bad[index]][0]
        raise RequestError(
            f"images[{index}] holds the pixel {value}: "
            f"pixels of this model lie between 0 and {spec.pixel_max:g}"
        )
    return pixels


def _holds_text(image: object) -> bool:
    """Whether a text, truth value or object is anywhere in it; without recursion, however deep it nests."""
    left = [image]
    while left:
        one = left.pop()
        if isinstance(one, str | dict | bool):
            return True
        if isinstance(one, list):
            left.extend(one)
    return False


def _one_image(image: object, index: int, spec: InputSpec) -> NDArray[Any]:
    try:
        array = np.array(image)
    except ValueError:
        raise RequestError(f"images[{index}] is ragged: {_wanted(spec)}") from None
    if array.dtype.kind not in "iuf":
        raise RequestError(f"images[{index}] holds something that is not a number: {_wanted(spec)}")
    if array.shape not in _shapes(spec):
        raise RequestError(f"images[{index}] has the shape {array.shape}: {_wanted(spec)}")
    return array.reshape(spec.shape)


def _shapes(spec: InputSpec) -> list[tuple[int, ...]]:
    """The array shapes taken for one image."""
    return [spec.shape, spec.shape[1:]] if spec.channels == 1 else [spec.shape]


def _wanted(spec: InputSpec) -> str:
    return "an image is a nested list of numbers of shape " + " or ".join(map(str, _shapes(spec)))


def answer(variant: str, logits: NDArray[np.float32], spec: InputSpec) -> bytes:
    """What ``POST /predict`` answers, as JSON: the variant, and per image the class and the logits.

    Args:
        logits: float32 of shape (images, classes). Sent in full precision, so that a client can
            check an answer against the variant that it names.
    """
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = (shifted / shifted.sum(axis=1, keepdims=True)).max(axis=1)
    indices = logits.argmax(axis=1)
    document = {
        "variant": variant,
        "predictions": [
            {"class": spec.classes[index], "index": index, "probability": probability, "logits": row}
            for index, probability, row in zip(indices.tolist(), probabilities.tolist(), logits, strict=True)
        ],
    }
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
