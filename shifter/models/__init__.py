"""Networks, their first weights, their export to ONNX, and (``prune.py``) their reduction in torch."""

from shifter.models.export import export_architecture
from shifter.models.files import load_weights, read_weights
from shifter.models.registry import build, create
from shifter.models.weights import initialise, prunable_names

__all__ = [
    "build",
    "create",
    "export_architecture",
    "initialise",
    "load_weights",
    "prunable_names",
    "read_weights",
]
