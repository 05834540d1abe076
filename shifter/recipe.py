"""What a user writes: one YAML file that says which network to train, on what, and how to reduce it.

Validated once, frozen after, and echoed resolved (every default filled in) beside the results. The
hash of the resolved form names the run, so two recipes that mean the same are the same run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from shifter.configuration import Count, Float, Int, Part, apply_override, explain, read_mapping
from shifter.data_spec import DataSpec
from shifter.errors import RecipeError
from shifter.model_spec import Model
from shifter.training_spec import Elastic, Pruning, Training, Workers, unit
from shifter.values import Step

__all__ = [
    "ProfileSpec",
    "Recipe",
    "Reduction",
    "Selection",
    "differences",
    "identity",
]

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


def _require_multiple(value: Any) -> Any:
    if value != "auto" and not (type(value) is int and 1 <= value <= 64):
        raise ValueError(f"{value!r} is no multiple to round to: give auto, or a whole number from 1 to 64")
    return value


RoundTo = Annotated[int | Literal["auto"], BeforeValidator(_require_multiple)]


class Reduction(Part):
    """Exact reduction.

    Args:
        round_to: widths are rounded up to a multiple of this; 1 leaves them odd. ``auto`` takes, for
            each variant, 8 or 16, whichever is measured to be faster where the reduction is driven;
            and leaves the network whole where both are slower than that.
    """

    round_to: RoundTo = 8


class ProfileSpec(Part):
    """Profiling. ``batch_images``: images of one batched call. ``samples``: calls timed per variant.

    From 368 samples on, p99 has an upper bound.
    """

    batch_images: Count = 8
    samples: Annotated[Int, Field(ge=10)] = 400


class Selection(Part):
    """Near-twins: of two variants this close in accuracy and in size (fractions), one is enough."""

    accuracy_tolerance: Annotated[Float, Field(ge=0, lt=1)] = 0.002
    size_tolerance: Annotated[Float, Field(ge=0, lt=1)] = 0.05


class Recipe(Part):
    """Everything that decides what a run computes.

    Args:
        workers: processes that train together, or the range ``{min: …, max: …}`` of their number.
            Batch norm sees a worker's part of each batch, so their number changes results; a run
            whose number changes under way is not repeatable.
    """

    name: Name
    seed: Annotated[Int, Field(ge=0, lt=2**32)] = 0
    workers: Workers = 1
    model: Model
    data: Annotated[DataSpec, Field(discriminator="name")]
    training: Training
    pruning: Pruning
    reduction: Reduction = Reduction()
    profile: ProfileSpec = ProfileSpec()
    selection: Selection = Selection()

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Recipe:
        problems = []
        training = self.training
        if training.batch_size < self.max_workers:
            problems.append(
                f"training.batch_size: {training.batch_size} images do not reach {self.max_workers} workers: "
                "it should be at least as large as workers"
            )
        steps = [(f"training.milestones.{i}", text) for i, text in enumerate(training.milestones)]
        steps += [("training.warmup", training.warmup), ("pruning.rewind_to", self.pruning.rewind_to)]
        problems += [
            f"{path}: {text} is not before the end of a round, {training.epochs}ep"
            for path, text in steps
            # Iterations are checked when the data, and so the length of an epoch, is known.
            if unit(text) == "ep" and Step.parse(text, 1) >= Step(training.epochs)
        ]
        if self.data.size < self.model.smallest_image():
            problems.append(
                f"data.size: images of {self.data.size}x{self.data.size} vanish in the poolings of this "
                f"network: it should be at least {self.model.smallest_image()}"
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
        """Reads a YAML file, then applies ``a.b=c`` overrides (c is YAML too).

        Raises:
            RecipeError: all that is wrong, one line each, with the dotted path, the value and what
                would be right.
        """
        data = read_mapping(Path(path), cls.model_fields)
        for override in overrides:
            apply_override(data, override)
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            lines = explain(error, cls)
            raise RecipeError("\n  ".join([f"recipe {path}:", *lines])) from None

    @property
    def min_workers(self) -> int:
        return self.workers.min if isinstance(self.workers, Elastic) else self.workers

    @property
    def max_workers(self) -> int:
        return self.workers.max if isinstance(self.workers, Elastic) else self.workers

    @property
    def rounds(self) -> int:
        """Rounds of training, the dense one included; an accuracy floor may end them early."""
        return len(self.ratio_of_round)

    @property
    def ratio_of_round(self) -> tuple[float, ...]:
        """Compression ratio of every round, beginning with 1 for the dense one."""
        return self.pruning.ratio_of_round

    def resolved(self) -> dict[str, Any]:
        """As plain JSON types, every default filled in."""
        return self.model_dump(mode="json")

    def digest(self) -> str:
        """sha256 of the resolved recipe's :func:`identity` as canonical JSON."""
        canonical = json.dumps(identity(self.resolved()), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def run_name(self) -> str:
        """The run's name unless the user gives one."""
        return f"{self.name}-{self.digest()[:8]}"

    def difference(self, other: Recipe) -> list[str]:
        """What changes from this recipe to ``other``, one line ``path: old → new`` each.

        Nothing does where both have the same :meth:`digest`.
        """
        old, new = identity(self.resolved()), identity(other.resolved())
        return [f"{p}: {a} → {b}" for p, a, b in differences(old, new)]


_CHANGES_NO_RESULT = frozenset({"training.save_every"})


def identity(resolved: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """What of a resolved recipe decides the results: not where its files lie, nor how often it saves.

    A file counts by the sha256 of its content, so that one that was moved is the same recipe, and
    one that was changed another.

    Args:
        path: where ``resolved`` is in the recipe, with a dot at its end.
    """
    return {
        key: identity(value, f"{path}{key}.") if isinstance(value, Mapping) else value
        for key, value in resolved.items()
        if f"{path}{key}" not in _CHANGES_NO_RESULT and not (key == "path" and "sha256" in resolved)
    }


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], path: str = ""
) -> Iterator[tuple[str, str, str]]:
    """(dotted path, old value, new value) wherever two resolved recipes differ.

    Works on plain data, so that a run recorded by another version can be compared as well.
    """
    for key in [*old, *(k for k in new if k not in old)]:
        a, b = old.get(key, "nothing"), new.get(key, "nothing")
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from differences(a, b, f"{path}{key}.")
        elif a != b:
            yield f"{path}{key}", _show(a), _show(b)


def _show(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
