"""The tensor of a request to what the network reads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve_app.protocol import IMAGE_TYPES, Limits, decode
from serve_app.v2_request import BYTES, DTYPES, Tensor, byte_elements, shown, wrong
from shifter.errors import RequestError
from shifter.values import InputSpec


def images(tensor: Tensor, spec: InputSpec, limits: Limits) -> NDArray[np.float32]:
    """The network's input, float32 of shape (images, channels, height, width).

    Raises:
        RequestError: if the tensor holds anything else than images that the network reads.
    """
    if tensor.datatype == BYTES:
        return _decoded(tensor, spec, limits)
    return spec.normalise(_pixels(tensor, spec, limits))


def _pixels(tensor: Tensor, spec: InputSpec, limits: Limits) -> NDArray[Any]:
    shape = (1, *spec.shape) if tensor.shape is None else tensor.shape
    if shape[-3:] != spec.shape or len(shape) > 4:
        raise wrong(
            f"the shape of images is {shown(list(shape))}: this model reads {['n', *spec.shape]}, "
            f"or {list(spec.shape)} for one image"
        )
    count = _checked(shape[0] if len(shape) == 4 else 1, limits)
    dtype = DTYPES[tensor.datatype]
    if isinstance(tensor.data, memoryview):
        expected = count * spec.channels * spec.height * spec.width * dtype.itemsize
        if len(tensor.data) != expected:
            raise wrong(
                f"images has {len(tensor.data)} bytes: "
                f"{tensor.datatype} of the shape {list(shape)} has {expected}"
            )
        array = np.frombuffer(tensor.data, dtype)
        if not array.flags.aligned:  # after JSON of any length; to copy it is quicker than to read it so
            array = array.copy()
    else:
        array = tensor.data
    pixels = array.reshape(count, *spec.shape)
    with np.errstate(invalid="ignore"):  # NaN is no pixel, and told as such
        if dtype.kind == "u":
            right = np.iinfo(dtype).max <= spec.pixel_max or pixels.max() <= spec.pixel_max
        else:
            # As one comparison each, false for NaN.
            right = float(pixels.min()) >= 0 and float(pixels.max()) <= spec.pixel_max
        if not right:
            raise _beyond(pixels, spec)
    return pixels


def _checked(count: int, limits: Limits) -> int:
    if count == 0:
        raise wrong("there is no image in the request: send at least one")
    if count > limits.images:
        raise RequestError(f"{shown(count)} images in one request: at most {limits.images}", status=413)
    return count


def _beyond(pixels: NDArray[Any], spec: InputSpec) -> RequestError:
    values = pixels.astype(np.float64)
    bad = ~((values >= 0) & (values <= spec.pixel_max))
    index = int(np.argmax(bad.reshape(len(bad), -1).any(axis=1)))
    value = values[index][bad[index]][0]
    return wrong(
        f"image {index} of images holds the pixel {value:g}: "
        f"pixels of this model lie between 0 and {spec.pixel_max:g}"
    )


def _decoded(tensor: Tensor, spec: InputSpec, limits: Limits) -> NDArray[np.float32]:
    shape = tensor.shape
    if shape is None or not (len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)):
        raise wrong(
            f"the shape of encoded is {shown(shape)}: it has to be [n] or [n, 1], an element an image"
        )
    assert isinstance(tensor.data, memoryview), "BYTES come as binary data only"
    count = _checked(shape[0], limits)
    # Together no more than one image may have: many small files can unfold to as much.
    each = replace(limits, image_pixels=limits.image_pixels // count)
    decoded = []
    for index, element in enumerate(byte_elements(tensor.data, count)):
        try:
            # Either type: it is the bytes that tell which.
            decoded.append(decode(bytes(element), IMAGE_TYPES[0], spec, each))
        except RequestError as error:
            raise RequestError(f"element {index} of encoded: {error}", status=error.status) from error
    return np.concatenate(decoded)
