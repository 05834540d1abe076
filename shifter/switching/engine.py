"""The engine that runs a variant: ONNX Runtime on the CPU, fed with weights from memory."""

from __future__ import annotations

from typing import cast

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from shifter.errors import EngineError
from shifter.switching.denormals import flushed_denormals
from shifter.values import Tensors

# ONNX Runtime's exceptions have no base but Exception: these are the ones its C++ side raises.
_REFUSALS = (
    onnxruntime.capi.onnxruntime_pybind11_state.Fail,
    onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument,
    onnxruntime.capi.onnxruntime_pybind11_state.InvalidGraph,
    onnxruntime.capi.onnxruntime_pybind11_state.InvalidProtobuf,
    onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented,
    onnxruntime.capi.onnxruntime_pybind11_state.RuntimeException,
)
_ERRORS_ONLY = 3


class OnnxEngine:
    """One variant, ready to answer; safe to call from several threads at once.

    The graph is weightless: every initializer is external, its ``location`` being its own name.
    The weights are handed to ONNX Runtime as if they were files of those names; a location that is
    not among them is refused, so a graph cannot make the process open a file. ONNX Runtime copies
    them while the session is built, and they are kept alive until then.

    Args:
        graph: the ONNX model, with one float32 input (batch, channels, height, width) and one output.
        tensors: the weights by name.
        threads: cores that one call may use.

    Raises:
        EngineError: if ONNX Runtime cannot run this graph with these tensors.
    """

    def __init__(self, graph: bytes, tensors: Tensors, *, threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = _ERRORS_ONLY
        # Weights of a sparse network drift into denormals, which slow a CPU down many times over.
        # This is for the pool of a session of several threads; `flushed_denormals`, for the caller.
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        # Waiting threads would burn the cores that the server needs.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if not tensors:
            raise EngineError("a variant without tensors: its graph could only read them from files")
        files = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
        try:
            options.add_external_initializers_from_files_in_memory(
                list(files), list(files.values()), [tensor.nbytes for tensor in files.values()]
            )
            with flushed_denormals():  # which also undoes what the first session does to this thread
                self._session = onnxruntime.InferenceSession(
                    graph, options, providers=["CPUExecutionProvider"]
                )
        except _REFUSALS as problem:
            raise EngineError(f"ONNX Runtime cannot load the variant: {problem}") from problem
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or len(outputs) != 1:
            raise EngineError(
                "a variant has one input (batch, channels, height, width) and one output, not "
                f"{[(i.name, i.shape) for i in inputs]} and {[o.name for o in outputs]}"
            )
        self._input, self._output = inputs[0].name, outputs[0].name

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits, float32 (batch, classes), of normalised float32 images (batch, channels, height, width).

        Raises:
            EngineError: if the images do not fit the network's input.
        """
        try:
            with flushed_denormals():
                (logits,) = self._session.run([self._output], {self._input: images})
        except _REFUSALS as problem:
            raise EngineError(
                f"the variant cannot answer {images.dtype} images of shape {images.shape}: {problem}"
            ) from problem
        return cast("NDArray[np.float32]", logits)
