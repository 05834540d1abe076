"""Operators in float64, where those of the ONNX reference evaluator are slow or not what is meant.

It computes pooling and scattering an element at a time in Python, and convolution by gathering; Erf,
Gelu and casts in float32; and an old batch norm as in training.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnx.reference.op_run import OpRun

Arrays = tuple[NDArray[Any], ...]


def widened(content: NDArray[Any]) -> NDArray[Any]:
    return content.astype(np.float64) if content.dtype.kind == "f" else content


def widen(graph: onnx.GraphProto) -> None:
    """Every float32 constant becomes a float64 one; no declared type or size is left that would be false."""
    del graph.initializer[:]
    del graph.value_info[:]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                content = widened(numpy_helper.to_array(attribute.t))
                attribute.t.CopyFrom(numpy_helper.from_array(content))
            elif node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
                single = attribute.name == "value_float"
                content = np.array(attribute.f if single else list(attribute.floats), dtype=np.float64)
                attribute.CopyFrom(onnx.helper.make_attribute("value", numpy_helper.from_array(content)))


class _Window:
    """A kernel's places over an image of any number of axes, and what padding each form asks for."""

    def __init__(
        self,
        size: Sequence[int],
        kernel: Sequence[int],
        *,
        strides: Sequence[int] | None,
        dilations: Sequence[int] | None = None,
        pads: Sequence[int] | None,
        auto_pad: str | None,
        ceil_mode: int | None = 0,
    ) -> None:
        rank = len(size)
        self.kernel = kernel
        self.strides = list(strides or [1] * rank)
        self.dilations = list(dilations or [1] * rank)
        pads = list(pads or [0] * 2 * rank)
        self.before: list[int] = []
        self.after: list[int] = []
        self.beyond: list[int] = []
        self.out: list[int] = []
        for axis in range(rank):
            reach = (kernel[axis] - 1) * self.dilations[axis] + 1
            stride, before, after = self.strides[axis], pads[axis], pads[rank + axis]
            if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
                wanted = max(0, (-(-size[axis] // stride) - 1) * stride + reach - size[axis])
                before = wanted // 2 if auto_pad == "SAME_UPPER" else -(-wanted // 2)
                after = wanted - before
            elif auto_pad == "VALID":
                before = after = 0
            free = size[axis] + before + after - reach
            out = (-(-free // stride) if ceil_mode else free // stride) + 1
            if ceil_mode and (out - 1) * stride >= size[axis] + before:  # no window starts in the padding
                out -= 1
            self.before.append(before)
            self.after.append(after)
            self.beyond.append(max(0, (out - 1) * stride + reach - size[axis] - before - after))
            self.out.append(out)

    def pad(self, images: NDArray[Any], value: float, *, beyond: float) -> NDArray[Any]:
        """``beyond`` fills what only rounding the size up reaches: it is no padding, and is not counted."""
        images = np.pad(
            images, [(0, 0), (0, 0), *zip(self.before, self.after, strict=True)], constant_values=value
        )
        return np.pad(images, [(0, 0), (0, 0), *((0, more) for more in self.beyond)], constant_values=beyond)

    def places(self, padded: NDArray[Any]) -> Iterator[NDArray[Any]]:
        """For each of the kernel's weights, what it meets: views of shape (batch, channels, *out)."""
        for place in itertools.product(*map(range, self.kernel)):
            starts = [i * dilation for i, dilation in zip(place, self.dilations, strict=True)]
            spans = zip(starts, self.strides, self.out, strict=True)
            met: Any = (..., *(slice(at, at + (out - 1) * step + 1, step) for at, step, out in spans))
            yield padded[met]


class _Operator(OpRun):
    op_domain = ""


class Conv(_Operator):
    """Columns of each image and group, and one product of matrices."""

    def _run(self, x: Any, w: Any, b: Any = None, *, group: int, kernel_shape: Any, **form: Any) -> Arrays:
        window = _Window(x.shape[2:], w.shape[2:], **form)
        padded = window.pad(x, 0.0, beyond=0.0)
        out = np.empty((len(x), w.shape[0], *window.out))
        columns = np.empty((x.shape[1], math.prod(w.shape[2:]), *window.out))
        matrix = w.reshape(group, w.shape[0] // group, -1)
        for image, result in zip(padded, out, strict=True):
            for index, place in enumerate(window.places(image)):
                columns[:, index] = place
            flat = columns.reshape(group, matrix.shape[2], -1)
            np.matmul(matrix, flat, out=result.reshape(group, matrix.shape[1], -1))
        if b is not None:
            out += b.reshape(-1, *[1] * len(window.out))
        return (out,)


class MaxPool(_Operator):
    """Without its second output, the places of the maxima."""

    def _run(self, x: Any, *, kernel_shape: Any, storage_order: int, **form: Any) -> Arrays:
        if len(self.output) > 1:
            raise NotImplementedError(f"{self.onnx_node.name}: the places of a MaxPool's maxima")
        window = _Window(x.shape[2:], kernel_shape, **form)
        padded = window.pad(x, -np.inf, beyond=-np.inf)
        return (functools.reduce(np.maximum, window.places(padded)),)


class AveragePool(_Operator):
    """The sum over each window, divided by how many of its places count."""

    def _run(self, x: Any, *, kernel_shape: Any, count_include_pad: int, **form: Any) -> Arrays:
        window = _Window(x.shape[2:], kernel_shape, **form)
        counted = window.pad(np.ones((1, 1, *x.shape[2:])), float(count_include_pad), beyond=0.0)
        padded = window.pad(x, 0.0, beyond=0.0)
        return (functools.reduce(np.add, window.places(padded)) / sum(window.places(counted)),)


class BatchNormalization(_Operator):
    """As in inference at every opset: the reference takes an old one's momentum for training."""

    def _run(
        self, x: Any, scale: Any, shift: Any, mean: Any, var: Any, *, epsilon: float, **_: Any
    ) -> Arrays:
        factor = scale / np.sqrt(var + epsilon)
        wide = (-1, *[1] * (x.ndim - 2))
        return (x * factor.reshape(wide) + (shift - mean * factor).reshape(wide),)


_erf = np.frompyfunc(math.erf, 1, 1)


class Erf(_Operator):
    """In float64, where the reference rounds to float32."""

    def _run(self, x: Any) -> Arrays:
        return (np.asarray(_erf(x), dtype=x.dtype),)


class Gelu(_Operator):
    """The reference composes it of float32 constants."""

    def _run(self, x: Any, *, approximate: str) -> Arrays:
        if approximate == "tanh":
            return (0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),)
        return (0.5 * x * (1 + np.asarray(_erf(x / math.sqrt(2)), dtype=x.dtype)),)


class Cast(_Operator):
    """What the network computes in float32, and no less, is computed in float64 here."""

    def _run(self, x: Any, *, to: int, **_: Any) -> Arrays:
        is_float = to in (TensorProto.FLOAT, TensorProto.DOUBLE)
        return (x.astype(np.float64 if is_float else onnx.helper.tensor_dtype_to_np_dtype(to)),)


class ScatterND(_Operator):
    """In one assignment where nothing is summed: indices are unique then, by the specification."""

    def _run(self, data: Any, indices: Any, updates: Any, *, reduction: str) -> Arrays:
        result = data.copy()
        places = tuple(np.moveaxis(indices, -1, 0))
        if reduction == "none":
            result[places] = updates
        else:
            names = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}
            names[reduction].at(result, places, updates)
        return (result,)


OPERATORS: list[type[OpRun]] = [Conv, MaxPool, AveragePool, BatchNormalization, Erf, Gelu, Cast, ScatterND]
