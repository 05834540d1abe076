"""What a service says of itself, and whether the images of a replay are for it, asked before the load."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.load_client import JSON_LENGTH_HEADER
from jobs.protocols import Read, Request, refusal
from jobs.replay_images import Images
from shifter.errors import DataError, ServiceError


@dataclass(frozen=True)
class Service:
    """What is known of it.

    Args:
        status: what ``GET /status`` says; None if it has none.
        model: its name; None if neither the caller nor the status tells.
        shape: (channels, height, width) of an image, from v2's metadata; None if they do not tell.
    """

    status: Mapping[str, Any] | None
    model: str | None
    shape: tuple[int, int, int] | None

    @property
    def objective_ms(self) -> float | None:
        """The latency objective that it says it serves for."""
        policy = (self.status or {}).get("policy")
        objective = policy.get("objective_ms") if isinstance(policy, dict) else None
        return float(objective) if isinstance(objective, int | float) and objective > 0 else None


def ask(url: str, model: str | None, timeout_s: float) -> Service:
    """What the service at ``url`` says of itself.

    Raises:
        ServiceError: if nothing answers there.
    """
    status = get_status(url, timeout_s)
    told = (status or {}).get("model")
    model = model or (told if isinstance(told, str) else None)
    metadata = _get_json(f"{url}/v2/models/{model}", timeout_s) if model else None
    return Service(status, model, _shape(metadata))


def get_status(url: str, timeout_s: float) -> Mapping[str, Any] | None:
    """What ``GET /status`` says; None if it is no JSON object, as that of others.

    Raises:
        ServiceError: if nothing answers there.
    """
    return _get_json(f"{url}/status", timeout_s)


def _get_json(url: str, timeout_s: float) -> Mapping[str, Any] | None:
    status, _, payload = _send(urllib.request.Request(url), timeout_s)
    try:
        told = json.loads(payload)
    except ValueError:
        return None
    return told if status == 200 and isinstance(told, dict) else None


def _shape(metadata: Mapping[str, Any] | None) -> tuple[int, int, int] | None:
    try:
        shape = (metadata or {})["inputs"][0]["shape"]
        _, channels, height, width = (int(size) for size in shape)
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    return channels, height, width


def _send(request: urllib.request.Request, timeout_s: float) -> tuple[int, Mapping[str, str], bytes]:
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()
    except (OSError, HTTPException) as error:
        cause = getattr(error, "reason", None) or error
        reason = getattr(cause, "strerror", None) or cause
        raise ServiceError(
            f"no service answers at {request.full_url} ({reason}): start it, or give its address with --url"
        ) from None


def check_shape(images: NDArray[Any], service: Service) -> None:
    """Raises DataError if they are not of the shape that the model reads, as far as that is known."""
    if service.shape is None:
        return
    wrong = any(size > 0 and size != got for size, got in zip(service.shape, images.shape[1:], strict=True))
    if wrong:
        raise DataError(
            f"the images are of shape {images.shape[1:]} (channels, height, width), and the model "
            f"{service.model} reads {service.shape}: give images of that shape, or files, which --protocol "
            "predict sends as they are, one a request"
        )


def try_one(
    url: str, request: Request, headers: Mapping[str, str], images: int, read: Read, timeout_s: float
) -> NDArray[np.float32] | None:
    """The logits of one request; None if the service is too busy, or ill, to answer it now.

    Raises:
        ServiceError: if it says that the request is wrong, or answers what is no answer.
    """
    asked = urllib.request.Request(
        url + request.path, request.body, {**request.headers, **headers}, method="POST"
    )
    status, answered, payload = _send(asked, timeout_s)
    if status >= 500 or status == 429:
        return None
    if status != 200:
        said = refusal(status, payload, keep_numbers=True)
        raise ServiceError(f"{url}{request.path} refuses the first request: {said}")
    lengths = [value for name, value in answered.items() if name.lower() == JSON_LENGTH_HEADER.lower()]
    try:
        return read(payload, int(lengths[0]) if lengths else 0, images)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ServiceError(
            f"{url}{request.path} answers what is no answer to {images} images ({error!r}): is it such a "
            "service, and does it speak the --protocol?"
        ) from None


def check_labels(images: Images, classes: int) -> None:
    """Raises DataError if the labels cannot be those of a model with so many classes."""
    if images.labels is None:
        return
    named = len(images.classes) if images.classes is not None else None
    if named is not None and named != classes:
        raise DataError(
            f"the images are of {named} classes, and the model has {classes}: name all of them with "
            "--labels, one a line, in the order of the model's"
        )
    most = int(images.labels.max())
    if most >= classes:
        raise DataError(
            f"there is an image with the label {most}, and the model has {classes} classes, from 0 to "
            f"{classes - 1}: are these the labels of its images?"
        )
