"""The part of a recipe that says how every round trains, on how many workers, and what it prunes."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    field_validator,
    model_serializer,
    model_validator,
)

from shifter.configuration import Count, Float, Int, Part
from shifter.values import CompressionRatio, Step

__all__ = ["Elastic", "Pruning", "Training", "Workers", "unit"]


def _require_step(value: Any) -> Any:
    Step.parse(str(value), 1)
    return value


StepText = Annotated[str, BeforeValidator(_require_step)]
MAX_RATIO = 1e9
Ratio = Annotated[Float, Field(gt=1, lt=MAX_RATIO)]


def unit(step: str) -> str:
    """Of a step as a recipe has it, such as ``8ep`` or ``2000it``: ``ep`` or ``it``."""
    return step.strip()[-2:]


class Elastic(Part):
    """As many workers as the cluster has room for, ``min`` at least and ``max`` at most."""

    min: Count
    max: Count

    @model_validator(mode="after")
    def _is_a_range(self) -> Elastic:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


Workers = Annotated[
    Annotated[Count, Tag("fixed")] | Annotated[Elastic, Tag("elastic")],
    Discriminator(lambda value: "elastic" if isinstance(value, Mapping | Elastic) else "fixed"),
]


class Training(Part):
    """How every round trains: SGD with momentum, and a learning rate that changes with the step.

    Args:
        epochs: per round, the dense round 0 included.
        batch_size: images per optimiser step, over all workers together.
        warmup: the step up to which the learning rate rises linearly from zero; ``0it`` for none.
        schedule: what it does then. ``steps``: it is multiplied by ``gamma`` at each of
            ``milestones``, steps such as ``8ep`` or ``2000it``. ``one-cycle``: it falls linearly to
            zero at the end of the round (Smith and Topin 2018); there are no milestones.
        precision: of what the layers compute; ``bfloat16`` leaves the weights float32 (autocast).
        channels_last: how images and filters lie in memory; the faster way on most machines.
        save_every: how often a round's state is saved, for a run that is stopped to go on from.
            Changes no result, so it may differ when a run is gone on with.
    """

    epochs: Count
    batch_size: Count
    learning_rate: Annotated[Float, Field(gt=0)]
    momentum: Annotated[Float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[Float, Field(ge=0)] = 0.0
    schedule: Literal["steps", "one-cycle"] = "steps"
    milestones: tuple[StepText, ...] = ()
    gamma: Annotated[Float, Field(gt=0, le=1)] = 0.1
    warmup: StepText = "0it"
    precision: Literal["float32", "bfloat16"] = "float32"
    channels_last: Annotated[bool, Field(strict=True)] = True
    save_every: StepText = "1ep"

    @field_validator("milestones")
    @classmethod
    def _milestones_rise(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        for earlier, later in pairwise(texts):
            if unit(earlier) == unit(later) and Step.parse(earlier, 1) >= Step.parse(later, 1):
                raise ValueError(f"{later} does not come after {earlier}: milestones should rise")
        return texts

    @field_validator("save_every")
    @classmethod
    def _is_a_period(cls, text: str) -> str:
        if Step.parse(text, 1) == Step(0):
            raise ValueError(f"{text} is no period: it should be 1it or more")
        return text

    @model_validator(mode="after")
    def _milestones_belong_to_steps(self) -> Training:
        if self.schedule != "steps" and self.milestones:
            raise ValueError(f"milestones {list(self.milestones)} belong to schedule: steps; leave them out")
        return self


class Pruning(Part):
    """Iterative magnitude pruning: rounds of training and pruning after the dense round 0.

    How far each prunes is said by ``ratios``, or by ``fraction`` and ``rounds``.

    Args:
        ratios: compression ratios C, rising, each above 1: of every C prunable weights C - 1 are zero.
        fraction: share of the weights left that each round prunes; ratios to six digits follow.
        rounds: how often it does.
        rewind_to: the step of round 0 that every later round goes back to; ``0it`` is the beginning.
        rewind: what goes back. ``weights``: they and the learning rate's schedule (Frankle et al.
            2020). ``learning-rate``: the schedule only, so that a round goes on with the weights
            that the one before has trained (Renda et al. 2020).
        exclude: names of tensors that are never pruned, e.g. ``classifier.weight``; ``last-linear``
            is the weight of the last linear layer, whatever its name.
        accuracy_floor: validation accuracy, 0 to 1. The first round below it is the last that is
            trained; its checkpoint stays, but it does not become a variant.
    """

    ratios: Annotated[tuple[Ratio, ...], Field(min_length=1)] | None = None
    fraction: Annotated[Float, Field(ge=0.001, le=0.999)] | None = None
    rounds: Annotated[Int, Field(ge=1, le=1000)] | None = None
    rewind_to: StepText = "0it"
    rewind: Literal["weights", "learning-rate"] = "weights"
    exclude: tuple[str, ...] = ()
    accuracy_floor: Annotated[Float, Field(gt=0, lt=1)] | None = None

    @field_validator("ratios")
    @classmethod
    def _ratios_rise(cls, ratios: tuple[float, ...] | None) -> tuple[float, ...] | None:
        for lower, higher in pairwise(ratios or ()):
            if lower >= higher or str(CompressionRatio(lower)) == str(CompressionRatio(higher)):
                raise ValueError(
                    f"{higher:g} does not come after {lower:g}: every ratio should exceed the last"
                )
        return ratios

    @model_validator(mode="after")
    def _one_way_to_say_how_far(self) -> Pruning:
        given = [name for name in ("ratios", "fraction", "rounds") if getattr(self, name) is not None]
        if given not in (["ratios"], ["fraction", "rounds"]):
            raise ValueError(f"{' and '.join(given) or 'nothing'}: give ratios, or fraction and rounds")
        last = self.ratio_of_round[-1]
        if not last < MAX_RATIO:
            raise ValueError(
                f"fraction {self.fraction:g} in {self.rounds} rounds prunes to {last:.3g}x: "
                f"it should stay below {MAX_RATIO:g}x"
            )
        return self

    @model_serializer(mode="wrap")
    def _only_what_is_given(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in dump(self).items() if value is not None}

    @property
    def ratio_of_round(self) -> tuple[float, ...]:
        """Compression ratio of every round, beginning with 1 for the dense one."""
        if self.ratios is not None:
            return (1.0, *self.ratios)
        assert self.fraction is not None
        assert self.rounds is not None
        # Six digits, because the ratio names the variant.
        falling = (1 / (1 - self.fraction) ** round for round in range(1, self.rounds + 1))
        return (1.0, *(float(f"{ratio:.6g}") for ratio in falling))
