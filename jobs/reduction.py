"""Phase 2 of a run: every layer of every round reduced side by side as Ray tasks, then profiled.

Each task calls a function of ``jobs/rounds.py`` and reads only what it needs: the planner a whole
checkpoint, a rebuild only the tensors of its own layers. A round's variant is in the store as soon
as it is proved; what comes back to this process are facts. A task that is lost is run again, by
itself; a run that is started again skips the rounds that are in the store.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError, RayTaskError

from jobs.profiling import choose_round_to, profile_variants
from jobs.rounds import (
    TASK_BYTES,
    Arrays,
    Evaluation,
    Facts,
    Part,
    batches,
    plan_checkpoint,
    prove_and_write,
    rebuild_batch,
    reduce_round,
)
from jobs.stored import FACTS, PROFILE, read_profile, read_variant, to_json
from shifter.errors import ShifterError
from shifter.pruning.plan import PrunePlan
from shifter.recipe import Recipe
from shifter.run import Run
from shifter.values import Variant

OnEvent = Callable[[dict[str, Any]], None]

ROUNDS_AT_A_TIME = 8
"""Rounds that are worked on at once, at most: memory stays the same, however many there are."""
TRIES = 4
"""How often a task whose worker is lost is run before the reduction ends."""
QUIET_SECONDS, SILENT_SECONDS = 5.0, 60.0
"""Without a free CPU for so long the cluster is said to be full: at first, and whenever nothing comes in."""


def reduce_run(run: Run, recipe: Recipe, on_event: OnEvent, local: bool = False) -> list[Variant]:
    """Reduces, proves and profiles every finished round of a run.

    What is finished is read back from the store instead. Events: ``{"event": "reduced", "variant",
    "done", "of", "structural_parameters", "error"}`` as rounds come in, ``{"event": "waiting",
    "seconds", "cpus", "begun"}`` while every CPU of the cluster is taken (once tasks have ``begun``, it may
    be by them), then ``{"event": "profiling",
    "variants"}``.

    Args:
        local: in this process instead of on the connected Ray cluster.

    Returns:
        The dense one first; their tensors are read from the store when they are asked for.

    Raises:
        InexactError: if a variant does not compute what its checkpoint computes.
        CheckpointError, GraphError: if a checkpoint is damaged or does not fit its architecture.
        ShifterError: if the cluster lost a task again and again.
    """
    names = run.variant_names()
    if not all(run.store.exists(run.variant_key(name, PROFILE)) for name in names):
        _reduce_and_profile(run, recipe, names, on_event, local)
    return [read_variant(run, name, read_profile(run, name)) for name in names]


def _reduce_and_profile(
    run: Run, recipe: Recipe, names: Sequence[str], on_event: OnEvent, local: bool
) -> None:
    # Not above: it imports torch, which no task of this phase needs and each would wait for.
    from shifter.data import load

    dataset = load(recipe.data, recipe.seed)
    spec, validation = dataset.input_spec, dataset.validation
    images = spec.normalise(validation.take(np.arange(min(recipe.profile.batch_images, len(validation)))))
    facts = dict(finished_rounds(run, names))
    left = {index: name for index, name in enumerate(names) if name not in facts}
    if recipe.reduction.round_to == "auto":
        # Before any task is at work.
        samples = recipe.profile.samples
        multiples = {index: choose_round_to(run, index, images[:1], samples) for index in left}
    else:
        multiples = dict.fromkeys(left, recipe.reduction.round_to)
    evaluation = Evaluation.of(validation, dataset.test, spec, recipe.seed)
    reduce = reduce_rounds_here if local else reduce_rounds
    # Closed at once, whatever happens: what is under way is called off while there is a cluster.
    with closing(reduce(run, left, multiples, evaluation, on_event)) as rounds:
        for name, found in rounds:
            facts[name] = found
            on_event(
                {
                    "event": "reduced",
                    "variant": name,
                    "done": len(facts),
                    "of": len(names),
                    "structural_parameters": found.structural_parameters,
                    "error": found.exactness.float64,
                }
            )
    on_event({"event": "profiling", "variants": len(names)})
    profiles = profile_variants(run, {name: facts[name] for name in names}, images, recipe.profile)
    # All together, and last: they are what says that a run's variants are complete.
    for name in names:
        run.store.delete(run.variant_key(name, PROFILE))
    for name, profile in profiles.items():
        run.store.write(run.variant_key(name, PROFILE), to_json(profile.to_json()))


def finished_rounds(run: Run, names: Sequence[str]) -> Iterator[tuple[str, Facts]]:
    """The rounds whose variants are in the store, proved."""
    for name in names:
        key = run.variant_key(name, FACTS)
        if run.store.exists(key):
            yield name, Facts.from_json(json.loads(run.store.read(key)))


def reduce_rounds_here(
    run: Run, left: Mapping[int, str], multiples: Mapping[int, int], evaluation: Evaluation, on_event: OnEvent
) -> Generator[tuple[str, Facts], None, None]:
    """:func:`reduce_rounds` in this process, one after another; waits for nothing."""
    for index, name in left.items():
        yield name, reduce_round(run, index, name, multiples[index], evaluation)


def reduce_rounds(
    run: Run, left: Mapping[int, str], multiples: Mapping[int, int], evaluation: Evaluation, on_event: OnEvent
) -> Generator[tuple[str, Facts], None, None]:
    """Rounds as they are proved and written, in the order in which they come in.

    Args:
        left: names of the variants to make, by round. multiples: what their widths are rounded up to.
        on_event: told when the cluster has no CPU for them.

    Raises:
        ShifterError: as a task raised it, or if tasks are lost again and again.
    """
    if not left:
        return
    shared = ray.put(run), ray.put(evaluation)
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    cpus = int(resources.get("CPU", 0))
    at_a_time = max(2, min(ROUNDS_AT_A_TIME, cpus))
    waiting = list(left)
    # The first to be submitted: until it is done, the cluster has had no CPU for this run.
    pending: dict[Any, tuple[str, int]] = {_nothing.remote(): ("begin", -1)}
    under_way, patience, since = 0, QUIET_SECONDS, time.monotonic()
    try:
        while waiting or under_way:
            while waiting and under_way < at_a_time:
                index = waiting.pop(0)
                pending[_plan.remote(shared[0], index, multiples[index])] = "plan", index
                under_way += 1
            ready, _ = ray.wait(list(pending), num_returns=1, timeout=patience)
            patience, begun = SILENT_SECONDS, ("begin", -1) not in pending.values()
            if not ready:
                if not begun or _free_cpus() < 1:
                    quiet = round(time.monotonic() - since)
                    on_event({"event": "waiting", "seconds": quiet, "cpus": cpus, "begun": begun})
                continue
            since = time.monotonic()
            step, index = pending[ready[0]]
            result = _result(ready[0], step, index)
            del pending[ready[0]]
            if step == "plan":
                rebuilt = [_rebuild.remote(shared[0], index, batch) for batch in batches(result, TASK_BYTES)]
                proof = _prove.remote(
                    shared[0], index, left[index], multiples[index], result, shared[1], *rebuilt
                )
                pending[proof] = "prove", index
            elif step == "prove":
                under_way -= 1
                yield left[index], result
    finally:
        for task in pending:
            with suppress(RayError):  # the cluster may be what failed
                ray.cancel(task)


def _free_cpus() -> float:
    free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    return free.get("CPU", 0.0)


def _result(task: Any, step: str, index: int) -> Any:
    try:
        return ray.get(task)
    except RayTaskError as error:
        if isinstance(error.cause, ShifterError):  # without Ray's traceback of another process
            raise error.cause from None
        if isinstance(error.cause, RayError):  # one that it depends on
            raise _lost(error.cause, step, index) from error
        raise
    except RayError as error:
        raise _lost(error, step, index) from error


def _lost(error: Exception, step: str, index: int) -> ShifterError:
    why = str(error).strip().splitlines()[0]
    return ShifterError(
        f"the cluster lost the task that was to {step} round {index}, {TRIES} times ({why}); what is "
        "finished is kept, and the same command goes on"
    )


@ray.remote
def _nothing() -> None:
    pass


@ray.remote(max_retries=TRIES - 1)
def _plan(run: Run, index: int, round_to: int) -> PrunePlan:
    return plan_checkpoint(run, index, round_to)


@ray.remote(max_retries=TRIES - 1)
def _rebuild(run: Run, index: int, parts: Sequence[Part]) -> Arrays:
    return rebuild_batch(run, index, parts)


@ray.remote(max_retries=TRIES - 1)
def _prove(
    run: Run, index: int, name: str, round_to: int, plan: PrunePlan, evaluation: Evaluation, *rebuilt: Arrays
) -> Facts:
    return prove_and_write(run, index, name, round_to, plan, evaluation, rebuilt)
