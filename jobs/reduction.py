"""Phase 2 of a run: every layer of every round reduced side by side as Ray tasks, then profiled.

Each task calls a pure function of ``shifter.pruning`` and reads only what it needs: the planner a
whole checkpoint, a rebuild only the tensors of its own layers. Nothing is published before it is
proved to compute what its checkpoint computes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from numpy.typing import NDArray
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from shifter.errors import CheckpointError
from shifter.pruning.exactness import check_exactness
from shifter.pruning.memory import measure_memory
from shifter.pruning.plan import LayerPlan, PrunePlan, plan_round
from shifter.pruning.profile import (
    accuracy,
    count_parameters,
    measure_latencies,
    parameter_names,
)
from shifter.pruning.rebuild import other_tensors, rebuild_graph, rebuild_layer
from shifter.recipe import Recipe
from shifter.run import Run
from shifter.sparse import SparseCheckpoint
from shifter.switching.engine import OnnxEngine
from shifter.values import Exactness, InputSpec, Profile, Tensors, Variant

if TYPE_CHECKING:
    from shifter.data import Split
    from shifter.data.dataset import Pixels

Arrays = dict[str, NDArray[Any]]
OnEvent = Callable[[dict[str, Any]], None]

TASK_BYTES = 256 * 2**10
"""Weights that one rebuild task is given at least: a task costs about a millisecond by itself."""
REAL_IMAGES, RANDOM_IMAGES = 24, 8
"""Images on which each variant is proved."""


@dataclass(frozen=True)
class Reduced:
    """A proved variant before its latency is known."""

    name: str
    graph: bytes
    tensors: Arrays
    plan: PrunePlan
    facts: dict[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """Images to prove and to rate a variant on; ``proof`` normalised, the others as stored."""

    input_spec: InputSpec
    proof: NDArray[np.float32]
    validation: tuple[Pixels, NDArray[np.int64]]
    test: tuple[Pixels, NDArray[np.int64]]


def reduce_run(run: Run, recipe: Recipe, on_event: OnEvent) -> list[Variant]:
    """Reduces, proves and profiles every finished round of a run, on the connected Ray cluster.

    Finished variants are read back from the store instead. Events: ``{"event": "reduced",
    "variant", "done", "of", "structural_parameters", "error"}`` as rounds come in, then
    ``{"event": "profiling", "variants"}``.

    Raises:
        InexactError: if a variant does not compute what its checkpoint computes.
        CheckpointError, GraphError: if a checkpoint does not fit its architecture.
    """
    names = run.variant_names()
    if all(run.store.exists(run.variant_key(name, "profile.json")) for name in names):
        return [read_variant(run, name) for name in names]
    # Not above: it imports torch, which no task of this phase needs and each would wait for.
    from shifter.data import load

    dataset = load(recipe.data, recipe.seed)
    evaluation = ray.put(_evaluation(dataset.validation, dataset.test, dataset.input_spec, recipe.seed))
    reduced = _reduce_rounds(run, names, recipe.reduction.round_to, evaluation, on_event)
    on_event({"event": "profiling", "variants": len(reduced)})
    some = np.arange(min(recipe.profile.batch_images, len(dataset.validation)))
    images = dataset.input_spec.normalise(dataset.validation.take(some))
    variants = _profile(reduced, images, recipe)
    for variant, found in zip(variants, reduced, strict=True):
        _write_variant(run, variant, found.plan)
    # Profiles last: they are what says that a run's variants are complete.
    for variant in variants:
        run.store.delete(run.variant_key(variant.name, "profile.json"))
    for variant in variants:
        run.store.write(run.variant_key(variant.name, "profile.json"), _json(variant.profile.to_json()))
    return variants


def read_variant(run: Run, name: str) -> Variant:
    """A finished variant from the store."""
    read = run.store.read
    return Variant(
        name=name,
        graph=read(run.variant_key(name, "graph.onnx")),
        tensors=load_tensors(read(run.variant_key(name, "tensors.safetensors"))),
        profile=Profile.from_json(json.loads(read(run.variant_key(name, "profile.json")))),
    )


def _reduce_rounds(
    run: Run, names: Sequence[str], round_to: int, evaluation: Any, on_event: OnEvent
) -> list[Reduced]:
    uri, address = run.store.uri, run.name
    plans = {_plan.remote(uri, address, index, round_to): index for index in range(len(names))}
    proofs: dict[Any, int] = {}
    reduced: dict[int, Reduced] = {}
    while plans or proofs:
        (ready, *_), _ = ray.wait([*plans, *proofs], num_returns=1)
        result = ray.get(ready)
        if ready in plans:
            index = plans.pop(ready)
            layers = [
                _rebuild.remote(uri, address, index, batch) for batch in batches(result.layers, TASK_BYTES)
            ]
            proof = _prove.remote(uri, address, index, names[index], result, evaluation, *layers)
            proofs[proof] = index
        else:
            index = proofs.pop(ready)
            reduced[index] = result
            on_event(
                {
                    "event": "reduced",
                    "variant": result.name,
                    "done": len(reduced),
                    "of": len(names),
                    "structural_parameters": result.facts["structural_parameters"],
                    "error": result.facts["exactness"].float64,
                }
            )
    return [reduced[index] for index in range(len(names))]


def batches(layers: Sequence[LayerPlan], task_bytes: int) -> Iterator[tuple[LayerPlan, ...]]:
    """Groups layers, in order, so that each but the last reads about ``task_bytes``."""
    group: list[LayerPlan] = []
    size = 0
    for part in layers:
        group.append(part)
        size += 4 * part.widths[0] * part.widths[1] * (9 if part.layer.op == "Conv" else 1)
        if size >= task_bytes:
            yield tuple(group)
            group, size = [], 0
    if group:
        yield tuple(group)


@ray.remote
def _plan(uri: str, name: str, index: int, round_to: int) -> PrunePlan:
    run = Run.attach(uri, name)
    with run.store.open_file(run.checkpoint_key(index)) as file:
        tensors = SparseCheckpoint.open(file).tensors()
    return plan_round(run.store.read(run.architecture_key), tensors, round_to)


@ray.remote
def _rebuild(uri: str, name: str, index: int, parts: Sequence[LayerPlan]) -> Arrays:
    """In float64: the proof needs it; what is published is rounded once."""
    run = Run.attach(uri, name)
    rebuilt: Arrays = {}
    with run.store.open_file(run.checkpoint_key(index)) as file:
        checkpoint = SparseCheckpoint.open(file)
        for part in parts:
            tensors = {tensor: checkpoint.read(tensor) for tensor in part.layer.tensors}
            rebuilt |= rebuild_layer(part, tensors, np.float64)
    return rebuilt


@ray.remote
def _prove(
    uri: str, address: str, index: int, name: str, plan: PrunePlan, evaluation: Evaluation, *layers: Arrays
) -> Reduced:
    run = Run.attach(uri, address)
    architecture = run.store.read(run.architecture_key)
    with run.store.open_file(run.checkpoint_key(index)) as file:
        checkpoint = SparseCheckpoint.open(file)
        sparse = checkpoint.tensors()
        mask, meta = checkpoint.mask(), checkpoint.meta
    for tensor, kept in mask.items():
        if np.count_nonzero(sparse[tensor][~kept]):
            raise CheckpointError(f"round {index}: {tensor!r} is not zero where its mask says so")
    exact = {tensor: sparse[tensor] for tensor in other_tensors(architecture, plan)}
    for rebuilt in layers:
        exact |= rebuilt
    graph = rebuild_graph(architecture, plan)
    exactness = check_exactness(name, (architecture, sparse), (graph, exact), evaluation.proof, _run_float32)
    tensors = {key: np.ascontiguousarray(array, dtype=np.float32) for key, array in exact.items()}
    engine = _Normalising(OnnxEngine(graph, tensors), evaluation.input_spec)
    dense, nonzero = count_parameters(sparse[key] for key in parameter_names(architecture))
    facts = {
        "round": index,
        "ratio": meta.ratio,
        "dense_parameters": dense,
        "nonzero_parameters": nonzero,
        "structural_parameters": count_parameters(iter(tensors.values()))[0],
        "tensor_bytes": sum(array.nbytes for array in tensors.values()),
        "validation_accuracy": accuracy(engine, *evaluation.validation),
        "test_accuracy": accuracy(engine, *evaluation.test),
        "exactness": exactness,
    }
    return Reduced(name, graph, tensors, plan, facts)


@dataclass(frozen=True)
class _Normalising:
    """An engine that reads images as stored: only the batch at hand is ever float32."""

    engine: OnnxEngine
    input_spec: InputSpec

    def run(self, images: NDArray[Any]) -> NDArray[np.float32]:
        return self.engine.run(self.input_spec.normalise(images))


def _run_float32(graph: bytes, tensors: Tensors, images: NDArray[np.float32]) -> NDArray[np.float32]:
    return OnnxEngine(graph, tensors).run(images)


def _profile(reduced: Sequence[Reduced], images: NDArray[np.float32], recipe: Recipe) -> list[Variant]:
    """Measured here, one after another, while no task of this run is at work."""
    spec = recipe.profile
    engines = {found.name: OnnxEngine(found.graph, found.tensors) for found in reduced}
    batch = np.resize(images, (spec.batch_images, *images.shape[1:]))
    single = measure_latencies(engines, images[:1], spec.samples)
    batched = measure_latencies(engines, batch, max(10, spec.samples // 4))
    with ThreadPoolExecutor(2) as pool:  # each waits for a process of its own
        memories = list(
            pool.map(lambda found: measure_memory(OnnxEngine, found.graph, found.tensors, batch), reduced)
        )
    variants = []
    for found, memory in zip(reduced, memories, strict=True):
        exactness: Exactness = found.facts["exactness"]
        profile = Profile(
            **(found.facts | {"exactness": exactness}),
            memory_bytes=memory,
            latency=single[found.name],
            batch_images=spec.batch_images,
            batch_latency=batched[found.name],
            dense_latency=single[reduced[0].name],
        )
        variants.append(Variant(found.name, found.graph, found.tensors, profile))
    return variants


def _evaluation(validation: Split, test: Split, spec: InputSpec, seed: int) -> Evaluation:
    real = spec.normalise(validation.take(np.arange(min(REAL_IMAGES, len(validation)))))
    noise = np.random.default_rng(seed).uniform(0, spec.pixel_max, (RANDOM_IMAGES, *spec.shape))
    return Evaluation(
        input_spec=spec,
        proof=np.concatenate([real, spec.normalise(noise)]),
        validation=(validation.images, validation.labels),
        test=(test.images, test.labels),
    )


def _write_variant(run: Run, variant: Variant, plan: PrunePlan) -> None:
    """Idempotent: the bytes depend on the checkpoint alone, so what is there already is the same."""
    files = {
        "graph.onnx": variant.graph,
        "tensors.safetensors": save_tensors(dict(variant.tensors)),
        "plan.json": _json(plan.to_json()),
    }
    for file, data in files.items():
        key = run.variant_key(variant.name, file)
        if not run.store.exists(key):
            run.store.write(key, data)


def _json(data: Any) -> bytes:
    return json.dumps(data, indent=1).encode()
