"""Logits to the answer's bytes, as JSON or with binary tensors behind it."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final

import numpy as np
import orjson
from numpy.typing import NDArray

from serve_app.service import Inferred
from serve_app.v2_request import BYTES, InferRequest, Wanted
from shifter.values import InputSpec

HEADER_LENGTH: Final = "Inference-Header-Content-Length"
BINARY_TYPE: Final = "application/octet-stream"


class Answer:
    """The answer to one request, in two steps: what was computed, then who computed it.

    The first, `outputs`, is for `EdgeService.infer` as its ``write``; the second, `completed`, for
    what comes of that.
    """

    def __init__(self, model: str, request: InferRequest) -> None:
        self._model, self._request = model, request
        self._listed_bytes = 0
        self.is_binary = any(one.binary for one in request.outputs)
        self.json_bytes = 0

    def outputs(self, variant: str, logits: NDArray[np.float32], spec: InputSpec) -> bytes:
        listed, binary = outputs(self._request.outputs, logits, spec)
        self._listed_bytes = len(listed)
        return b"".join((listed, *binary))

    def completed(self, inferred: Inferred) -> Inferred:
        """The whole body; ``json_bytes`` is then how much of it is JSON."""
        head: dict[str, Any] = {
            "model_name": self._model,
            "model_version": inferred.portfolio,
            "parameters": {"variant": inferred.variant, "portfolio": inferred.portfolio},
        }
        if self._request.id is not None:
            head["id"] = self._request.id
        listed, binary = inferred.content[: self._listed_bytes], inferred.content[self._listed_bytes :]
        text = b"".join((orjson.dumps(head)[:-1], b',"outputs":', listed, b"}"))
        self.json_bytes = len(text)
        return replace(inferred, content=text + binary)


def outputs(
    wanted: Iterable[Wanted], logits: NDArray[np.float32], spec: InputSpec
) -> tuple[bytes, list[bytes]]:
    """The outputs as a JSON list, and what follows the JSON, in the same order.

    Args:
        logits: float32 (images, classes).
    """
    described: list[dict[str, Any]] = []
    binary: list[bytes] = []
    for one in wanted:
        datatype, shape, values = _values(one, logits, spec)
        output: dict[str, Any] = {"name": one.name, "datatype": datatype, "shape": shape}
        if one.binary:
            data = values.tobytes() if isinstance(values, np.ndarray) else _serialised(values)
            output["parameters"] = {"binary_data_size": len(data)}
            binary.append(data)
        else:
            output["data"] = values.ravel() if isinstance(values, np.ndarray) else values
        described.append(output)
    return orjson.dumps(described, option=orjson.OPT_SERIALIZE_NUMPY), binary


def _values(
    one: Wanted, logits: NDArray[np.float32], spec: InputSpec
) -> tuple[str, tuple[int, ...], NDArray[Any] | list[str]]:
    if one.name == "classes":
        return "INT64", logits.shape[:1], logits.argmax(axis=1)
    if one.name == "labels":
        return BYTES, logits.shape[:1], [spec.classes[index] for index in logits.argmax(axis=1).tolist()]
    values = logits if one.name == "logits" else _probabilities(logits)
    if one.classification:
        texts = _highest(values, one.classification, spec.classes)
        return BYTES, (len(values), len(texts) // len(values)), texts
    return "FP32", values.shape, np.ascontiguousarray(values)


def _probabilities(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float32] = shifted / shifted.sum(axis=1, keepdims=True)
    return probabilities


def _highest(values: NDArray[np.float32], count: int, classes: tuple[str, ...]) -> list[str]:
    """``value:index:label`` of each image's highest values, falling; all of them, if there are fewer."""
    indices = np.argsort(-values, axis=1, kind="stable")[:, :count]
    return [
        f"{value:f}:{index}:{classes[index]}"
        for value, index in zip(
            np.take_along_axis(values, indices, axis=1).ravel().tolist(),
            indices.ravel().tolist(),
            strict=True,
        )
    ]


def _serialised(texts: list[str]) -> bytes:
    """A BYTES tensor as binary data: before each element its length, in four bytes."""
    encoded = [text.encode() for text in texts]
    return b"".join(part for text in encoded for part in (struct.pack("<I", len(text)), text))
