"""What a replay sends, encoded before its clock starts."""

from __future__ import annotations

from collections.abc import Callable

from jobs.protocols import Protocol, Request, groups, image_request, json_request, v2_pixels, v2_request
from jobs.replay_images import Images
from jobs.replay_probe import Service, check_shape
from shifter.errors import RecipeError, ServiceError

MOST_BYTES = 256 * 2**20
"""Of different bodies, all of which are held in memory."""


def requests(
    images: Images,
    service: Service,
    protocol: Protocol,
    *,
    per_request: int,
    count: int,
    most_bytes: int = MOST_BYTES,
) -> tuple[list[tuple[int, ...]], list[Request]]:
    """(which images each different request carries, those requests): as many as ``count`` requests use.

    Raises:
        DataError: if the images do not fit the model.
        RecipeError: if a single request is larger than the bound.
        ServiceError: if v2 needs the model's name, and nobody tells it.
    """
    encode = _encoder(images, service, protocol, per_request)
    asked: list[tuple[int, ...]] = []
    made: list[Request] = []
    left = most_bytes
    for indices in groups(count, per_request, len(images)):
        request = encode(indices)
        left -= len(request.body)
        if left < 0:
            break
        asked.append(indices)
        made.append(request)
    if not made:
        raise RecipeError(
            f"a request of {per_request} images is larger than {most_bytes} bytes: give fewer with "
            "--images-per-request"
        )
    return asked, made


def _encoder(
    images: Images, service: Service, protocol: Protocol, per_request: int
) -> Callable[[tuple[int, ...]], Request]:
    encoded = images.encoded
    if protocol is Protocol.PREDICT and per_request == 1 and encoded is not None:
        return lambda indices: image_request(encoded[indices[0]])
    pixels = images.decoded(service.shape[0] if service.shape else 3)
    check_shape(pixels, service)
    if protocol is not Protocol.V2:
        return lambda indices: json_request(pixels[list(indices)])
    model = service.model
    if model is None:
        raise ServiceError("the service does not tell its model's name: give it with --model")
    pixels = v2_pixels(pixels)
    return lambda indices: v2_request(pixels[list(indices)], model)
