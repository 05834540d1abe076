"""The deployable package of variants (module 7). numpy only: no torch, no Ray, no ONNX library."""

from shifter.portfolio.package import Portfolio, pack

__all__ = ["Portfolio", "pack"]
