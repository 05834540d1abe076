"""Random networks of every operator that is followed, in any order: what nobody would think of.

A network grows step by step from values whose shapes are known (the batch is left out of them); what
a step makes, later steps may read, several of them or none. Its layout says where the channels are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from shifter.pruning.graph import weightless

Tensors = dict[str, NDArray[np.float32]]

SCALARS = ("Add", "Sub", "Mul", "Div", "Max", "Min")
JOINS = ("Add", "Sub", "Mul", "Max", "Min")
FUNCTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("Relu", {}), ("Relu", {}), ("LeakyRelu", {"alpha": 0.1}), ("Sigmoid", {}), ("Tanh", {}),
    ("HardSwish", {}), ("HardSigmoid", {"alpha": 0.25}), ("Elu", {}), ("Softplus", {}), ("Abs", {}),
    ("Neg", {}), ("Identity", {}), ("ThresholdedRelu", {"alpha": 0.3}),
)  # fmt: skip


@dataclass(frozen=True)
class Drawn:
    """A value: its sizes without the batch, and which of them counts channels."""

    name: str
    shape: tuple[int, ...]
    axis: int

    @property
    def width(self) -> int:
        return self.shape[self.axis]

    @property
    def is_image(self) -> bool:
        return len(self.shape) == 3 and self.axis == 0

    @property
    def is_last(self) -> bool:
        return self.axis == len(self.shape) - 1


@dataclass
class Drawing:
    """A graph that grows."""

    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: Tensors = field(default_factory=dict)
    literals: list[onnx.TensorProto] = field(default_factory=list)
    values: list[Drawn] = field(default_factory=list)
    inside: list[Drawn] = field(default_factory=list)
    """Values that no later step may read, since their channels are taken apart."""

    def coin(self, chance: float = 0.5) -> bool:
        return bool(self.rng.random() < chance)

    def pick(self, *choices: Any) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def number(self, low: int, high: int) -> int:
        """Both ends included."""
        return int(self.rng.integers(low, high + 1))

    def weight(self, key: str, *shape: int, mean: float = 0.0, scale: float = 1.0) -> str:
        name = f"n{len(self.nodes)}.{key}"
        self.tensors[name] = self.rng.normal(mean, scale, shape).astype(np.float32)
        return name

    def literal(self, content: Any, dtype: Any = np.int64) -> str:
        name = f"c{len(self.literals)}"
        self.literals.append(numpy_helper.from_array(np.asarray(content, dtype), name))
        return name

    def add(
        self, op: str, inputs: list[str], shapes: list[tuple[int, ...]], axis: int, /, **attributes: Any
    ) -> list[Drawn]:
        number = len(self.nodes)
        made = [Drawn(f"v{number}_{i}", shape, axis) for i, shape in enumerate(shapes)]
        self.nodes.append(
            helper.make_node(op, inputs, [one.name for one in made], name=f"{op}_{number}", **attributes)
        )
        self.values += made
        return made

    def one(
        self, op: str, inputs: list[str], shape: tuple[int, ...], axis: int, /, **attributes: Any
    ) -> Drawn:
        return self.add(op, inputs, [shape], axis, **attributes)[0]

    def like(self, op: str, x: Drawn, *others: str, **attributes: Any) -> Drawn:
        return self.one(op, [x.name, *others], x.shape, x.axis, **attributes)

    def source(self) -> Drawn:
        """Mostly what was made last."""
        return self.values[-1] if self.coin(0.75) else self.pick(*self.values)

    def finish(self, outputs: list[Drawn]) -> tuple[bytes, Tensors]:
        info = {
            one.name: helper.make_tensor_value_info(one.name, TensorProto.FLOAT, ["batch", *one.shape])
            for one in (*self.values, *self.inside)
        }
        names = list(dict.fromkeys(one.name for one in outputs))
        inner = [value for name, value in info.items() if name not in (*names, "images")]
        weights = [ir.to_proto(weightless(n, array.shape).const_value) for n, array in self.tensors.items()]
        graph = helper.make_graph(
            self.nodes, "network", [info["images"]], [info[name] for name in names],
            initializer=[*weights, *self.literals], value_info=inner,
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        return model.SerializeToString(), self.tensors


def with_width(x: Drawn, width: int) -> tuple[int, ...]:
    return (*x.shape[: x.axis], width, *x.shape[x.axis + 1 :])


def conv(d: Drawing, x: Drawn, out: int | None = None, **fixed: Any) -> Drawn:
    kernel = fixed.get("kernel") or d.pick(*(k for k in (1, 2, 3) if k <= min(x.shape[1:])))
    pad = fixed.get("pad", d.number(0, kernel - 1) if kernel > 1 else 0)
    stride = fixed.get("stride", d.pick(1, 1, 2))
    dilation = d.pick(1, 2) if kernel == 2 and not fixed and min(x.shape[1:]) > 2 else 1
    groups = 1
    if not fixed and d.coin(0.5):
        groups = d.pick(*(g for g in range(1, x.width + 1) if x.width % g == 0))
    if d.coin(0.3) and not fixed:
        groups = x.width
    if out is None:
        out = groups * d.number(1, 2 if groups == x.width else max(1, 8 // groups))
    reach = (kernel - 1) * dilation + 1
    sizes = [(size + 2 * pad - reach) // stride + 1 for size in x.shape[1:]]
    names = [x.name, d.weight("weight", out, x.width // groups, kernel, kernel, scale=1 / kernel)]
    if d.coin():
        names.append(d.weight("bias", out))
    y = d.one(
        "Conv", names, (out, *sizes), 0, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4,
        group=groups, dilations=[dilation] * 2,
    )  # fmt: skip
    return norm(d, y) if d.coin(0.4) else y


def norm(d: Drawing, x: Drawn) -> Drawn:
    names = [d.weight(key, x.width, mean=m) for key, m in (("scale", 1.0), ("shift", 0.0), ("mean", 0.0))]
    var = d.weight("var", x.width)
    d.tensors[var] = np.abs(d.tensors[var]) + np.float32(0.3)
    return d.like("BatchNormalization", x, *names, var)


def activation(d: Drawing, x: Drawn) -> Drawn:
    if d.coin(0.15):
        bounds = (d.literal(d.pick(-0.5, 0.0, 0.2), np.float32), d.literal(1.5, np.float32))
        return d.like("Clip", x, *d.pick(bounds, ("", bounds[1]), bounds[:1]))
    if d.coin(0.15):
        return d.like("PRelu", x, d.weight("slope", x.width, *[1] * (len(x.shape) - x.axis - 1)))
    op, attributes = d.pick(*FUNCTIONS)
    return d.like(op, x, **attributes)


def scalar(d: Drawing, x: Drawn) -> Drawn:
    op = d.pick(*SCALARS)
    number = d.literal(d.pick(-1.0, 0.5, 1.0, 2.0), np.float32)
    if op != "Div" and d.coin():
        return d.one(op, [number, x.name], x.shape, x.axis)
    return d.like(op, x, number)


def per_channel(d: Drawing, x: Drawn) -> Drawn:
    op = d.pick(*SCALARS)
    shape = (x.width, *[1] * (len(x.shape) - x.axis - 1))
    key = "divisor" if op == "Div" else "parameter"
    parameter = d.weight(key, *(1,) * d.number(0, x.axis + 1), *shape, mean=2.0, scale=0.3)
    if op != "Div" and d.coin(0.3):
        return d.one(op, [parameter, x.name], x.shape, x.axis)
    return d.like(op, x, parameter)


def pool(d: Drawing, x: Drawn) -> Drawn:
    op = d.pick("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean")
    if op.startswith("Global"):
        return d.one(op, [x.name], (x.width, 1, 1), 0)
    if op == "ReduceMean":
        keeps = d.number(0, 1)
        axes = d.pick([2, 3], [-1], [2])
        gone = [a % 4 - 1 for a in axes]
        shape = tuple(1 if i in gone else s for i, s in enumerate(x.shape) if keeps or i not in gone)
        return d.one(op, [x.name, d.literal(axes)], shape, 0, keepdims=keeps)
    kernel = d.number(1, min(3, *x.shape[1:]))
    pad, stride, ceil = d.number(0, kernel // 2), d.number(1, 2), d.number(0, 1)
    sizes = []
    for size in x.shape[1:]:
        free = size + 2 * pad - kernel
        out = (-(-free // stride) if ceil else free // stride) + 1
        sizes.append(out - (ceil and (out - 1) * stride >= size + pad))
    extra = {"count_include_pad": d.number(0, 1)} if op == "AveragePool" else {}
    return d.one(
        op, [x.name], (x.width, *sizes), 0, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4,
        ceil_mode=ceil, **extra,
    )  # fmt: skip


def join(d: Drawing, x: Drawn) -> Drawn:
    alike = [v for v in d.values if v.shape == x.shape and v.axis == x.axis]
    y = d.pick(*alike)
    if x.is_image and d.coin():
        y = conv(d, d.pick(*[v for v in d.values if v.shape[1:] == x.shape[1:] and v.is_image]),
                 x.width, kernel=1, pad=0, stride=1)  # fmt: skip
        y = activation(d, y) if d.coin() else y
    names = [x.name, y.name] if d.coin() else [y.name, x.name]
    return d.one(d.pick(*JOINS), names, x.shape, x.axis)


def own_residual(d: Drawing, x: Drawn) -> Drawn:
    """x + f(x) where f keeps the units of x: a depthwise convolution, a shuffle, an activation."""
    if x.is_image and d.coin():
        weight = d.weight("weight", x.width, 1, 3, 3)
        y = d.like("Conv", x, weight, kernel_shape=[3, 3], pads=[1] * 4, group=x.width)
    elif d.coin():
        y = d.like("Gather", x, d.literal(d.rng.permutation(x.width)), axis=x.axis + 1)
    else:
        y = activation(d, x)
    return d.one(d.pick(*JOINS), [x.name, y.name], x.shape, x.axis)


def product(d: Drawing, x: Drawn) -> Drawn:
    """Of two layers, so that both factors may be zeros; mostly added to what it came from."""
    width, ops = d.number(1, 6), ("Relu", "HardSigmoid", "Sigmoid", "Tanh")
    factors = [d.like(d.pick(*ops), conv(d, x, width, kernel=1, pad=0, stride=1)) for _ in (0, 1)]
    y = d.one("Mul", [one.name for one in factors], factors[0].shape, 0)
    other = conv(d, x, width, kernel=1, pad=0, stride=1)
    return d.one(d.pick(*JOINS), [y.name, other.name], y.shape, 0)


def gate(d: Drawing, x: Drawn) -> Drawn:
    y = d.one("GlobalAveragePool", [x.name], (x.width, 1, 1), 0)
    if d.coin():
        y = activation(d, conv(d, y, d.number(1, 5), kernel=1, pad=0, stride=1))
    y = d.like(d.pick("Sigmoid", "HardSigmoid"), conv(d, y, x.width, kernel=1, pad=0, stride=1))
    names = [x.name, y.name] if d.coin() else [y.name, x.name]
    return d.one("Mul", names, x.shape, 0)


def concat(d: Drawing, x: Drawn) -> Drawn:
    rest = (x.shape[: x.axis], x.shape[x.axis + 1 :])
    alike = [v for v in d.values if v.axis == x.axis and (v.shape[: v.axis], v.shape[v.axis + 1 :]) == rest]
    parts = [x, *(d.pick(*alike) for _ in range(d.number(1, 2)))]
    width = sum(part.width for part in parts)
    if width > 24:
        return x
    axis = x.axis + 1 if d.coin() else x.axis - len(x.shape)
    return d.one("Concat", [part.name for part in parts], with_width(x, width), x.axis, axis=axis)


def split(d: Drawing, x: Drawn) -> Drawn:
    if x.width < 2:
        return x
    cut = d.number(1, x.width - 1)
    sizes = [cut, x.width - cut]
    shapes = [with_width(x, size) for size in sizes]
    if d.coin() and x.width % 2 == 0:
        shapes = [with_width(x, x.width // 2)] * 2
        one, other = d.add("Split", [x.name], shapes, x.axis, axis=x.axis + 1, num_outputs=2)
    else:
        one, other = d.add("Split", [x.name, d.literal(sizes)], shapes, x.axis, axis=x.axis + 1)
    if one.width == other.width and d.coin():
        return d.one(d.pick(*JOINS), [one.name, other.name], one.shape, x.axis)
    return d.pick(one, other)


def cut(d: Drawing, x: Drawn) -> Drawn:
    step = d.pick(1, 1, 2, -1)
    first, last = sorted((d.number(0, x.width - 1), d.number(0, x.width - 1)))
    start, end = first, last + 1
    if step < 0:
        start, end = last, first - 1 if first else -(2**40)
    elif d.coin():
        start, end = start - x.width, d.pick(2**40, end)
    picked = np.arange(x.width)[start : end if abs(end) < 2**31 else None : step]
    numbers = [d.literal([n]) for n in (start, end, x.axis + 1, step)]
    return d.one("Slice", [x.name, *numbers], with_width(x, picked.size), x.axis)


def gather(d: Drawing, x: Drawn) -> Drawn:
    order = d.rng.integers(-x.width, x.width, d.number(1, min(12, 2 * x.width)))
    return d.one("Gather", [x.name, d.literal(order)], with_width(x, order.size), x.axis, axis=x.axis + 1)


def pad(d: Drawing, x: Drawn) -> Drawn:
    rank = len(x.shape) + 1
    pads, shape = np.zeros((2, rank), int), list(x.shape)
    if x.is_image and d.coin():
        pads[:, 2:] = d.rng.integers(0, 2, (2, 2))
    else:
        pads[:, x.axis + 1] = d.rng.integers(0, 3, 2)
    shape = [size + int(pads[:, i + 1].sum()) for i, size in enumerate(shape)]
    return d.one("Pad", [x.name, d.literal(pads.ravel())], tuple(shape), x.axis)


def shuffle(d: Drawing, x: Drawn) -> Drawn:
    groups = d.pick(*(g for g in range(1, x.width + 1) if x.width % g == 0))
    each, rest = x.width // groups, x.shape[1:]
    y = d.one("Reshape", [x.name, d.literal([0, groups, each, *rest])], (groups, each, *rest), 0)
    z = d.one("Transpose", [y.name], (each, groups, *rest), 0, perm=[0, 2, 1, 3, 4])
    del d.values[-2:]
    d.inside += [y, z]
    return d.one("Reshape", [z.name, d.literal([0, x.width, *rest])], x.shape, 0)


def to_last(d: Drawing, x: Drawn) -> Drawn:
    rest = x.shape[1:]
    perm = [0, *range(2, len(x.shape) + 1), 1]
    return d.one("Transpose", [x.name], (*rest, x.width), len(rest), perm=perm)


def to_first(d: Drawing, x: Drawn) -> Drawn:
    perm = [0, len(x.shape), *range(1, len(x.shape))]
    return d.one("Transpose", [x.name], (x.width, *x.shape[:-1]), 0, perm=perm)


def to_line(d: Drawing, x: Drawn) -> Drawn:
    positions = int(np.prod(x.shape)) // x.width
    shape = (x.width, positions) if x.axis == 0 else (positions, x.width)
    asked = d.pick([0, *shape], [-1, *shape], [0, shape[0], -1])
    return d.one("Reshape", [x.name, d.literal(asked)], shape, int(x.axis > 0))


def linear(d: Drawing, x: Drawn) -> Drawn:
    out = d.number(1, 8)
    shape = with_width(x, out)
    if len(x.shape) == 1 and d.coin():
        across = d.number(0, 1)
        size = (out, x.width) if across else (x.width, out)
        names = [x.name, d.weight("weight", *size), *([d.weight("bias", out)] if d.coin() else [])]
        y = d.one("Gemm", names, shape, 0, transB=across)
    else:
        y = d.one("MatMul", [x.name, d.weight("weight", x.width, out)], shape, x.axis)
        if d.coin():
            y = d.like("Add", y, d.weight("bias", *(1,) * d.pick(0, 0, 0, 1), out))
    return norm(d, y) if len(x.shape) == 1 and d.coin(0.3) else y


def flatten(d: Drawing, x: Drawn) -> Drawn:
    if np.prod(x.shape) > 80:
        axes = d.literal([2, 3][: len(x.shape) - 1])
        return d.one("ReduceMean", [x.name, axes], (x.width,), 0, keepdims=0)
    if d.coin():
        return d.one("Reshape", [x.name, d.literal([0, -1])], (int(np.prod(x.shape)),), 0)
    return d.one("Flatten", [x.name], (int(np.prod(x.shape)),), 0)


def to_image(d: Drawing, x: Drawn) -> Drawn:
    if d.coin():
        return d.one("Unsqueeze", [x.name, d.literal([2, 3])], (x.width, 1, 1), 0)
    return d.one("Reshape", [x.name, d.literal([0, x.width, 1, 1])], (x.width, 1, 1), 0)


ANYWHERE = (activation, activation, scalar, per_channel, join, own_residual, concat, split, cut, gather, pad)
Step = Callable[[Drawing, Drawn], Drawn]


def steps_for(x: Drawn) -> tuple[Step, ...]:
    """What can be done to a value."""
    if x.is_image:
        return (*ANYWHERE, *6 * (conv,), norm, pool, pool, gate, product, shuffle, to_last, to_line)
    if len(x.shape) == 1:
        return (*ANYWHERE, linear, linear, linear, norm, to_image)
    if x.is_last:
        return (*ANYWHERE, linear, linear, linear, to_first, to_first, to_line)
    return (*ANYWHERE, norm, to_last, flatten)


def draw(seed: int, steps: int | None = None) -> tuple[bytes, Tensors, NDArray[np.float64]]:
    """A network's architecture, its dense tensors, and images.

    Args:
        steps: how many; drawn unless said.
    """
    d = Drawing(np.random.default_rng(seed))
    size = d.number(4, 6)
    images = d.rng.normal(size=(4, d.number(1, 3), size, size))
    d.values.append(Drawn("images", images.shape[1:], 0))
    conv(d, d.values[0], d.number(3, 10), kernel=d.pick(1, 3), stride=1, pad=d.number(0, 1))
    count = d.number(2, 14)
    for _ in range(count if steps is None else steps):
        x = d.source()
        d.pick(*steps_for(x))(d, x)
    x = d.values[-1]
    inside = d.pick(*d.values)
    if d.coin(0.9):
        x = linear(d, flatten(d, x) if len(x.shape) > 1 and x.axis == 0 else x)
    outputs = [x, *([inside] if d.coin(0.2) and inside.name != "images" else [])]
    architecture, tensors = d.finish(outputs)
    return architecture, tensors, images


def mask(tensors: Tensors, rng: np.random.Generator) -> Tensors:
    """Zeroes weights, filters, slices, layers, scales; biases become zero, strongly negative, or stay."""
    masked = {name: array.copy() for name, array in tensors.items()}
    for name, array in masked.items():
        if name.endswith((".bias", ".shift")) and rng.integers(2):
            array[rng.random(array.shape) < 0.4] = 0
            array[rng.random(array.shape) < 0.2] -= 6
        if name.endswith((".scale", ".parameter", ".slope")) and rng.integers(4) == 0:
            array[rng.random(array.shape) < 0.3] = 0
        if not name.endswith(".weight"):
            continue
        if rng.integers(2):
            array[rng.random(array.shape) < rng.choice([0.3, 0.8])] = 0
        if rng.integers(3):
            array[rng.random(array.shape[0]) < rng.choice([0.2, 0.5, 0.8])] = 0
        if rng.integers(3) == 0:
            array[:, rng.random(array.shape[1]) < rng.choice([0.2, 0.5])] = 0
        if rng.integers(20) == 0:
            array[:] = 0
    return masked
