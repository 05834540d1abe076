"""A round's steps, in iterations, and its learning rate: a recipe's text made concrete for its data."""

from __future__ import annotations

from dataclasses import dataclass

from shifter.errors import RecipeError
from shifter.recipe import Recipe
from shifter.values import Step


@dataclass(frozen=True)
class Schedule:
    """Of one round, which every round repeats.

    Args:
        iterations_per_epoch: full batches in the training part; what is left over of an epoch's
            permutation waits for another one.
        end: where a round ends.
        rewind: the step of round 0 whose weights later rounds start from, and where they start.
        falls: whether the learning rate falls linearly from the end of ``warmup`` to zero at ``end``.
        save_every: iterations between two mid-round states.
    """

    iterations_per_epoch: int
    end: Step
    rewind: Step
    learning_rate: float
    milestones: tuple[Step, ...]
    gamma: float
    warmup: Step
    falls: bool
    save_every: int

    @classmethod
    def of(cls, recipe: Recipe, images: int) -> Schedule:
        """The schedule of ``recipe`` for ``images`` training images.

        Raises:
            RecipeError: if there is no full batch, or a step lies at or beyond the end of a round.
        """
        training = recipe.training
        iterations = images // training.batch_size
        if iterations == 0:
            raise RecipeError(
                f"training.batch_size: {training.batch_size} is more than the {images} training images; "
                f"{images} or less fits"
            )
        end = Step(training.epochs * iterations)
        steps = {f"training.milestones.{i}": text for i, text in enumerate(training.milestones)}
        steps |= {"training.warmup": training.warmup, "pruning.rewind_to": recipe.pruning.rewind_to}
        for path, text in steps.items():
            if Step.parse(text, iterations) >= end:
                raise RecipeError(
                    f"{path}: {text} is not before the end of a round, "
                    f"{training.epochs}ep or {end.iteration}it"
                )
        return cls(
            iterations_per_epoch=iterations,
            end=end,
            rewind=Step.parse(recipe.pruning.rewind_to, iterations),
            learning_rate=training.learning_rate,
            milestones=tuple(Step.parse(text, iterations) for text in training.milestones),
            gamma=training.gamma,
            warmup=Step.parse(training.warmup, iterations),
            falls=training.schedule == "one-cycle",
            save_every=Step.parse(training.save_every, iterations).iteration,
        )

    def learning_rate_at(self, step: Step) -> float:
        """For the iteration that follows ``step``: linear warm-up, then what the schedule says."""
        iteration, warmup, end = step.iteration, self.warmup.iteration, self.end.iteration
        if iteration < warmup:
            return self.learning_rate * self._decay(step) * (iteration + 1) / warmup
        if self.falls:
            return self.learning_rate * (end - iteration) / (end - warmup)
        return self.learning_rate * self._decay(step)

    def _decay(self, step: Step) -> float:
        """One gamma for each milestone passed."""
        return self.gamma ** sum(milestone <= step for milestone in self.milestones)
