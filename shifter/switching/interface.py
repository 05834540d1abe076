"""What clients send and read, which a newer portfolio may not change."""

from __future__ import annotations

from shifter.errors import PackageError
from shifter.values import InputSpec


def require_same_interface(old: InputSpec, new: InputSpec) -> None:
    """What clients send and read must stay: pixels of one shape and range, classes by number and name."""
    if (old.shape, old.pixel_max, old.classes) != (new.shape, new.pixel_max, new.classes):
        raise PackageError(
            f"it reads {_described(new)}; clients of the one that serves send {_described(old)}: "
            "serve it as another application"
        )


def _described(spec: InputSpec) -> str:
    classes = f"{len(spec.classes)} classes ({spec.classes[0]}, …, {spec.classes[-1]})"
    return f"pixels of shape {spec.shape} up to {spec.pixel_max:g} for {classes}"
