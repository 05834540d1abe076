"""ONNX files, with weights inside or beside them, as an architecture and named tensors; and back."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import InlinePass, LiftConstantsToInitializersPass

from shifter.errors import CheckpointError, GraphError
from shifter.values import Tensors

Arrays = dict[str, NDArray[Any]]


def read_model(path: Path) -> tuple[bytes, Arrays]:
    """The model of an ``.onnx`` file as a weightless architecture, and its weights by name.

    The weights are the float32 constants of at least one axis; they keep their names. Weights in
    files beside it are read as well. Functions of the model's own are put in their place.

    Raises:
        GraphError: if it is no ONNX model, or not one that reads one tensor and gives one.
        CheckpointError: if the file or the weights beside it cannot be read.
    """
    model = _load(path)
    arrays: Arrays = {}
    for name, value in model.graph.initializers.items():
        assert value.const_value is not None
        try:
            content = np.array(value.const_value.numpy())
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: the weights of {name!r} cannot be read: {error}") from error
        if value.dtype != ir.DataType.FLOAT or content.ndim == 0:
            value.const_value = ir.tensor(content, name=name)
            continue
        arrays[name] = content
        value.const_value = _elsewhere(name, value.const_value)
    architecture: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
    return architecture, arrays


def read_architecture(path: Path, names: Collection[str]) -> bytes:
    """The structure in an ``.onnx`` file, in which the constants ``names`` are to come from elsewhere.

    Raises:
        GraphError: as :func:`read_model`.
        CheckpointError: if the file cannot be read.
    """
    model = _load(path)
    for name, value in model.graph.initializers.items():
        assert value.const_value is not None
        if isinstance(value.const_value, ir.ExternalTensor) or name in names:
            value.const_value = _elsewhere(name, value.const_value)
    architecture: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
    return architecture


def tensor_names(path: Path) -> tuple[str, ...]:
    """Names of the constants in an ``.onnx`` file. Raises as :func:`read_architecture`."""
    return tuple(_load(path).graph.initializers)


def require_fit(architecture: bytes, tensors: Tensors, source: str) -> None:
    """Whether there is a tensor of the right shape for each that a weightless model reads.

    Raises:
        CheckpointError: with every one that is missing or of another shape; ``source`` names the file.
    """
    problems = []
    for wanted in onnx.ModelProto.FromString(architecture).graph.initializer:
        if wanted.data_location != onnx.TensorProto.EXTERNAL:
            continue
        if wanted.name not in tensors:
            problems.append(f"{wanted.name}: missing in the file")
        elif tensors[wanted.name].shape != (shape := tuple(wanted.dims)):
            found = tensors[wanted.name].shape
            problems.append(f"{wanted.name}: shape {found} in the file, {shape} in the architecture")
    if problems:
        raise CheckpointError("\n  ".join([f"weights {source} do not fit the architecture:", *problems]))


def with_weights(graph: bytes, tensors: Tensors) -> bytes:
    """A weightless model with ``tensors`` inside it: a file that any ONNX runtime opens.

    Raises:
        GraphError: if that is more than ONNX can hold in one file (2 GiB).
    """
    model = onnx.ModelProto.FromString(graph)
    for initializer in model.graph.initializer:
        if initializer.data_location == onnx.TensorProto.EXTERNAL:
            content = np.ascontiguousarray(tensors[initializer.name])
            initializer.CopyFrom(onnx.numpy_helper.from_array(content, initializer.name))
    if model.ByteSize() >= 2**31:
        raise GraphError("the reduced model is more than 2 GiB, which an ONNX file cannot hold")
    whole: bytes = model.SerializeToString(deterministic=True)
    return whole


def images_of(architecture: bytes) -> tuple[int | None, ...]:
    """Sizes of what the model reads: (batch, channels, height, width), None where one is not fixed."""
    graph = onnx.ModelProto.FromString(architecture).graph
    own = {tensor.name for tensor in graph.initializer}
    (source,) = (value for value in graph.input if value.name not in own)
    sizes = source.type.tensor_type.shape.dim
    return tuple(d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in sizes)


def _elsewhere(name: str, tensor: ir.TensorProtocol) -> ir.ExternalTensor:
    shape = ir.Shape(tensor.shape.numpy())
    return ir.ExternalTensor(name, 0, tensor.nbytes, tensor.dtype, shape=shape, name=name)


def _load(path: Path) -> ir.Model:
    try:
        proto = onnx.load(str(path), load_external_data=False)
        model: ir.Model = ir.from_proto(proto)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except Exception as error:
        raise GraphError(f"{path} is no ONNX model, or a damaged one: {error}") from error
    if not len(model.graph) or not model.graph.outputs:
        raise GraphError(f"{path} is no ONNX model, or an empty one: it has no operator or no output")
    ir.external_data.set_base_dir(model.graph, path.parent)
    model = InlinePass()(model).model
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    graph = model.graph
    inputs = [value for value in graph.inputs if value.name not in graph.initializers]
    for kind, values in (("inputs", inputs), ("outputs", list(graph.outputs))):
        if len(values) != 1:
            names = ", ".join(str(value.name) for value in values)
            raise GraphError(f"{path} has {len(values)} {kind} ({names}): it should have one")
    graph.inputs[:] = inputs
    return model


def weight_names(architecture: bytes) -> tuple[str, ...]:
    """Weights of convolutions and linear layers: what pruning by magnitude ranks. Sorted."""
    graph = onnx.ModelProto.FromString(architecture).graph
    stored = {t.name for t in graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL}
    matrices = {t.name for t in graph.initializer if t.name in stored and len(t.dims) > 1}
    origin = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "Transpose"}
    read = {
        origin.get(name, name)
        for node in graph.node
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")
        for name in node.input[:2]
    }
    return tuple(sorted(matrices & read))
