"""Networks, their first weights, and their export to ONNX."""

from shifter.models.export import export_architecture
from shifter.models.registry import build
from shifter.models.weights import initialise, prunable_names

__all__ = ["build", "export_architecture", "initialise", "prunable_names"]
