"""What the protocol's clients may ask about the server and its model, as plain data."""

from __future__ import annotations

from typing import Any

from serve_app.v2_request import BYTES
from shifter import __version__
from shifter.values import InputSpec

SERVER = {
    "name": "shifter",
    "version": __version__,
    "extensions": ["binary_tensor_data", "classification", "model_configuration", "statistics"],
}
_PLATFORMS = {"onnxruntime": "onnxruntime_onnx", "torch": "pytorch_onnx"}


def metadata(model: str, version: str, engine: str, spec: InputSpec) -> dict[str, Any]:
    """The model's inputs and outputs; -1 is the number of images."""
    return {
        "name": model,
        "versions": [version],
        "platform": _PLATFORMS[engine],
        "inputs": [{"name": "images", "datatype": "FP32", "shape": [-1, *spec.shape]}],
        "outputs": [
            {"name": name, "datatype": datatype, "shape": [-1, *sizes]}
            for name, datatype, sizes in _outputs(spec)
        ],
    }


def configuration(model: str, engine: str, spec: InputSpec, images: int) -> dict[str, Any]:
    """What of Triton's model configuration has a meaning here.

    Args:
        images: in one request, at most.
    """
    return {
        "name": model,
        "platform": _PLATFORMS[engine],
        "backend": engine,
        "max_batch_size": images,
        "input": [{"name": "images", "data_type": "TYPE_FP32", "dims": list(spec.shape)}],
        "output": [
            # Triton calls it a string here, and nowhere else.
            {
                "name": name,
                "data_type": "TYPE_STRING" if datatype == BYTES else f"TYPE_{datatype}",
                "dims": sizes or [1],
            }
            for name, datatype, sizes in _outputs(spec)
        ],
    }


def _outputs(spec: InputSpec) -> list[tuple[str, str, list[int]]]:
    """Name, datatype, and shape without the images."""
    classes = [len(spec.classes)]
    return [
        ("logits", "FP32", classes),
        ("classes", "INT64", []),
        ("labels", BYTES, []),
        ("probabilities", "FP32", classes),
    ]
