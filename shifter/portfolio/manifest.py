"""``manifest.json``: what a package says of itself, checked when read.

Example (shortened)::

    {"format": "shifter-portfolio", "version": 2, "model": "vgg", "provenance": {"recipe": "…"},
     "input": {"channels": 1, …},
     "variants": [
       {"name": "64x", "profile": {…},
        "graph": {"entry": "64x/graph.onnx", "sha256": "…", "deflated": 812, "inflated": 3120},
        "tensors": [{"name": "stages.0.0.weight", "dtype": "float32", "shape": [8, 1, 3, 3],
                     "coding": "gaps", "values": 11, "entry": "64x/tensors/0000.bin",
                     "sha256": "…", "deflated": 61, "inflated": 55}, …]}, …]}

A release reads the versions before its own and refuses a newer one, whose codings it cannot know.
Version 2 brought the codings of today, and ``values``.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections import Counter
from typing import Annotated, Any, Final, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError, model_validator

from shifter.errors import PackageError
from shifter.portfolio.coding import VERSION_1, WRITTEN, Coding, DType, check_length
from shifter.values import InputSpec, Profile

FORMAT: Final = "shifter-portfolio"
VERSION: Final = 2

# What no network comes near, and no hostile number gets past: what is made of them stays in bounds.
_MOST_AXES, _MOST_ELEMENTS, _MOST_PIXELS = 32, 2**40, 2**28
_MOST_FIELDS, _MOST_ITEMS, _MOST_OBJECTS = 2**8, 2**15, 2**13

_Size = Annotated[int, Field(ge=0, lt=2**63)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class EntryRecord(_Record):
    """One entry: its name in the ZIP, the sha256 of its content, its bytes deflated and inflated."""

    entry: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    deflated: _Size
    inflated: _Size


class TensorRecord(EntryRecord):
    """One tensor; ``inflated`` is the length of its coding (`shifter.portfolio.coding`)."""

    name: Annotated[str, Field(min_length=1)]
    dtype: DType
    shape: Annotated[tuple[_Size, ...], Field(max_length=_MOST_AXES), FailFast()]
    coding: Coding
    values: _Size | None = None
    """Elements that are stored; None in version 1."""

    @model_validator(mode="after")
    def _multiplies_out(self) -> Self:
        # Sides of zero do not hide the others: numpy multiplies those too.
        if math.prod(max(1, side) for side in self.shape) > _MOST_ELEMENTS:
            raise PackageError(f"a tensor of shape {self.shape} has more than {_MOST_ELEMENTS} elements")
        check_length(self.inflated, self.coding, self.dtype, self.shape, self.values)
        return self

    @property
    def tensor_bytes(self) -> int:
        """Bytes of the tensor itself."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


class VariantRecord(_Record):
    """One variant: its profile and its entries."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    profile: Profile
    graph: EntryRecord
    tensors: Annotated[tuple[TensorRecord, ...], FailFast()]

    @property
    def entries(self) -> tuple[EntryRecord, ...]:
        return (self.graph, *self.tensors)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all its tensors: the size by which variants are sorted."""
        return sum(tensor.tensor_bytes for tensor in self.tensors)

    @property
    def deflated_bytes(self) -> int:
        """Bytes of its deflated entries."""
        return sum(entry.deflated for entry in self.entries)

    @property
    def inflated_bytes(self) -> int:
        """Bytes of its graph and tensors in memory."""
        return self.graph.inflated + self.tensor_bytes


class Manifest(_Record):
    """The whole of ``manifest.json``."""

    format: Literal["shifter-portfolio"] = FORMAT
    version: Literal[1, 2] = VERSION
    model: Annotated[str, Field(min_length=1)]
    provenance: dict[str, str]
    input: InputSpec
    variants: Annotated[tuple[VariantRecord, ...], Field(min_length=1), FailFast()]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [variant.name for variant in self.variants]
        if len(set(names)) < len(names):
            raise PackageError(f"variants must have different names: {names}")
        order = [(variant.tensor_bytes, variant.name) for variant in self.variants]
        if order != sorted(order):
            raise PackageError(f"variants must be sorted by size, smallest first: {names}")
        known = WRITTEN if self.version == VERSION else VERSION_1
        for variant in self.variants:
            said = variant.profile.tensor_bytes
            if self.version == VERSION and said != variant.tensor_bytes:
                raise PackageError(
                    f"the profile of {variant.name!r} says {said} bytes of tensors; "
                    f"it has {variant.tensor_bytes}"
                )
            tensors = [tensor.name for tensor in variant.tensors]
            if len(set(tensors)) < len(tensors):
                raise PackageError(f"variant {variant.name!r} has two tensors of one name")
            if others := {tensor.coding for tensor in variant.tensors} - set(known):
                raise PackageError(f"format version {self.version} has no coding {min(others)!r}")
            if not 0 < variant.profile.batch_images * math.prod(self.input.shape) <= _MOST_PIXELS:
                raise PackageError(
                    f"a batch of {variant.profile.batch_images} images of {self.input.shape} is not one "
                    f"of 1 to {_MOST_PIXELS} numbers"
                )
        return self

    def to_json(self) -> bytes:
        """Deterministic and readable: keys in the order of the fields, provenance sorted."""
        data = self.model_dump(mode="json", warnings="error")
        data["provenance"] = dict(sorted(self.provenance.items()))
        return (json.dumps(data, indent=1, allow_nan=False) + "\n").encode()

    @classmethod
    def from_json(cls, text: bytes | bytearray) -> Manifest:
        """Reads and checks a manifest.

        Raises:
            PackageError: if it is no JSON, of another format or version, or wrong in any field.
        """
        try:
            header = json.loads(text, object_pairs_hook=_unambiguous, parse_constant=_finite)
        except (ValueError, RecursionError) as problem:
            raise PackageError(f"manifest.json is no JSON: {problem}") from problem
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise PackageError(f"manifest.json does not describe a portfolio: its 'format' is not {FORMAT!r}")
        version = header.get("version")
        has = f"the package has format version {reprlib.repr(version)}"
        if type(version) is not int or version < 1:
            raise PackageError(f"{has}; this release reads 1 to {VERSION}")
        if version > VERSION:
            raise PackageError(
                f"{has}, and this release reads up to {VERSION}: "
                "update shifter here, or generate the package with the release that is here"
            )
        try:
            return cls.model_validate_json(bytes(text))
        except ValidationError as problem:
            first = problem.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"]))[:200].encode("unicode_escape").decode() or "manifest"
            raise PackageError(f"manifest.json, {place}: {first['msg']}") from problem


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Two readers may each take another one of two keys of one name.

    Nor are there so many items in one place that complaints of each, which take a few hundred bytes,
    fill memory; an object can lack several fields.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        repeated = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise PackageError(f"it has {reprlib.repr(repeated)} twice")
    for items in found.values():
        if isinstance(items, list) and len(items) > _MOST_OBJECTS:
            objects = sum(isinstance(item, dict) for item in items)
            if len(items) > _MOST_ITEMS or objects > _MOST_OBJECTS:
                raise PackageError(f"{len(items)} items in one place are more than a manifest may have")
    if len(found) > _MOST_FIELDS:
        raise PackageError(f"{len(found)} fields in one place are more than a manifest may have")
    return found


def _finite(constant: str) -> Any:
    raise PackageError(f"{constant} is no number")
