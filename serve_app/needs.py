"""What a client asks of the variant that answers it: in headers, or in the parameters of a v2 request."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, TypeVar

from starlette.datastructures import Headers

from shifter.errors import NeedsError
from shifter.switching.needs import Needs

WANT_VARIANT_HEADER: Final = "X-Shifter-Want-Variant"
MIN_ACCURACY_HEADER: Final = "X-Shifter-Min-Accuracy"
VARIANT_PARAMETER: Final = "variant"
MIN_ACCURACY_PARAMETER: Final = "min_accuracy"

_T = TypeVar("_T")
_NONE: Final[Mapping[str, object]] = MappingProxyType({})
_NOTHING: Final = Needs()
_NUMBER: Final = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(e-?[0-9]+)?", re.ASCII | re.IGNORECASE)
_SHOWN: Final = 60


def needs_of(headers: Headers, parameters: Mapping[str, object] = _NONE) -> Needs:
    """What a request asks for, wherever it says so.

    Args:
        parameters: of a request of the Open Inference Protocol; those of other names are not looked at.

    Raises:
        NeedsError: with status 400, if that is no name or no accuracy, or there are two that differ.
    """
    variant = _one(headers, WANT_VARIANT_HEADER, parameters, VARIANT_PARAMETER, _name)
    accuracy = _one(headers, MIN_ACCURACY_HEADER, parameters, MIN_ACCURACY_PARAMETER, _accuracy)
    return _NOTHING if variant is None and accuracy is None else Needs(variant, accuracy)


def _one(
    headers: Headers,
    header: str,
    parameters: Mapping[str, object],
    parameter: str,
    read: Callable[[str, object], _T],
) -> _T | None:
    """What is said in either place; None if in neither."""
    if header not in headers and parameter not in parameters:
        return None
    said = [read(header, value) for value in headers.getlist(header)]
    if parameter in parameters:
        said.append(read(f"the parameter {parameter}", parameters[parameter]))
    if any(other != said[0] for other in said):
        raise NeedsError(
            f"{header} and the parameter {parameter} ask for {_shown(said[0])} and for "
            f"{_shown(next(other for other in said if other != said[0]))}: say it once",
            status=400,
        )
    return said[0]


def _name(where: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise NeedsError(
            f"{where} is {_shown(value)}: give the name of a variant, as in /status, or leave it out",
            status=400,
        )
    return value.strip()


def _accuracy(where: str, value: object) -> float:
    number = value
    if isinstance(value, str):
        text = value.strip()
        number = float(text) if _NUMBER.fullmatch(text) else None
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= 1:
        raise NeedsError(
            f"{where} is {_shown(value)}: give a number from 0 to 1, such as 0.95 for 95 %, or leave it out",
            status=400,
        )
    return float(number)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
