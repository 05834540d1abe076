"""The reference engine: a variant's graph, run operator by operator in eager torch.

Nothing imports it until it is asked for (`shifter.switching.engines`), since it brings torch.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shifter.errors import EngineError, GraphError
from shifter.onnx_proto import DTYPES, EXTERNAL, parse
from shifter.switching.denormals import flushed_denormals
from shifter.switching.torch_operators import OPERATORS, Attributes, Operator
from shifter.values import Tensors

_OLDEST_OPSET: Final = 13
"""Before it, axes and sizes were attributes, and softmax was over all axes that follow."""


def is_here(device: str) -> bool:
    """Whether this node's torch can compute on ``cpu`` or ``cuda``.

    Raises:
        EngineError: if it is neither.
    """
    if device not in ("cpu", "cuda"):
        raise EngineError(f"the engine 'torch' runs on 'cpu' or 'cuda', not on {device!r}")
    return device == "cpu" or torch.cuda.is_available()


class _Node:
    """One operator of the graph: what it computes, of what, and what is not needed after it."""

    def __init__(self, proto: Any, device: str) -> None:
        if proto.op_type not in OPERATORS or proto.domain not in ("", "ai.onnx"):
            raise EngineError(
                f"operator {proto.name or proto.output[0]!r} is {proto.domain or 'ONNX'}'s {proto.op_type}, "
                f"which the engine 'torch' does not have: it has {', '.join(sorted(OPERATORS))}"
            )
        self.name, self.op_type = proto.name, proto.op_type
        self.compute: Operator = OPERATORS[proto.op_type]
        self.inputs, self.outputs = tuple(proto.input), tuple(proto.output)
        self.attributes = Attributes(
            {a.name: _attribute(a, device) for a in proto.attribute}, len(self.outputs)
        )
        self.last: tuple[str, ...] = ()


class TorchEngine:
    """One variant in eager torch, as `shifter.switching.engine.OnnxEngine`: NumPy in, NumPy out.

    Args:
        graph: a weightless ONNX model of opset 13 or newer. tensors: its weights by name.
        threads: cores that torch may use, of which there is one number for the process.
        device: ``cpu`` or ``cuda``.

    Raises:
        EngineError: if it cannot run the graph, with the operator that it does not have.
    """

    def __init__(self, graph: bytes, tensors: Tensors, *, threads: int = 1, device: str = "cpu") -> None:
        torch.set_num_threads(threads)
        self._device = device
        try:
            model = parse(graph)
        except GraphError as problem:
            raise EngineError(str(problem)) from problem
        for imported in model.opset_import:
            if imported.domain in ("", "ai.onnx") and imported.version < _OLDEST_OPSET:
                raise EngineError(
                    f"the graph is of opset {imported.version}; the engine 'torch' reads {_OLDEST_OPSET} "
                    "and newer"
                )
        self._constants: dict[str, Tensor | None] = {"": None}
        for tensor in model.graph.initializer:
            content = _content(tensor, tensors)
            self._constants[tensor.name] = torch.from_numpy(content.copy()).to(device)
        self._nodes = [_Node(node, device) for node in model.graph.node]
        inputs = [value for value in model.graph.input if value.name not in self._constants]
        outputs = [value.name for value in model.graph.output]
        if len(inputs) != 1 or len(inputs[0].type.tensor_type.shape.dim) != 4 or len(outputs) != 1:
            raise EngineError(
                "a variant has one input (batch, channels, height, width) and one output, not "
                f"{[value.name for value in inputs]} and {outputs}"
            )
        self._input, self._output = inputs[0].name, outputs[0]
        sizes = inputs[0].type.tensor_type.shape.dim
        self._sizes = tuple(d.dim_value or None for d in sizes)
        self._mark_last_uses()

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits, float32 (batch, classes), of normalised float32 images (batch, channels, height, width).

        Raises:
            EngineError: if the images do not fit the network's input.
        """
        fits = len(images.shape) == 4 and all(
            size in (None, found) for size, found in zip(self._sizes, images.shape, strict=True)
        )
        if not fits or images.dtype != np.float32:
            raise EngineError(
                f"the variant cannot answer {images.dtype} images of shape {images.shape}: "
                f"it reads float32 of {self._sizes}"
            )
        values = self._constants | {self._input: torch.tensor(images, device=self._device)}
        with torch.inference_mode(), flushed_denormals():
            for node in self._nodes:
                try:
                    made = node.compute(node.attributes, *(values[name] for name in node.inputs))
                except (RuntimeError, ValueError, TypeError, IndexError, KeyError) as problem:
                    raise EngineError(
                        f"the variant cannot answer images of shape {images.shape}: operator "
                        f"{node.name!r} ({node.op_type}) fails: {problem}"
                    ) from problem
                values.update(zip(node.outputs, made, strict=False))
                for name in node.last:
                    del values[name]
            answer = values[self._output]
        assert answer is not None
        logits: NDArray[np.float32] = answer.cpu().numpy()
        return logits

    def _mark_last_uses(self) -> None:
        """So that no activation is kept longer than it is read."""
        kept = {*self._constants, self._output}
        for node in reversed(self._nodes):
            names = {*node.inputs, *node.outputs} - kept
            node.last = tuple(sorted(names))
            kept |= names


def _attribute(proto: Any, device: str) -> Any:
    match proto.type:
        case 1:
            return proto.f
        case 2:
            return proto.i
        case 3:
            return proto.s.decode()
        case 4:
            return torch.from_numpy(_content(proto.t, {}).copy()).to(device)
        case 6:
            return list(proto.floats)
        case 7:
            return list(proto.ints)
    raise EngineError(
        f"attribute {proto.name!r} is of type {proto.type}, which the engine 'torch' does not read"
    )


def _content(tensor: Any, tensors: Tensors) -> NDArray[Any]:
    """Elements of a tensor: those of ``tensors`` under its name, or its own.

    Raises:
        EngineError: if they are missing, or not of the shape that the graph says.
    """
    dtype, shape = DTYPES.get(tensor.data_type), tuple(tensor.dims)
    if dtype is None:
        raise EngineError(
            f"tensor {tensor.name!r} has the element type {tensor.data_type}, which is not read"
        )
    if tensor.data_location == EXTERNAL:
        if tensor.name not in tensors:
            raise EngineError(f"the graph reads a tensor {tensor.name!r}, which the variant does not have")
        content = np.ascontiguousarray(tensors[tensor.name])
        if (content.dtype.name, content.shape) != (dtype, shape):
            raise EngineError(
                f"the graph takes {tensor.name!r} for {dtype} of shape {shape}, not "
                f"{content.dtype} of shape {content.shape}"
            )
        return content
    if tensor.raw_data:
        return np.frombuffer(tensor.raw_data, np.dtype(dtype).newbyteorder("<")).astype(dtype).reshape(shape)
    typed = {
        "float32": tensor.float_data, "float64": tensor.double_data, "int64": tensor.int64_data,
        "uint32": tensor.uint64_data, "uint64": tensor.uint64_data,
    }.get(dtype, tensor.int32_data)  # fmt: skip
    if dtype == "float16":
        return np.array(typed, np.uint16).view(np.float16).reshape(shape)
    return np.array(typed, dtype).reshape(shape)
