"""The recipes that come with the project."""

from __future__ import annotations

from pathlib import Path

import pytest

from shifter.recipe import Recipe

FOLDER = Path(__file__).parents[2] / "jobs" / "recipes"
HALVING = tuple(2.0**n for n in range(9))


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_each_is_valid_and_named_as_its_file(path: Path) -> None:
    assert Recipe.load(path).name == path.stem


@pytest.mark.parametrize(
    ("name", "epochs", "batch_size", "learning_rate", "milestones", "warmup"),
    [
        ("vgg16-cifar10", 160, 128, 0.1, ("80ep", "120ep"), "0it"),
        ("resnet50-tinyimagenet", 200, 256, 0.2, ("100ep", "150ep"), "5ep"),
    ],
)
def test_those_of_the_paper_have_its_hyper_parameters(
    name: str, epochs: int, batch_size: int, learning_rate: float, milestones: tuple[str, ...], warmup: str
) -> None:
    """Table II and its footnote; ratios from §IV-B; warm-up and rewinding from OpenLTH."""
    recipe = Recipe.load(FOLDER / f"{name}.yaml")
    training = recipe.training
    assert (training.epochs, training.batch_size, training.learning_rate) == (
        epochs,
        batch_size,
        learning_rate,
    )
    assert (training.schedule, training.milestones, training.gamma) == ("steps", milestones, 0.1)
    assert (training.momentum, training.weight_decay, training.warmup) == (0.9, 1e-4, warmup)
    assert training.precision == "float32"
    assert recipe.ratio_of_round == HALVING
    assert (recipe.pruning.rewind_to, recipe.pruning.rewind) == ("2000it", "weights")
    assert recipe.pruning.exclude == ("last-linear",)


@pytest.mark.parametrize("name", ["vgg16-cifar10", "resnet50-tinyimagenet"])
def test_a_fast_preset_marks_each_departure(name: str) -> None:
    paper, fast = FOLDER / f"{name}.yaml", FOLDER / f"{name}-fast.yaml"
    changed = {line.split(":")[0] for line in Recipe.load(paper).difference(Recipe.load(fast))}
    # What follows from another schedule, or says where and how often to write.
    changed -= {"name", "training.milestones", "training.save_every"}
    marked = {line.split(":")[0].strip() for line in fast.read_text().splitlines() if "# departs" in line}
    assert {path.rpartition(".")[2] for path in changed} == marked
    assert "NOT the paper's training" in fast.read_text()
    assert Recipe.load(fast).ratio_of_round == HALVING
