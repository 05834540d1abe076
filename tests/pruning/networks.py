"""Random small networks for the tests: built and run at once, so that batch norm has seen data.

The two families of the issue at hand: plain convolutional nets, and residual nets with identity
and projection shortcuts. No torch: an architecture is an ONNX model, a checkpoint is named arrays.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto, helper

from shifter.pruning.graph import weightless

Array = NDArray[np.float64]


@dataclass
class Builder:
    """Adds operators to a graph and, alongside, computes them for a few images."""

    rng: np.random.Generator
    images: Array
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    values: dict[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.values["images"] = self.images

    def add(self, op: str, inputs: list[str], value: Array, **attributes: object) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=f"{op}_{len(self.nodes)}", **attributes))
        self.values[name] = value
        return name

    def tensor(self, name: str, value: Array) -> str:
        self.tensors[name] = np.ascontiguousarray(value, dtype=np.float32)
        return name

    def conv(self, source: str, out: int, *, kernel: int = 3, stride: int = 1, pad: int = 1,
             bias: bool = False, norm: bool = True) -> str:  # fmt: skip
        x = self.values[source]
        prefix = f"l{len(self.nodes)}"
        weight = self.rng.normal(size=(out, x.shape[1], kernel, kernel)) / np.sqrt(x.shape[1] * kernel**2)
        names = [source, self.tensor(f"{prefix}.weight", weight)]
        offset = np.zeros(out)
        if bias:
            offset = 0.3 * self.rng.normal(size=out)
            names.append(self.tensor(f"{prefix}.bias", offset))
        padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), axis=(2, 3))
        windows = windows[:, :, ::stride, ::stride]
        y = np.einsum("nihwkl,oikl->nohw", windows, weight, optimize=True) + offset.reshape(-1, 1, 1)
        result = self.add(
            "Conv", names, y, kernel_shape=[kernel, kernel], strides=[stride, stride], pads=[pad] * 4
        )
        return self.norm(result, f"{prefix}n") if norm else result

    def norm(self, source: str, prefix: str) -> str:
        """Batch norm calibrated on the images, then scale and shift perturbed."""
        x = self.values[source]
        mean, var = x.mean(axis=(0, 2, 3)), x.var(axis=(0, 2, 3)) + 1e-3
        scale = self.rng.normal(1.0, 0.3, size=mean.size)
        shift = self.rng.normal(0.1, 0.3, size=mean.size)
        names = [
            self.tensor(f"{prefix}.{key}", value)
            for key, value in (
                ("weight", scale),
                ("bias", shift),
                ("running_mean", mean),
                ("running_var", var),
            )
        ]
        wide = [v.reshape(-1, 1, 1) for v in (scale, shift, mean, var)]
        y = (x - wide[2]) / np.sqrt(wide[3] + 1e-5) * wide[0] + wide[1]
        return self.add("BatchNormalization", [source, *names], y, epsilon=1e-5)

    def activation(self, source: str, op: str = "Relu") -> str:
        functions = {
            "Relu": lambda x: np.maximum(x, 0),
            "LeakyRelu": lambda x: np.where(x < 0, 0.01 * x, x),
            "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
            "Tanh": np.tanh,
            "HardSwish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
            "HardSigmoid": lambda x: np.clip(0.2 * x + 0.5, 0, 1),
        }
        return self.add(op, [source], functions[op](self.values[source]))

    def pool(self, source: str, op: str = "MaxPool", pad: int = 0) -> str:
        x = self.values[source]
        filler = -np.inf if op == "MaxPool" else 0.0
        wide = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)), constant_values=filler)
        windows = np.lib.stride_tricks.sliding_window_view(wide, (2, 2), axis=(2, 3))[:, :, ::2, ::2]
        y = windows.max(axis=(4, 5)) if op == "MaxPool" else windows.mean(axis=(4, 5))
        extra = {"count_include_pad": 1} if op == "AveragePool" else {}
        return self.add(op, [source], y, kernel_shape=[2, 2], strides=[2, 2], pads=[pad] * 4, **extra)

    def join(self, left: str, right: str) -> str:
        return self.add("Add", [left, right], self.values[left] + self.values[right])

    def flatten(self, source: str, *, average: bool) -> str:
        if average:
            y = self.values[source].mean(axis=(2, 3), keepdims=True)
            source = self.add("GlobalAveragePool", [source], y)
        x = self.values[source]
        return self.add("Flatten", [source], x.reshape(len(x), -1), axis=1)

    def linear(self, source: str, out: int) -> str:
        x = self.values[source]
        prefix = f"l{len(self.nodes)}"
        weight = self.rng.normal(size=(out, x.shape[1])) / np.sqrt(x.shape[1])
        bias = 0.1 * self.rng.normal(size=out)
        names = [source, self.tensor(f"{prefix}.weight", weight), self.tensor(f"{prefix}.bias", bias)]
        return self.add("Gemm", names, x @ weight.T + bias, transB=1)

    def finish(self, output: str) -> tuple[bytes, dict[str, NDArray[np.float32]]]:
        """The weightless architecture with every shape, and the dense tensors."""
        for node in self.nodes:
            for position, name in enumerate(node.output):
                node.output[position] = "logits" if name == output else name
            for position, name in enumerate(node.input):
                node.input[position] = "logits" if name == output else name
        shapes = {"logits" if k == output else k: ["batch", *v.shape[1:]] for k, v in self.values.items()}
        info = {k: helper.make_tensor_value_info(k, TensorProto.FLOAT, shape) for k, shape in shapes.items()}
        inner = [v for k, v in info.items() if k not in ("images", "logits")]
        weights = [
            ir.to_proto(weightless(name, array.shape).const_value) for name, array in self.tensors.items()
        ]
        graph = helper.make_graph(
            self.nodes, "network", [info["images"]], [info["logits"]], initializer=weights, value_info=inner
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        return model.SerializeToString(), dict(self.tensors)


def vgg(rng: np.random.Generator) -> Builder:
    """A plain net: padded and unpadded convolutions, with and without norm and bias, then linear layers."""
    builder = Builder(rng, rng.normal(size=(4, int(rng.integers(1, 4)), 8, 8)))
    op = str(rng.choice(["Relu", "Relu", "Relu", "LeakyRelu", "Sigmoid", "HardSwish", "Tanh", "HardSigmoid"]))
    x = "images"
    for _ in range(int(rng.integers(1, 5))):
        pad = int(rng.integers(0, 2))
        kernel = int(rng.choice([1, 3])) if builder.values[x].shape[2] >= 3 else 1
        x = builder.conv(x, int(rng.integers(1, 13)), kernel=kernel, pad=pad if kernel == 3 else 0,
                         bias=bool(rng.integers(2)), norm=bool(rng.integers(2)))  # fmt: skip
        x = builder.activation(x, op)
        if builder.values[x].shape[2] >= 4 and rng.integers(2):
            x = builder.pool(x, str(rng.choice(["MaxPool", "AveragePool"])), pad=int(rng.integers(0, 2)))
    x = builder.flatten(x, average=bool(rng.integers(2)))
    if rng.integers(2):
        x = builder.activation(builder.linear(x, int(rng.integers(2, 13))), op)
    builder.linear(x, 5)
    return builder


def resnet(rng: np.random.Generator) -> Builder:
    """A residual net: identity shortcuts, and projections where the shape changes."""
    builder = Builder(rng, rng.normal(size=(4, 3, 8, 8)))
    width = int(rng.integers(2, 9))
    x = builder.activation(builder.conv("images", width))
    for _ in range(int(rng.integers(1, 4))):
        changes = bool(rng.integers(2))
        stride = int(rng.integers(1, 3)) if changes else 1
        new = int(rng.integers(2, 9)) if changes else width
        y = builder.activation(builder.conv(x, new, stride=stride))
        y = builder.conv(y, new)
        short = builder.conv(x, new, kernel=1, stride=stride, pad=0) if changes else x
        x = builder.activation(builder.join(y, short) if rng.integers(2) else builder.join(short, y))
        width = new
    builder.linear(builder.flatten(x, average=bool(rng.integers(2))), 5)
    return builder


def random_network(
    family: str, seed: int
) -> tuple[bytes, dict[str, NDArray[np.float32]], NDArray[np.float32]]:
    """Architecture, dense tensors and images of a random member of a family (``vgg`` or ``resnet``)."""
    builder = {"vgg": vgg, "resnet": resnet}[family](np.random.default_rng(seed))
    architecture, tensors = builder.finish(builder.nodes[-1].output[0])
    return architecture, tensors, builder.images.astype(np.float32)


def mask_randomly(
    tensors: dict[str, NDArray[np.float32]], rng: np.random.Generator
) -> dict[str, NDArray[np.float32]]:
    """Zeroes single weights, whole filters, whole input slices and now and then a whole layer."""
    masked = {name: array.copy() for name, array in tensors.items()}
    for array in masked.values():
        if array.ndim < 2:
            continue
        if rng.integers(2):
            array[rng.random(array.shape) < rng.choice([0.3, 0.8])] = 0
        if rng.integers(2):
            array[rng.random(array.shape[0]) < rng.choice([0.2, 0.5])] = 0
        if rng.integers(3) == 0:
            array[:, rng.random(array.shape[1]) < rng.choice([0.2, 0.5])] = 0
        if rng.integers(24) == 0:
            array[:] = 0
        if array.size and rng.integers(2):  # weights that cancel: their sum says zero, they do not
            flat = array.reshape(array.shape[0], array.shape[1], -1)
            flat[0, 0, :] = 0
            if flat.shape[2] > 1:
                flat[0, 0, 0], flat[0, 0, 1] = 1.0, -1.0
    return masked
