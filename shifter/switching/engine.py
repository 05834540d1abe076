"""The engine that runs a variant: ONNX Runtime, fed with weights from memory."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from shifter.errors import EngineError
from shifter.switching.denormals import flushed_denormals
from shifter.switching.providers import CPU, execution_provider, short_name
from shifter.values import Tensors

# ONNX Runtime's exceptions have no base but Exception: these are the ones its C++ side raises.
_STATE = onnxruntime.capi.onnxruntime_pybind11_state
_REFUSALS = (
    _STATE.EPFail,
    _STATE.EngineError,
    _STATE.Fail,
    _STATE.InvalidArgument,
    _STATE.InvalidGraph,
    _STATE.InvalidProtobuf,
    _STATE.NoSuchFile,
    _STATE.NotImplemented,
    _STATE.RuntimeException,
    UnicodeDecodeError,  # of a message that quotes a graph
)
_ERRORS_ONLY = 3
_FULL = re.compile("failed to allocate|bad.alloc", re.IGNORECASE)


class _Loaded(NamedTuple):
    """A session, and the tensors whose memory it reads; whoever runs it holds both."""

    session: onnxruntime.InferenceSession
    tensors: Tensors


class OnnxEngine:
    """One variant, ready to answer; safe to call from several threads at once.

    The graph is weightless: every initializer is external, its ``location`` being its own name.
    The weights are handed to ONNX Runtime as if they were files of those names; a location that is
    not among them is refused, so a graph cannot make the process open a file. What else a graph of
    unknown origin may do is for `shifter.graph_check`.

    Building takes about a millisecond for each megabyte of weights, most of it spent on laying them
    out anew for the processor. A ``quick`` engine reads the caller's arrays where they are: it is built
    in a few milliseconds, and its answers take from as long to twice as long. `optimise` then makes of it
    what it would have been.

    Args:
        graph: the ONNX model, with one float32 input (batch, channels, height, width) and one output.
        tensors: the weights by name; not to be changed while a quick engine is not optimised.
        threads: cores that one call may use.
        providers: ONNX Runtime's execution providers, the preferred one first
            (`shifter.switching.providers`).
        quick: build it quickly; on the CPU only, where it makes a difference.

    Raises:
        EngineError: if ONNX Runtime cannot run this graph with these tensors, or has no such provider.
        MemoryError: if there is not enough of it now.
    """

    def __init__(
        self,
        graph: bytes,
        tensors: Tensors,
        *,
        threads: int = 1,
        providers: Sequence[str] = (CPU,),
        quick: bool = False,
    ) -> None:
        self._graph, self._threads, self._providers = graph, threads, tuple(providers)
        self.is_quick = quick and self._providers == (CPU,)
        """Whether `optimise` would make it faster."""
        if not tensors:
            raise EngineError("a variant without tensors: its graph could only read them from files")
        self._loaded = self._load(tensors, quick=self.is_quick)
        session = self._loaded.session
        inputs, outputs = session.get_inputs(), session.get_outputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or len(outputs) != 1:
            raise EngineError(
                "a variant has one input (batch, channels, height, width) and one output, not "
                f"{[(i.name, i.shape) for i in inputs]} and {[o.name for o in outputs]}"
            )
        self._input, self._output = inputs[0].name, outputs[0].name

    @property
    def providers(self) -> tuple[str, ...]:
        """What answers: ONNX Runtime goes on without one whose libraries or device it does not find."""
        return tuple(map(short_name, self._loaded.session.get_providers()))

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits, float32 (batch, classes), of normalised float32 images (batch, channels, height, width).

        Raises:
            EngineError: if the images do not fit the network's input, or are not answered one by one.
            MemoryError: if there is not enough of it now.
        """
        loaded = self._loaded  # held until the answer is there, whatever `optimise` does meanwhile
        try:
            with flushed_denormals():
                (logits,) = loaded.session.run([self._output], {self._input: images})
        except _REFUSALS as problem:
            kind = _kind(problem)
            raise kind(
                f"the variant cannot answer {images.dtype} images of shape {images.shape}: {problem}"
            ) from problem
        if logits.shape[:1] != images.shape[:1]:
            raise EngineError(
                f"the variant answers {len(images)} images with an array of shape {logits.shape}"
            )
        return cast("NDArray[np.float32]", logits)

    def optimise(self) -> None:
        """Builds a quick engine's session anew with every optimisation, and lets go of the tensors.

        Requests are answered meanwhile. Takes the memory of both for so long.

        Raises:
            EngineError: if that fails; the quick one goes on answering, and may be optimised yet.
        """
        if self.is_quick:
            self._loaded = self._load(self._loaded.tensors, quick=False)
            self.is_quick = False

    def _load(self, tensors: Tensors, *, quick: bool) -> _Loaded:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = _ERRORS_ONLY
        # Weights of a sparse network drift into denormals, which slow a CPU down many times over.
        # This is for the pool of a session of several threads; `flushed_denormals`, for the caller.
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        # Waiting threads would burn the cores that the server needs.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if quick:
            # The next level lays weights out anew; prepacking copies those of linear layers.
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
            options.add_session_config_entry("session.disable_prepacking", "1")
            options.add_session_config_entry("session.use_external_initializer_file_buffers_directly", "1")
        files = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
        try:
            options.add_external_initializers_from_files_in_memory(
                list(files), list(files.values()), [tensor.nbytes for tensor in files.values()]
            )
            with flushed_denormals():  # which also undoes what the first session does to this thread
                session = onnxruntime.InferenceSession(
                    self._graph,
                    options,
                    providers=[execution_provider(name) for name in self._providers],
                    enable_fallback=0,
                )
        except _REFUSALS as problem:
            raise _kind(problem)(f"ONNX Runtime cannot load the variant: {problem}") from problem
        return _Loaded(session, files if quick else {})


def _kind(problem: Exception) -> type[EngineError | MemoryError]:
    """Want of memory passes; what else ONNX Runtime says is the graph's fault, or the images'."""
    return MemoryError if _FULL.search(str(problem)) else EngineError
