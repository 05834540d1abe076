"""A network's structure as ONNX, without its weights (``architecture.onnx``)."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxscript import optimizer
from torch import nn

from shifter.errors import GraphError
from shifter.values import InputSpec

INPUT_NAME = "images"
OUTPUT_NAME = "logits"


Unread = Literal["refuse", "drop"]
"""What to do with tensors that inference does not read, as those of auxiliary classifiers."""


@dataclass(frozen=True)
class Origin:
    """Where an operator of the graph comes from.

    Args:
        lines: (file, line number) of the calls that led to it, the network's own ``forward`` first.
        module: name of the module in which it stands; empty for the network itself.
    """

    lines: tuple[tuple[str, int], ...]
    module: str


@dataclass(frozen=True)
class Exported:
    """An architecture, and what only the export knows of it.

    Args:
        origins: by name of the graph's operators.
        unread: names of the tensors that inference does not read, sorted.
    """

    architecture: bytes
    origins: dict[str, Origin]
    unread: tuple[str, ...]


def export_architecture(module: nn.Module, input_spec: InputSpec, *, unread: Unread = "refuse") -> bytes:
    """The inference graph of ``module`` as a serialised ONNX model that holds no weights.

    The one input ``images`` is float32 (batch, channels, height, width) with a dynamic batch; the
    one output ``logits`` is (batch, classes). Every parameter and buffer that inference reads is an
    initializer under its ``state_dict`` name, stored as an external tensor whose ``location`` is
    that name and whose offset is 0; other constants are inline. The same module gives the same
    bytes on any machine.

    Args:
        unread: ``drop`` leaves out tensors that inference does not read; otherwise they are refused.

    Raises:
        GraphError: if the module cannot be traced on images of this shape, its graph loses the
            name of a tensor, or inference does not read all of them.
    """
    exported = export_traced(module, input_spec.shape)
    if exported.unread and unread == "refuse":
        raise GraphError(
            f"the exported graph of {type(module).__name__} has no initializer for "
            f"{', '.join(exported.unread)}: every tensor of the network has to be read by its forward"
        )
    return exported.architecture


def export_traced(module: nn.Module, shape: tuple[int, int, int]) -> Exported:
    """As :func:`export_architecture`, for images of ``shape`` (channels, height, width)."""
    was_training = {name: part.training for name, part in module.named_modules()}
    module.eval()
    try:
        with _as_in_evaluation(module):
            model = _trace(module, shape)
    finally:
        for name, part in module.named_modules():
            part.training = was_training[name]
    weights = module.state_dict().keys()
    # A transposed weight would become a constant: a copy of it under another name.
    optimizer.fold_constants(model, should_fold=lambda node: False if _reads(node, weights) else None)
    RemoveUnusedNodesPass()(model)
    unread = _drop_weights(model, module)
    origins = {node.name: _origin(node) for node in model.graph if node.name}
    _drop_notes(model)
    serialised: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
    return Exported(serialised, origins, unread)


@contextmanager
def _as_in_evaluation(module: nn.Module) -> Iterator[None]:
    """RReLU is a LeakyReLU then, which torch's exporter does not know."""
    random = [part for part in module.modules() if isinstance(part, nn.RReLU)]
    for part in random:
        slope = (part.lower + part.upper) / 2
        part.forward = partial(nn.functional.leaky_relu, negative_slope=slope)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for part in random:
            del part.forward


def _trace(module: nn.Module, shape: tuple[int, int, int]) -> ir.Model:
    """The graph as torch's exporter writes it: ``optimize=False`` keeps batch norm and every name."""
    # Two images: torch would take a batch of one for a constant.
    images = torch.zeros(2, *shape)
    try:
        program = torch.onnx.export(
            module,
            (images,),
            dynamo=True,
            optimize=False,
            verbose=False,
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
    except (torch.onnx.OnnxExporterError, RuntimeError) as error:
        channels, height, width = shape
        raise GraphError(
            f"{type(module).__name__} cannot be exported for images of "
            f"{channels}x{height}x{width}: {_cause(error)}"
        ) from error
    assert program is not None
    return program.model


def _cause(error: BaseException) -> str:
    """The first line of what the exporter's report is about, which that has at its end."""
    while isinstance(error, torch.onnx.OnnxExporterError) and error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _reads(node: ir.Node, names: Collection[str]) -> bool:
    return any(value is not None and value.name in names for value in node.inputs)


def _drop_weights(model: ir.Model, module: nn.Module) -> tuple[str, ...]:
    """Turns each initializer that is a tensor of ``module`` into an external one of the same name.

    Returns the names of the tensors that have none, sorted; a second name of one that has is none.
    """
    state = module.state_dict()
    known = model.graph.initializers.keys() & state.keys()
    places = {_place(state[name]) for name in known}
    for name in known:
        value = model.graph.initializers[name]
        assert value.const_value is not None
        value.const_value = ir.ExternalTensor(
            location=name,
            offset=0,
            length=value.const_value.nbytes,
            dtype=value.const_value.dtype,
            shape=ir.Shape(state[name].shape),
            name=name,
        )
    return tuple(
        sorted(
            name
            for name in state.keys() - known
            if not name.endswith("num_batches_tracked") and _place(state[name]) not in places
        )
    )


def _place(tensor: torch.Tensor) -> tuple[object, ...]:
    """Where a tensor's numbers lie: two names of one tensor have the same."""
    return (tensor.data_ptr(), tensor.shape, tensor.stride())


def _origin(node: ir.Node) -> Origin:
    """From the exporter's notes: the stack of the traced call, and the modules around it."""
    notes = node.metadata_props
    stack = re.findall(r'File "(.*?)", line (\d+)', notes.get("pkg.torch.onnx.stack_trace", ""))
    # The innermost scope is the operator itself.
    scopes = ast.literal_eval(notes.get("pkg.torch.onnx.name_scopes", "[]"))[:-1]
    return Origin(tuple((file, int(line)) for file, line in stack), scopes[-1] if scopes else "")


def _drop_notes(model: ir.Model) -> None:
    """Removes what the exporter wrote for debugging: source lines and paths of this machine."""
    model.doc_string = None
    model.metadata_props.clear()
    model.graph.doc_string = None
    model.graph.metadata_props.clear()
    values = [*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()]
    for node in model.graph:
        node.doc_string = None
        node.metadata_props.clear()
        values.extend(node.outputs)
    for value in values:
        value.doc_string = None
        value.metadata_props.clear()
