"""What element-wise operators do to a constant, in float64; ONNX attributes are float32."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shifter.pruning.network import Float64s

Attributes = Mapping[str, Any]


def float32(number: float) -> float:
    """As an attribute would hold it: defaults of the standard are float32 too."""
    return float(np.float32(number))


def _gelu(value: Float64s, get: Callable[..., Any]) -> Float64s:
    if get("approximate", "none") == "tanh":
        inner = math.sqrt(2 / math.pi) * (value + 0.044715 * value**3)
        return np.asarray(0.5 * value * (1 + np.tanh(inner)))
    return np.asarray(0.5 * value * (1 + _erf(value / math.sqrt(2))))


def _erf(value: Float64s) -> Float64s:
    return np.asarray(np.vectorize(math.erf, otypes=[np.float64])(value), dtype=np.float64)


def _clip(value: Float64s, get: Callable[..., Any]) -> Float64s:
    return np.clip(value, get("min", -np.inf), get("max", np.inf))


FUNCTIONS: dict[str, Callable[[Float64s, Callable[..., Any]], Float64s]] = {
    "Abs": lambda x, get: np.abs(x),
    "Celu": lambda x, get: np.where(
        x > 0, x, get("alpha", 1.0) * np.expm1(np.minimum(x, 0) / get("alpha", 1.0))
    ),
    "Ceil": lambda x, get: np.ceil(x),
    "Clip": _clip,
    "Cos": lambda x, get: np.cos(x),
    "Elu": lambda x, get: np.where(x > 0, x, get("alpha", 1.0) * np.expm1(np.minimum(x, 0))),
    "Erf": lambda x, get: _erf(x),
    "Exp": lambda x, get: np.exp(x),
    "Floor": lambda x, get: np.floor(x),
    "Gelu": _gelu,
    "HardSigmoid": lambda x, get: np.clip(get("alpha", float32(0.2)) * x + get("beta", 0.5), 0.0, 1.0),
    "HardSwish": lambda x, get: x * np.clip(get("alpha", float32(1 / 6)) * x + 0.5, 0.0, 1.0),
    "LeakyRelu": lambda x, get: np.where(x < 0, get("alpha", float32(0.01)) * x, x),
    "Log": lambda x, get: np.log(x),
    "Mish": lambda x, get: x * np.tanh(np.logaddexp(x, 0)),
    "Neg": lambda x, get: -x,
    "Not": lambda x, get: np.where(x == 0, 1.0, 0.0),
    "Reciprocal": lambda x, get: 1.0 / x,
    "Relu": lambda x, get: np.maximum(x, 0.0),
    "Selu": lambda x, get: (
        get("gamma", float32(1.0507009873554805))
        * np.where(x > 0, x, get("alpha", float32(1.6732632423543772)) * np.expm1(np.minimum(x, 0)))
    ),
    "Sign": lambda x, get: np.sign(x),
    "Sigmoid": lambda x, get: 1.0 / (1.0 + np.exp(-x)),
    "Sin": lambda x, get: np.sin(x),
    "Softplus": lambda x, get: np.logaddexp(x, 0.0),
    "Softsign": lambda x, get: x / (1 + np.abs(x)),
    "Sqrt": lambda x, get: np.sqrt(x),
    "Tanh": lambda x, get: np.tanh(x),
    "ThresholdedRelu": lambda x, get: np.where(x > get("alpha", 1.0), x, 0.0),
}
"""By operator: (values, how to get an attribute or its default) to values."""

COMBINE: dict[str, Callable[[Float64s, Float64s], Float64s]] = {
    "Add": lambda x, y: x + y,
    "Sub": lambda x, y: x - y,
    "Mul": lambda x, y: x * y,
    "Div": lambda x, y: x / y,
    "Max": np.maximum,
    "Min": np.minimum,
}
"""Operators of two activations, or of one and a parameter."""


def _truth(compare: Callable[[Float64s, Float64s], NDArray[np.bool_]]) -> Callable[..., Float64s]:
    return lambda x, y: np.where(compare(x, y), 1.0, 0.0)


OF_ONE: dict[str, Callable[..., Float64s]] = {
    "And": _truth(np.logical_and),
    "Equal": _truth(np.equal),
    "Greater": _truth(np.greater),
    "GreaterOrEqual": _truth(np.greater_equal),
    "Less": _truth(np.less),
    "LessOrEqual": _truth(np.less_equal),
    "Or": _truth(np.logical_or),
    "Pow": lambda x, y: x**y,
    "Sum": lambda *given: functools.reduce(np.add, given),
    "Where": lambda which, x, y: np.asarray(np.where(which != 0, x, y), np.float64),
    "Xor": _truth(np.logical_xor),
}
"""Operators that are followed where all that they read are functions of one activation, and numbers."""
