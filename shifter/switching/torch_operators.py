"""Operators of ONNX (opset 13 and newer) in torch, as the graphs of image classifiers use them.

Each takes the operator's attributes and its inputs, None where one is left out, and gives its outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - as everywhere

Outputs = Sequence[Tensor]


class Attributes(dict[str, Any]):
    """An operator's attributes by name, and how many outputs it has."""

    def __init__(self, values: dict[str, Any], outputs: int) -> None:
        super().__init__(values)
        self.outputs = outputs


Operator = Callable[..., Outputs]

OPERATORS: dict[str, Operator] = {}
"""By the name that ONNX gives them."""

_DTYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64,
    9: torch.bool, 10: torch.float16, 11: torch.float64,
}  # fmt: skip


def _operator(name: str) -> Callable[[Operator], Operator]:
    def register(compute: Operator) -> Operator:
        OPERATORS[name] = compute
        return compute

    return register


def _each(name: str, compute: Callable[..., Tensor]) -> None:
    """An operator of one output and no attributes."""
    OPERATORS[name] = lambda _, *inputs: (compute(*inputs),)


_EACH: dict[str, Callable[..., Tensor]] = {
    "Abs": torch.abs, "Add": torch.add, "And": torch.logical_and, "Cos": torch.cos,
    "Equal": torch.eq, "Erf": torch.erf, "Exp": torch.exp, "Floor": torch.floor, "Greater": torch.gt,
    "GreaterOrEqual": torch.ge, "HardSwish": F.hardswish, "Identity": lambda x: x, "Less": torch.lt,
    "LessOrEqual": torch.le, "Log": torch.log, "MatMul": torch.matmul, "Mish": F.mish, "Mul": torch.mul,
    "Neg": torch.neg, "Not": torch.logical_not, "Or": torch.logical_or, "Pow": torch.pow,
    "Reciprocal": torch.reciprocal, "Relu": torch.relu, "Round": torch.round, "Sigmoid": torch.sigmoid,
    "Sign": torch.sign, "Sin": torch.sin, "Softplus": F.softplus, "Softsign": F.softsign,
    "Sqrt": torch.sqrt, "Sub": torch.sub, "Tanh": torch.tanh, "Where": torch.where,
}  # fmt: skip
for _name, _compute in _EACH.items():
    _each(_name, _compute)
for _name, _fold in {"Max": torch.maximum, "Min": torch.minimum, "Sum": torch.add}.items():
    OPERATORS[_name] = lambda _, first, *others, fold=_fold: (_folded(fold, first, others),)


def _folded(fold: Callable[[Tensor, Tensor], Tensor], first: Tensor, others: Sequence[Tensor]) -> Tensor:
    for other in others:
        first = fold(first, other)
    return first


def _ints(tensor: Tensor | None) -> list[int]:
    return [] if tensor is None else cast("list[int]", tensor.reshape(-1).tolist())


# Activations with parameters


@_operator("LeakyRelu")
def _leaky_relu(a: Attributes, x: Tensor) -> Outputs:
    return (F.leaky_relu(x, a.get("alpha", 0.01)),)


@_operator("Elu")
def _elu(a: Attributes, x: Tensor) -> Outputs:
    return (F.elu(x, a.get("alpha", 1.0)),)


@_operator("Celu")
def _celu(a: Attributes, x: Tensor) -> Outputs:
    return (F.celu(x, a.get("alpha", 1.0)),)


@_operator("PRelu")
def _prelu(_: Attributes, x: Tensor, slope: Tensor) -> Outputs:
    return (torch.where(x < 0, x * slope, x),)


@_operator("HardSigmoid")
def _hard_sigmoid(a: Attributes, x: Tensor) -> Outputs:
    return (torch.clamp(x * a.get("alpha", 0.2) + a.get("beta", 0.5), 0.0, 1.0),)


@_operator("Gelu")
def _gelu(a: Attributes, x: Tensor) -> Outputs:
    return (F.gelu(x, approximate=a.get("approximate", "none")),)


@_operator("Swish")
def _swish(a: Attributes, x: Tensor) -> Outputs:
    return (x * torch.sigmoid(x * a.get("alpha", 1.0)),)


@_operator("Clip")
def _clip(_: Attributes, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Outputs:
    x = x if low is None else torch.maximum(x, low)
    return (x if high is None else torch.minimum(x, high),)


@_operator("Softmax")
def _softmax(a: Attributes, x: Tensor) -> Outputs:
    return (torch.softmax(x, a.get("axis", -1)),)


@_operator("LogSoftmax")
def _log_softmax(a: Attributes, x: Tensor) -> Outputs:
    return (torch.log_softmax(x, a.get("axis", -1)),)


@_operator("Dropout")
def _dropout(_: Attributes, x: Tensor, *__: Tensor) -> Outputs:
    return (x,)


# Layers, norms and poolings


class _Window:
    """Strides, dilations and paddings of a kernel over an image of any number of axes."""

    def __init__(self, a: Attributes, size: Sequence[int], kernel: Sequence[int]) -> None:
        rank = len(kernel)
        self.kernel = list(kernel)
        self.strides: list[int] = a.get("strides") or [1] * rank
        self.dilations: list[int] = a.get("dilations") or [1] * rank
        pads = a.get("pads") or [0] * 2 * rank
        self.before, self.after = list(pads[:rank]), list(pads[rank:])
        how = a.get("auto_pad", "NOTSET")
        if how == "VALID":
            self.before, self.after = [0] * rank, [0] * rank
        elif how != "NOTSET":
            for i in range(rank):
                reach = (kernel[i] - 1) * self.dilations[i] + 1
                wanted = max(0, (-(-size[i] // self.strides[i]) - 1) * self.strides[i] + reach - size[i])
                self.before[i] = wanted // 2 if how == "SAME_UPPER" else -(-wanted // 2)
                self.after[i] = wanted - self.before[i]

    @property
    def is_plain(self) -> bool:
        """Whether torch can pad so by itself."""
        return self.before == self.after

    def padded(self, x: Tensor, value: float) -> Tensor:
        pairs = [n for pair in zip(self.before[::-1], self.after[::-1], strict=True) for n in pair]
        return F.pad(x, pairs, value=value)


@_operator("Conv")
def _conv(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Outputs:
    window = _Window(a, x.shape[2:], weight.shape[2:])
    rank = len(window.kernel)
    pads = window.before if window.is_plain else [0] * rank
    x = x if window.is_plain else window.padded(x, 0.0)
    groups = a.get("group", 1)
    return (
        torch.convolution(x, weight, bias, window.strides, pads, window.dilations, False, [0] * rank, groups),
    )


@_operator("Gemm")
def _gemm(a: Attributes, x: Tensor, y: Tensor, bias: Tensor | None = None) -> Outputs:
    x = x.T if a.get("transA", 0) else x
    y = y.T if a.get("transB", 0) else y
    product = (x @ y) * a.get("alpha", 1.0)
    return (product if bias is None else product + bias * a.get("beta", 1.0),)


@_operator("BatchNormalization")
def _batch_norm(a: Attributes, x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, var: Tensor) -> Outputs:
    return (F.batch_norm(x, mean, var, scale, shift, False, 0.0, a.get("epsilon", 1e-5)),)


@_operator("InstanceNormalization")
def _instance_norm(a: Attributes, x: Tensor, scale: Tensor, shift: Tensor) -> Outputs:
    return (F.instance_norm(x, weight=scale, bias=shift, eps=a.get("epsilon", 1e-5)),)


@_operator("GroupNormalization")
def _group_norm(a: Attributes, x: Tensor, scale: Tensor, shift: Tensor) -> Outputs:
    groups = a["num_groups"]
    if scale.numel() == groups != x.shape[1]:  # before opset 21 there is one a group
        scale, shift = (t.repeat_interleave(x.shape[1] // groups) for t in (scale, shift))
    return (F.group_norm(x, groups, scale, shift, a.get("epsilon", 1e-5)),)


@_operator("LayerNormalization")
def _layer_norm(a: Attributes, x: Tensor, scale: Tensor, shift: Tensor | None = None) -> Outputs:
    axes = x.shape[a.get("axis", -1) :]
    made = F.layer_norm(x, axes, eps=a.get("epsilon", 1e-5)) * scale
    return (made if shift is None else made + shift,)


@_operator("MaxPool")
def _max_pool(a: Attributes, x: Tensor) -> Outputs:
    if a.outputs > 1:
        raise ValueError("the places of the maxima are not computed")
    window = _Window(a, x.shape[2:], a["kernel_shape"])
    pool: Any = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(window.kernel) - 1]
    pads = window.before if window.is_plain else 0
    x = x if window.is_plain else window.padded(x, -math.inf)
    ceil = bool(a.get("ceil_mode", 0))
    return (pool(x, window.kernel, window.strides, pads, window.dilations, ceil_mode=ceil),)


@_operator("AveragePool")
def _average_pool(a: Attributes, x: Tensor) -> Outputs:
    window = _Window(a, x.shape[2:], a["kernel_shape"])
    if any(step != 1 for step in window.dilations):
        raise ValueError("an average over places apart is not computed")
    pool: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(window.kernel) - 1]
    ceil, counted = bool(a.get("ceil_mode", 0)), bool(a.get("count_include_pad", 0))
    if window.is_plain:
        return (pool(x, window.kernel, window.strides, window.before, ceil, counted),)
    ones = window.padded(torch.ones_like(x[:1, :1]), float(counted))
    sums, shares = (
        pool(t, window.kernel, window.strides, 0, ceil, False) for t in (window.padded(x, 0.0), ones)
    )
    return (sums / shares,)


@_operator("GlobalAveragePool")
def _global_average_pool(_: Attributes, x: Tensor) -> Outputs:
    return (x.mean(tuple(range(2, x.ndim)), keepdim=True),)


@_operator("GlobalMaxPool")
def _global_max_pool(_: Attributes, x: Tensor) -> Outputs:
    return (x.amax(tuple(range(2, x.ndim)), keepdim=True),)


def _reduction(name: str, compute: Callable[[Tensor, list[int], bool], Tensor]) -> None:
    def reduce(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Outputs:
        over = a.get("axes") or _ints(axes)
        if not over:
            if a.get("noop_with_empty_axes", 0):
                return (x,)
            over = list(range(x.ndim))
        return (compute(x, over, bool(a.get("keepdims", 1))),)

    OPERATORS[name] = reduce


_reduction("ReduceMean", lambda x, axes, keep: x.mean(axes, keepdim=keep))
_reduction("ReduceSum", lambda x, axes, keep: x.sum(axes, keepdim=keep))
_reduction("ReduceMax", lambda x, axes, keep: x.amax(axes, keepdim=keep))
_reduction("ReduceMin", lambda x, axes, keep: x.amin(axes, keepdim=keep))
_reduction("ReduceL1", lambda x, axes, keep: x.abs().sum(axes, keepdim=keep))
_reduction("ReduceL2", lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt())
_reduction("ReduceSumSquare", lambda x, axes, keep: x.square().sum(axes, keepdim=keep))


@_operator("Einsum")
def _einsum(a: Attributes, *parts: Tensor) -> Outputs:
    return (torch.einsum(a["equation"].replace(" ", ""), *parts),)


@_operator("Div")
def _div(_: Attributes, x: Tensor, y: Tensor) -> Outputs:
    return (torch.div(x, y, rounding_mode=None if x.is_floating_point() else "trunc"),)


@_operator("Mod")
def _mod(a: Attributes, x: Tensor, y: Tensor) -> Outputs:
    return (torch.fmod(x, y) if a.get("fmod", 0) else torch.remainder(x, y),)


# Shapes, and what moves elements without computing


@_operator("Constant")
def _constant(a: Attributes) -> Outputs:
    if "value" in a:
        return (a["value"],)
    ((kind, value),) = a.items()
    return (torch.tensor(value, dtype=torch.float32 if "float" in kind else torch.int64),)


@_operator("ConstantOfShape")
def _constant_of_shape(a: Attributes, shape: Tensor) -> Outputs:
    value = a.get("value", torch.zeros(1))
    return (value.reshape(()).expand(_ints(shape)).clone(),)


@_operator("Cast")
def _cast(a: Attributes, x: Tensor) -> Outputs:
    return (x.to(_DTYPES[a["to"]]),)


@_operator("CastLike")
def _cast_like(_: Attributes, x: Tensor, like: Tensor) -> Outputs:
    return (x.to(like.dtype),)


@_operator("Shape")
def _shape(a: Attributes, x: Tensor) -> Outputs:
    sizes = list(x.shape)[a.get("start", 0) : a.get("end", x.ndim)]
    return (torch.tensor(sizes, dtype=torch.int64),)


@_operator("Size")
def _size(_: Attributes, x: Tensor) -> Outputs:
    return (torch.tensor(x.numel()),)


@_operator("Range")
def _range(_: Attributes, start: Tensor, limit: Tensor, delta: Tensor) -> Outputs:
    return (torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype),)


@_operator("Reshape")
def _reshape(a: Attributes, x: Tensor, shape: Tensor) -> Outputs:
    wanted = _ints(shape)
    if not a.get("allowzero", 0):
        wanted = [x.shape[i] if size == 0 else size for i, size in enumerate(wanted)]
    return (x.reshape(wanted),)


@_operator("Flatten")
def _flatten(a: Attributes, x: Tensor) -> Outputs:
    axis = a.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return (x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:])),)


@_operator("Squeeze")
def _squeeze(_: Attributes, x: Tensor, axes: Tensor | None = None) -> Outputs:
    return (x.squeeze() if axes is None else x.squeeze(tuple(_ints(axes))),)


@_operator("Unsqueeze")
def _unsqueeze(_: Attributes, x: Tensor, axes: Tensor) -> Outputs:
    rank = x.ndim + axes.numel()
    for axis in sorted(axis % rank for axis in _ints(axes)):
        x = x.unsqueeze(axis)
    return (x,)


@_operator("Transpose")
def _transpose(a: Attributes, x: Tensor) -> Outputs:
    return (x.permute(a.get("perm") or list(reversed(range(x.ndim)))),)


@_operator("Concat")
def _concat(a: Attributes, *parts: Tensor) -> Outputs:
    return (torch.cat(parts, a["axis"]),)


@_operator("Split")
def _split(a: Attributes, x: Tensor, sizes: Tensor | None = None) -> Outputs:
    axis = a.get("axis", 0)
    if sizes is not None:
        return torch.split_with_sizes(x, _ints(sizes), axis)
    each = -(-x.shape[axis] // a.outputs)
    equal = [each] * (a.outputs - 1)
    return torch.split_with_sizes(x, [*equal, x.shape[axis] - sum(equal)], axis)


@_operator("Expand")
def _expand(_: Attributes, x: Tensor, shape: Tensor) -> Outputs:
    return (x.expand(np.broadcast_shapes(x.shape, tuple(_ints(shape)))),)


@_operator("Tile")
def _tile(_: Attributes, x: Tensor, repeats: Tensor) -> Outputs:
    return (x.repeat(_ints(repeats)),)


@_operator("Pad")
def _pad(
    a: Attributes, x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None
) -> Outputs:
    mode = a.get("mode", "constant")
    if mode != "constant":
        raise ValueError(f"padding of mode {mode!r} is not computed")
    amounts = _ints(pads)
    at = [axis % x.ndim for axis in _ints(axes)] if axes is not None else list(range(x.ndim))
    pairs = [0] * 2 * x.ndim
    for i, axis in enumerate(at):
        pairs[2 * (x.ndim - 1 - axis)] = amounts[i]
        pairs[2 * (x.ndim - 1 - axis) + 1] = amounts[len(at) + i]
    return (F.pad(x, pairs, value=0.0 if value is None else value.item()),)


@_operator("Slice")
def _slice(
    _: Attributes,
    x: Tensor,
    starts: Tensor,
    ends: Tensor,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Outputs:
    first = _ints(starts)
    along = _ints(axes) if axes is not None else list(range(len(first)))
    by = _ints(steps) if steps is not None else [1] * len(first)
    for start, end, axis, step in zip(first, _ints(ends), along, by, strict=True):
        places = range(x.shape[axis])[slice(start, None if step < 0 and end < -x.shape[axis] else end, step)]
        if step > 0:
            cut: list[Any] = [slice(None)] * x.ndim
            cut[axis] = slice(places.start, places.stop, step)
            x = x[tuple(cut)]
        else:  # torch does not go backwards
            x = x.index_select(axis, torch.tensor(list(places), device=x.device))
    return (x,)


@_operator("Gather")
def _gather(a: Attributes, x: Tensor, indices: Tensor) -> Outputs:
    axis = a.get("axis", 0) % x.ndim
    flat = indices.to(torch.int64).reshape(-1)
    flat = torch.where(flat < 0, flat + x.shape[axis], flat).to(x.device)
    made = x.index_select(axis, flat)
    return (made.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]),)


@_operator("GatherND")
def _gather_nd(a: Attributes, x: Tensor, indices: Tensor) -> Outputs:
    if a.get("batch_dims", 0):
        raise ValueError("a GatherND of batches is not computed")
    return (x[tuple(indices.movedim(-1, 0))],)


@_operator("ScatterND")
def _scatter_nd(a: Attributes, x: Tensor, indices: Tensor, updates: Tensor) -> Outputs:
    if (how := a.get("reduction", "none")) != "none":
        raise ValueError(f"a ScatterND that does {how!r} is not computed")
    made = x.clone()
    made[tuple(indices.movedim(-1, 0))] = updates
    return (made,)


@_operator("DepthToSpace")
def _depth_to_space(a: Attributes, x: Tensor) -> Outputs:
    size = a["blocksize"]
    if a.get("mode", "DCR") == "CRD":
        return (F.pixel_shuffle(x, size),)
    n, c, h, w = x.shape
    split = x.reshape(n, size, size, c // size**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return (split.reshape(n, c // size**2, h * size, w * size),)
