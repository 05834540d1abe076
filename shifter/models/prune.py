"""``shifter.prune``: the exact reduction of a torch network, to a smaller one of the same class.

Planned on the network's graph, applied to a copy by the names of its tensors, proved on images.
Nothing here is distributed: it is the paper's one-time optimisation of a network that exists already.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shifter.errors import CheckpointError, GraphError, InexactError
from shifter.models.apply import apply_plan, misfits
from shifter.models.export import Exported
from shifter.models.exports import cached_export
from shifter.models.fixed import failing_lines, keep, operators_at, readers, reasons, reasons_told, told
from shifter.models.plain import Plain, plain_copy
from shifter.models.weights import prunable_names
from shifter.onnx_prune import PrunedGraph, prune_graph
from shifter.prune_report import PruneReport, layer_reports
from shifter.pruning.exactness import relative_error
from shifter.pruning.plan import PrunePlan, plan_round
from shifter.pruning.rebuild import rebuild
from shifter.values import CompressionRatio, Exactness

Arrays = dict[str, NDArray[Any]]

EXAMPLES, RANDOM = 4, 4
"""Images on which a result is proved: as many of those given, and random ones of their mean and spread."""

_ROUNDING = 1e-12
"""What float64's rounding alone may change of the answers, relative to their size."""

# What code that meets another size than it expects may raise.
_FAILURES = (RuntimeError, ValueError, TypeError, IndexError, AssertionError, AttributeError)


@dataclass(frozen=True)
class PruneResult:
    """A reduced network.

    Args:
        model: of the original's class, on its device, in its dtype and mode.
        plan: what was done to it. Code allows less than a graph does, so ``onnx_plan`` may remove more.
        relative_error: of ``model`` before its one rounding to the original's dtype, in float64, on the
            example images and random ones; see :mod:`shifter.pruning.exactness`.
    """

    model: nn.Module
    plan: PrunePlan
    report: PruneReport
    relative_error: float
    _make_graph: Callable[[], PrunedGraph]

    @cached_property
    def graph(self) -> PrunedGraph:
        """The network reduced as a graph, float32; made and proved when it is first asked for.

        Raises:
            InexactError: if it does not compute what the original computes.
        """
        return self._make_graph()

    @property
    def onnx(self) -> bytes:
        """The reduced ONNX model with its weights inside; its batch is dynamic."""
        return self.graph.model()

    @property
    def onnx_plan(self) -> PrunePlan:
        return self.graph.plan

    def save_onnx(self, path: str | Path) -> None:
        """Writes :attr:`onnx`."""
        Path(path).write_bytes(self.onnx)


def prune(
    model: nn.Module,
    example_inputs: Tensor | Sequence[Tensor],
    *,
    round_to: int = 8,
    ratio: float | None = None,
) -> PruneResult:
    """Removes from ``model`` what its zeros make removable; its answers stay the same.

    Filters, channels and neurons that are zero, constant or unread are removed with all that only
    they needed; what constants contributed goes on being counted. That holds in evaluation mode: batch
    norms that follow a convolution are folded into it, so training goes on without them. Masks of
    ``torch.nn.utils.prune`` and reparametrisations become plain parameters. ``model`` is not changed.
    Code that fixes sizes by hand is found by running it, and what it touches stays as wide as it is.

    Tracing takes seconds, and is done once for networks of the same structure.

    Args:
        model: a classifier: one tensor of images in, one tensor out. float32 or float64.
        example_inputs: images (batch, channels, height, width), or a tuple of just these.
        round_to: widths are rounded up to a multiple of this.
        ratio: NOT EXACT: keep one in ``ratio`` weights of convolutions and linear layers, the largest
            of the whole network, before anything else. Everything then refers to the masked network.

    Raises:
        GraphError: if the model cannot be copied, run, or traced; if ``example_inputs`` are no images;
            if its code fixes sizes in a way that leaves nothing to reduce (the line is named).
        CheckpointError: if weights are NaN or infinite.
        InexactError: if the result would not compute what the model computes; nothing is returned.
    """
    given = _images(example_inputs)
    plain = plain_copy(model)
    if ratio is not None:
        _mask(plain.module, CompressionRatio(ratio))
    _require_finite(plain.module)
    images = _proof(given)
    exact = copy.deepcopy(plain.module).double()
    reference = _reference(exact, images)
    exported = cached_export(plain.module, (given.shape[1], given.shape[2], given.shape[3]))
    arrays = _arrays(plain.module, exported)
    reduced, plan, fixed = _reduce(exact, exported, arrays, images, reference.shape, round_to)
    error = relative_error(_answers(reduced, images), reference)
    warning = None
    if not error <= Exactness.FLOAT64_BOUND:
        warning = _drowned(plain.module, images, reference)
        if warning is None or not _is_rounding(_answers(reduced, images), reference):
            raise InexactError(_inexact(type(model).__name__, error))
    report = PruneReport(
        layers=tuple(
            replace(layer, idle=reasons_told(layer.idle))
            for layer in layer_reports(plan, _parameters(plain.module), _parameters(reduced))
        ),
        parameters=(_count(plain.module), _count(reduced)),
        relative_error=error,
        untouched=reasons(plan.untouched),
        fixed=fixed,
        unread=exported.unread,
        computed=plain.computed,
        ratio=ratio,
        warning=warning,
    )

    def make_graph() -> PrunedGraph:
        from shifter.switching.engine import OnnxEngine

        return prune_graph(
            exported.architecture,
            arrays,
            images.numpy().astype(np.float32),
            lambda graph, tensors, part: OnnxEngine(graph, tensors).run(part),
            round_to=round_to,
        )

    return PruneResult(_finish(reduced, plain), plan, report, error, make_graph)


def _reduce(
    exact: nn.Module,
    exported: Exported,
    arrays: Arrays,
    images: Tensor,
    wanted: tuple[int, ...],
    round_to: int,
) -> tuple[nn.Module, PrunePlan, tuple[str, ...]]:
    """A reduced copy of ``exact`` that runs, its plan, and the lines that had to be left alone for it."""
    kept: frozenset[str] = frozenset()
    fixed: list[str] = []
    while True:
        architecture = keep(exported.architecture, kept)
        plan = plan_round(architecture, arrays, round_to, legality="torch")
        foreign = readers(architecture, misfits(exact, plan)) - kept
        if foreign:
            kept |= foreign
            continue
        reduced = copy.deepcopy(exact)
        rebuilt = rebuild(plan, arrays, np.float64)
        apply_plan(reduced, plan, {name: torch.from_numpy(array) for name, array in rebuilt.items()})
        problem = _trouble(reduced, images, wanted)
        if problem is None:
            return reduced, plan, tuple(fixed)
        lines = failing_lines(problem, reduced)
        found = operators_at(lines, exported.origins, kept)
        if found is None or not plan.layers:
            raise GraphError(
                f"{type(exact).__name__} fixes sizes by hand, so it cannot be made smaller: "
                f"{told(lines)} "
                f"({type(problem).__name__}: {_first_line(problem)}). Compute the size from the tensor "
                "there, or reduce it as ONNX, which needs no code: export it, then python -m jobs.prune"
            ) from problem
        line, operators = found
        fixed.append(told(lines, line))
        kept |= operators


def _drowned(module: nn.Module, images: Tensor, reference: NDArray[np.float64]) -> str | None:
    """That float32 cannot carry the original, whose answers hardly vary; None if it can."""
    dtype = next(module.parameters()).dtype
    network = module if dtype == torch.float32 else copy.deepcopy(module).float()
    found = relative_error(_answers(network, images.float()), reference)
    if found <= Exactness.FLOAT32_BOUND:
        return None
    return (
        f"its answers hardly depend on the image: float32 by itself is {found:.1e} away from the network "
        "in float64, so little is proved; give a trained network, or images like those it was trained on"
    )


def _is_rounding(answers: NDArray[np.float64], reference: NDArray[np.float64]) -> bool:
    """Whether they differ by no more than float64's rounding of the answers, however little these vary."""
    return float(np.linalg.norm(answers - reference)) <= _ROUNDING * float(np.linalg.norm(reference))


def _inexact(name: str, error: float) -> str:
    return (
        f"the reduced {name} differs from the original by {error:.1e} in float64; at most "
        f"{Exactness.FLOAT64_BOUND:.0e} is exact. Either its code computes with its own widths, or this is "
        "a fault of the reduction: nothing is returned. As ONNX it may be reducible: export it, then "
        "python -m jobs.prune"
    )


def _trouble(reduced: nn.Module, images: Tensor, wanted: tuple[int, ...]) -> Exception | None:
    try:
        answers = _answers(reduced, images)
    except _FAILURES as error:
        return error
    if answers.shape != wanted:
        return ValueError(f"answers of shape {answers.shape} instead of {wanted}")
    return None


def _require_finite(module: nn.Module) -> None:
    broken = [
        name
        for name, tensor in module.state_dict().items()
        if tensor.is_floating_point() and not bool(tensor.isfinite().all())
    ]
    if broken:
        raise CheckpointError(
            f"{', '.join(broken)}: NaN or infinite numbers, of which no reduction can be exact"
        )


def _images(example_inputs: Tensor | Sequence[Tensor]) -> Tensor:
    given = example_inputs
    if isinstance(given, list | tuple) and len(given) == 1:
        given = given[0]
    if (
        not isinstance(given, Tensor)
        or given.dim() != 4
        or not given.is_floating_point()
        or not given.numel()
    ):
        found = type(given).__name__
        if isinstance(given, Tensor):
            found = f"{str(given.dtype).removeprefix('torch.')} of shape {tuple(given.shape)}"
        raise GraphError(
            f"example_inputs is {found}: it should be one tensor of images as the network reads them, "
            "floating point of shape (batch, channels, height, width)"
        )
    if given.is_meta:
        raise GraphError("example_inputs is on meta, without numbers: give images on the CPU or a GPU")
    return given.detach().cpu()


def _proof(given: Tensor) -> Tensor:
    """Some of the images, and random ones like them, float64; never of one kind only."""
    examples = given[:EXAMPLES].double()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(RANDOM, *given.shape[1:], generator=generator, dtype=torch.float64)
    spread = float(examples.std()) if examples.numel() > 1 else 0.0
    # float32 numbers, so that every form of the network is asked about the same images.
    random = (float(examples.mean()) + (spread or 1.0) * noise).float().double()
    return torch.cat([examples, random])


def _answers(network: nn.Module, images: Tensor) -> NDArray[np.float64]:
    with torch.no_grad():
        answers = network(images)
    if not isinstance(answers, Tensor):
        raise TypeError(f"answered with a {type(answers).__name__}")
    found: NDArray[np.float64] = answers.numpy()
    return found


def _reference(exact: nn.Module, images: Tensor) -> NDArray[np.float64]:
    """What the original answers in float64, where that can be had."""
    name, size = type(exact).__name__, "x".join(map(str, images.shape[1:]))
    try:
        reference = _answers(exact, images)
    except _FAILURES as error:
        raise GraphError(
            f"{name} cannot answer images of {size} in float64 with one tensor "
            f"({type(error).__name__}: {_first_line(error)}): give images of the size and channels that it "
            "reads; a network that answers otherwise should be wrapped in one that returns one tensor"
        ) from error
    if reference.ndim == 0 or len(reference) != len(images):
        raise GraphError(
            f"{name} answers {len(images)} images of {size} with a tensor of shape {reference.shape}: "
            "its first axis should be that of the images"
        )
    return reference


def _arrays(module: nn.Module, exported: Exported) -> Arrays:
    """What the graph reads, by name."""
    unread = set(exported.unread)
    return {
        name: tensor.detach().numpy()
        for name, tensor in module.state_dict().items()
        if name not in unread and not name.endswith("num_batches_tracked")
    }


def _mask(module: nn.Module, ratio: CompressionRatio) -> None:
    from shifter.training.ranking import dense_mask, rank_by_magnitude

    names = prunable_names(module)
    parameters = {name: module.get_parameter(name) for name in names}
    arrays = {name: parameter.detach().numpy() for name, parameter in parameters.items()}
    mask = rank_by_magnitude(arrays, dense_mask(arrays, names), ratio)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter[torch.from_numpy(~mask[name])] = 0.0


def _finish(reduced: nn.Module, plain: Plain) -> nn.Module:
    """Back to the dtypes, the mode and the device of the original; numbers are rounded once, here."""
    before = (*plain.module.named_parameters(), *plain.module.named_buffers())
    dtypes = {name: tensor.dtype for name, tensor in before}
    for path, part in reduced.named_modules():
        part.training = plain.training.get(path, part.training)
        for tensors in (part._parameters, part._buffers):
            for key, tensor in tensors.items():
                if tensor is not None and tensor.is_floating_point():
                    name = f"{path}.{key}" if path else key
                    tensor.data = tensor.data.to(dtypes.get(name, plain.dtype))
    return reduced.to(plain.device)


def _parameters(network: nn.Module) -> Arrays:
    named = network.named_parameters(remove_duplicate=False)
    return {name: parameter.detach().numpy() for name, parameter in named}


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0]
