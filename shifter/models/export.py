"""A network's structure as ONNX, without its weights (``architecture.onnx``)."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxscript import optimizer
from torch import nn

from shifter.errors import GraphError
from shifter.values import InputSpec

INPUT_NAME = "images"
OUTPUT_NAME = "logits"


def export_architecture(module: nn.Module, input_spec: InputSpec) -> bytes:
    """The inference graph of ``module`` as a serialised ONNX model that holds no weights.

    The one input ``images`` is float32 (batch, channels, height, width) with a dynamic batch; the
    one output ``logits`` is (batch, classes). Every parameter and buffer that inference reads is an
    initializer under its ``state_dict`` name, stored as an external tensor whose ``location`` is
    that name and whose offset is 0; other constants are inline. The same module gives the same
    bytes on any machine.

    Raises:
        GraphError: if the module cannot be traced on images of this shape, or its graph loses the
            name of a tensor.
    """
    was_training = module.training
    module.eval()
    try:
        model = _trace(module, input_spec)
    finally:
        module.train(was_training)
    weights = module.state_dict().keys()
    # A transposed weight would become a constant: a copy of it under another name.
    optimizer.fold_constants(model, should_fold=lambda node: False if _reads(node, weights) else None)
    RemoveUnusedNodesPass()(model)
    _drop_weights(model, module)
    _drop_notes(model)
    serialised: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
    return serialised


def _trace(module: nn.Module, input_spec: InputSpec) -> ir.Model:
    """The graph as torch's exporter writes it: ``optimize=False`` keeps batch norm and every name."""
    # Two images: torch would take a batch of one for a constant.
    images = torch.zeros(2, *input_spec.shape)
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
        channels, height, width = input_spec.shape
        raise GraphError(
            f"{type(module).__name__} cannot be exported for images of "
            f"{channels}x{height}x{width}: {str(error).strip().splitlines()[0]}"
        ) from error
    assert program is not None
    return program.model


def _reads(node: ir.Node, names: Collection[str]) -> bool:
    return any(value is not None and value.name in names for value in node.inputs)


def _drop_weights(model: ir.Model, module: nn.Module) -> None:
    """Turns each initializer that is a tensor of ``module`` into an external one of the same name."""
    missing = {
        name for name in module.state_dict() if not name.endswith("num_batches_tracked")
    } - model.graph.initializers.keys()
    if missing:
        raise GraphError(
            f"the exported graph of {type(module).__name__} has no initializer for "
            f"{', '.join(sorted(missing))}: every tensor of the network has to be read by its forward"
        )
    state = module.state_dict()
    for name, value in model.graph.initializers.items():
        if name not in state:
            continue
        assert value.const_value is not None
        value.const_value = ir.ExternalTensor(
            location=name,
            offset=0,
            length=value.const_value.nbytes,
            dtype=value.const_value.dtype,
            shape=ir.Shape(state[name].shape),
            name=name,
        )


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
