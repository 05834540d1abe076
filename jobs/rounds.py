"""One round of phase 2, step by step, from the store and into it: plan, rebuild, prove, write.

Functions without Ray: ``jobs/reduction.py`` runs them as tasks, many at a time, or here, one after
another. What they leave in the store is a variant that is proved and not yet measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save as save_tensors

from jobs.stored import FACTS, GRAPH, PLAN, TENSORS, to_json, write_anew
from shifter.errors import CheckpointError
from shifter.pruning.cost import layer_costs
from shifter.pruning.exactness import check_exactness
from shifter.pruning.plan import LayerPlan, ParameterPlan, PrunePlan, plan_round
from shifter.pruning.profile import accuracy, count_parameters, parameter_names
from shifter.pruning.rebuild import (
    other_tensors,
    rebuild_constant,
    rebuild_graph,
    rebuild_layer,
    rebuild_parameter,
    rebuild_tensors,
)
from shifter.run import Run
from shifter.sparse import SparseCheckpoint
from shifter.switching.engine import OnnxEngine
from shifter.values import Exactness, InputSpec, LayerCost, Tensors

if TYPE_CHECKING:
    from shifter.data import Split
    from shifter.data.dataset import Pixels

Arrays = dict[str, NDArray[Any]]
Part = LayerPlan | ParameterPlan
"""What one rebuild may be given: a layer, or a parameter that is only sliced."""

TASK_BYTES = 256 * 2**10
"""Weights that one rebuild is given at least: a task costs about a millisecond by itself."""
REAL_IMAGES, RANDOM_IMAGES = 24, 8
"""Images on which each variant is proved."""


@dataclass(frozen=True)
class Facts:
    """What is known of a proved variant before it is measured; the fields are the profile's.

    Args:
        round_to: the multiple that its widths were rounded up to; no part of the profile.
    """

    round: int
    ratio: float
    dense_parameters: int
    nonzero_parameters: int
    structural_parameters: int
    tensor_bytes: int
    validation_accuracy: float
    test_accuracy: float
    exactness: Exactness
    layers: tuple[LayerCost, ...]
    round_to: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Facts:
        fields = dict(data)
        fields["exactness"] = Exactness(**fields["exactness"])
        fields["layers"] = tuple(LayerCost(**layer) for layer in fields["layers"])
        return cls(**fields)

    def for_profile(self) -> dict[str, Any]:
        """Arguments of a :class:`~shifter.values.Profile`."""
        return {name: value for name, value in vars(self).items() if name != "round_to"}


@dataclass(frozen=True)
class Evaluation:
    """Images to prove and to rate a variant on; ``proof`` normalised, the others as stored."""

    input_spec: InputSpec
    proof: NDArray[np.float32]
    validation: tuple[Pixels, NDArray[np.int64]]
    test: tuple[Pixels, NDArray[np.int64]]

    @classmethod
    def of(cls, validation: Split, test: Split, spec: InputSpec, seed: int) -> Evaluation:
        real = spec.normalise(validation.take(np.arange(min(REAL_IMAGES, len(validation)))))
        noise = np.random.default_rng(seed).uniform(0, spec.pixel_max, (RANDOM_IMAGES, *spec.shape))
        return cls(
            input_spec=spec,
            proof=np.concatenate([real, spec.normalise(noise)]),
            validation=(validation.images, validation.labels),
            test=(test.images, test.labels),
        )


def plan_checkpoint(run: Run, index: int, round_to: int) -> PrunePlan:
    """The plan for a round's checkpoint, all of which is read. Raises as ``plan_round``."""
    architecture = run.store.read(run.architecture_key)
    with _checkpoint(run, index) as checkpoint:
        return plan_round(architecture, checkpoint.tensors(), round_to)


def batches(plan: PrunePlan, task_bytes: int) -> Iterator[tuple[Part, ...]]:
    """Groups layers and parameters, in order, so that each but the last reads about ``task_bytes``."""
    parts: list[Part] = [*plan.layers, *plan.slices]
    group: list[Part] = []
    size = 0
    for part in parts:
        group.append(part)
        size += _weight_bytes(part)
        if size >= task_bytes:
            yield tuple(group)
            group, size = [], 0
    if group:
        yield tuple(group)


def _weight_bytes(part: Part) -> int:
    """About; the plan does not know a kernel's size, which mostly is 3x3."""
    if isinstance(part, ParameterPlan):
        return 4 * len(part.kept)
    return 4 * part.widths[0] * part.widths[1] * (9 if part.layer.op == "Conv" else 1) // part.layer.groups


def rebuild_batch(run: Run, index: int, parts: Sequence[Part]) -> Arrays:
    """The new tensors of some of the plan's parts; reads only theirs. In float64: the proof needs it."""
    rebuilt: Arrays = {}
    with _checkpoint(run, index) as checkpoint:
        for part in parts:
            if isinstance(part, ParameterPlan):
                tensors = {part.name: checkpoint.read(part.name)}
                rebuilt |= rebuild_parameter(part, tensors, np.float64)
            else:
                tensors = {tensor: checkpoint.read(tensor) for tensor in part.layer.tensors}
                rebuilt |= rebuild_layer(part, tensors, np.float64)
    return rebuilt


def prove_and_write(
    run: Run, index: int, name: str, round_to: int, plan: PrunePlan, evaluation: Evaluation,
    rebuilt: Iterable[Arrays],
) -> Facts:  # fmt: skip
    """Proves a round's variant, rates it, and only then writes it; :data:`FACTS` last.

    Raises:
        InexactError: if it does not compute what its checkpoint computes.
        CheckpointError: if the checkpoint is not zero where its mask says so, or damaged.
    """
    architecture = run.store.read(run.architecture_key)
    with _checkpoint(run, index) as checkpoint:
        sparse = checkpoint.tensors()
        mask, meta = checkpoint.mask(), checkpoint.meta
        for tensor, kept in mask.items():
            if np.count_nonzero(sparse[tensor][~kept]):
                raise CheckpointError(f"{tensor!r} is not zero where its mask says so")
    exact = {tensor: sparse[tensor] for tensor in other_tensors(architecture, plan)}
    for arrays in (*rebuilt, *(rebuild_constant(part, np.float64) for part in plan.constants)):
        exact |= arrays
    graph = rebuild_graph(architecture, plan)
    exactness = check_exactness(name, (architecture, sparse), (graph, exact), evaluation.proof, _run_float32)
    tensors = {key: np.ascontiguousarray(array, dtype=np.float32) for key, array in exact.items()}
    engine = _Normalising(OnnxEngine(graph, tensors), evaluation.input_spec)
    dense, nonzero = count_parameters(sparse[key] for key in parameter_names(architecture))
    facts = Facts(
        round=index,
        ratio=meta.ratio,
        dense_parameters=dense,
        nonzero_parameters=nonzero,
        structural_parameters=count_parameters(iter(tensors.values()))[0],
        tensor_bytes=sum(array.nbytes for array in tensors.values()),
        validation_accuracy=accuracy(engine, *evaluation.validation),
        test_accuracy=accuracy(engine, *evaluation.test),
        exactness=exactness,
        layers=layer_costs(graph, evaluation.input_spec.shape),
        round_to=round_to,
    )
    files = {GRAPH: graph, TENSORS: save_tensors(tensors), PLAN: to_json(plan.to_json())}
    for file, data in (files | {FACTS: to_json(facts.to_json())}).items():
        write_anew(run.store, run.variant_key(name, file), data)
    return facts


def reduce_round(run: Run, index: int, name: str, round_to: int, evaluation: Evaluation) -> Facts:
    """All of it in this process. Raises as its parts."""
    plan = plan_checkpoint(run, index, round_to)
    rebuilt = (rebuild_batch(run, index, batch) for batch in batches(plan, TASK_BYTES))
    return prove_and_write(run, index, name, round_to, plan, evaluation, rebuilt)


def candidate(run: Run, index: int, round_to: int) -> tuple[bytes, Arrays]:
    """Graph and float32 tensors of what a round would become, to be measured; proves nothing."""
    architecture = run.store.read(run.architecture_key)
    with _checkpoint(run, index) as checkpoint:
        sparse = checkpoint.tensors()
    plan = plan_round(architecture, sparse, round_to)
    return rebuild_graph(architecture, plan), rebuild_tensors(architecture, plan, sparse)


@contextmanager
def _checkpoint(run: Run, index: int) -> Iterator[SparseCheckpoint]:
    """What is wrong with a checkpoint is told with its key."""
    key = run.checkpoint_key(index)
    try:
        with run.store.open_file(key) as file:
            yield SparseCheckpoint.open(file)
    except CheckpointError as error:
        raise CheckpointError(f"{key} in the store {run.store.uri}: {error}") from error


@dataclass(frozen=True)
class _Normalising:
    """An engine that reads images as stored: only the batch at hand is ever float32."""

    engine: OnnxEngine
    input_spec: InputSpec

    def run(self, images: NDArray[Any]) -> NDArray[np.float32]:
        return self.engine.run(self.input_spec.normalise(images))


def _run_float32(graph: bytes, tensors: Tensors, images: NDArray[np.float32]) -> NDArray[np.float32]:
    return OnnxEngine(graph, tensors).run(images)
