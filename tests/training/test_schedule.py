"""A round's steps follow from the recipe and the number of images."""

from itertools import pairwise

import pytest

from shifter.errors import RecipeError
from shifter.recipe import Recipe
from shifter.training.schedule import Schedule
from shifter.values import Step


def recipe(**training):
    return Recipe.model_validate(
        {
            "name": "test",
            "model": {"name": "vgg", "stages": [[4]]},
            "data": {"name": "digits"},
            "training": {"epochs": 10, "batch_size": 32, "learning_rate": 0.5} | training,
            "pruning": {"ratios": [2.0], "rewind_to": "2ep"},
        }
    )


def rates(schedule, *iterations):
    return [schedule.learning_rate_at(Step(i)) for i in iterations]


def test_only_full_batches_make_an_epoch():
    schedule = Schedule.of(recipe(), images=100)
    assert schedule.iterations_per_epoch == 3
    assert schedule.end == Step(30)
    assert schedule.rewind == Step(6)


def test_the_rate_falls_at_each_milestone():
    schedule = Schedule.of(recipe(milestones=["4ep", "20it"], gamma=0.1), images=100)
    assert rates(schedule, 0, 11, 12, 19, 20, 29) == pytest.approx([0.5, 0.5, 0.05, 0.05, 0.005, 0.005])


def test_the_rate_rises_linearly_to_the_end_of_the_warmup():
    schedule = Schedule.of(recipe(warmup="5it"), images=100)
    assert rates(schedule, 0, 1, 4, 5) == pytest.approx([0.1, 0.2, 0.5, 0.5])


def test_a_batch_larger_than_the_training_part_is_refused():
    with pytest.raises(RecipeError, match="32 is more than the 31 training images; 31 or less fits"):
        Schedule.of(recipe(), images=31)


@pytest.mark.parametrize(
    ("training", "path"),
    [({"milestones": ["1ep", "30it"]}, r"milestones\.1: 30it"), ({"warmup": "31it"}, "warmup: 31it")],
)
def test_a_step_beyond_the_round_is_refused(training, path):
    with pytest.raises(
        RecipeError, match=rf"training\.{path} is not before the end of a round, 10ep or 30it"
    ):
        Schedule.of(recipe(**training), images=100)


def test_one_cycle_rises_to_the_end_of_the_warmup_and_falls_to_zero():
    schedule = Schedule.of(recipe(schedule="one-cycle", warmup="5it"), images=100)
    assert rates(schedule, 0, 4, 5, 15, 29) == pytest.approx([0.1, 0.5, 0.5, 0.3, 0.02])
    everywhere = rates(schedule, *range(30))
    assert max(everywhere) == 0.5
    assert all(a > b for a, b in pairwise(everywhere[5:]))
    flat = Schedule.of(recipe(schedule="one-cycle"), images=100)
    assert rates(flat, 0, 15) == pytest.approx([0.5, 0.25])
