"""Recipes: what is right is resolved and hashed, what is wrong is explained."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from shifter.configuration import apply_override
from shifter.errors import RecipeError
from shifter.model_spec import FunctionModel, ResNetModel, TorchvisionModel, VggModel, WeightsFile
from shifter.recipe import Recipe, differences

SMALL: dict[str, Any] = {
    "name": "small",
    "workers": 2,
    "model": {"name": "vgg", "stages": [[16, 16], [32]]},
    "data": {"name": "digits"},
    "training": {"epochs": 3, "batch_size": 32, "learning_rate": 0.1, "milestones": ["1ep", "2ep"]},
    "pruning": {"ratios": [2, 4.5], "rewind_to": "1ep", "exclude": ["classifier.weight"]},
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(SMALL))
    return file


def test_defaults_are_filled_in_and_values_typed(path: Path) -> None:
    recipe = Recipe.load(path)
    assert recipe.model == VggModel(name="vgg", stages=((16, 16), (32,)))
    assert recipe.ratio_of_round == (1.0, 2.0, 4.5)
    assert recipe.rounds == 3
    assert recipe.reduction.round_to == 8
    assert Recipe.load(path, ["reduction.round_to=auto"]).reduction.round_to == "auto"
    assert json.loads(json.dumps(recipe.resolved())) == recipe.resolved()


def test_a_recipe_is_frozen(path: Path) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Recipe.load(path).training.epochs = 7  # type: ignore[misc]


def test_the_resolved_recipe_is_the_recipe(path: Path) -> None:
    recipe = Recipe.load(path)
    again = Recipe.model_validate(recipe.resolved())
    assert again == recipe
    assert again.digest() == recipe.digest()


def test_writing_out_a_default_does_not_change_the_hash(path: Path) -> None:
    assert Recipe.load(path, ["seed=0", "reduction.round_to=8"]).digest() == Recipe.load(path).digest()
    assert Recipe.load(path, ["pruning.ratios=[2.0, 4.5]"]).run_name() == Recipe.load(path).run_name()


def test_the_run_name_is_the_name_and_the_hash(path: Path) -> None:
    recipe = Recipe.load(path)
    assert recipe.run_name() == f"small-{recipe.digest()[:8]}"
    assert Recipe.load(path, ["seed=1"]).run_name() != recipe.run_name()


@given(
    st.dictionaries(
        st.sampled_from(["seed", "workers", "training.epochs", "training.batch_size", "profile.samples"]),
        st.integers(10, 1000),
    ),
    st.floats(1e-9, 10, allow_subnormal=False),
    st.lists(st.integers(2, 10**6), min_size=1, max_size=6, unique=True).map(sorted),
)
def test_an_override_is_what_it_says(
    tmp_path_factory: pytest.TempPathFactory, integers: dict[str, int], rate: float, ratios: list[int]
) -> None:
    """Whatever YAML can write, 1e-05 included, arrives as the same value."""
    path = tmp_path_factory.getbasetemp() / "overridden.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    wanted = {**integers, "training.learning_rate": rate, "pruning.ratios": ratios}
    wanted["training.batch_size"] = 1000
    resolved = Recipe.load(path, [f"{key}={value!r}" for key, value in wanted.items()]).resolved()
    for key, value in wanted.items():
        found: Any = resolved
        for part in key.split("."):
            found = found[part]
        assert found == value


def test_an_override_makes_the_section_it_needs() -> None:
    data: dict[str, Any] = {}
    apply_override(data, "a.b.c=[1, x]")
    apply_override(data, "a.b.d=1e-4")
    assert data == {"a": {"b": {"c": [1, "x"], "d": 1e-4}}}


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "tiny_imagenet", "image_folder", "parquet"])
def test_data_can_be_given_whole(path: Path, name: str) -> None:
    recipe = Recipe.load(path, [f"data={{name: {name}, folder: images, size: 16}}"])
    assert (recipe.data.name, recipe.data.size) == (name, 16)
    assert Recipe.model_validate(recipe.resolved()) == recipe


def test_only_published_sets_are_augmented_unasked(path: Path) -> None:
    def crop(data: str) -> int:
        return Recipe.load(path, [f"data={data}"]).data.augmentation.crop

    assert crop("{name: digits}") == 0
    assert crop("{name: image_folder, folder: x, size: 8}") == 0
    assert crop("{name: cifar10, folder: x}") == 4
    assert crop("{name: cifar10, folder: x, augmentation: {crop: 0}}") == 0


def test_a_model_can_be_given_whole(path: Path) -> None:
    recipe = Recipe.load(path, ["model={name: resnet, widths: [8, 16], blocks: 2}"])
    assert recipe.model == ResNetModel(name="resnet", widths=(8, 16), blocks=2)


def test_a_preset_is_what_it_stands_for(path: Path) -> None:
    preset = Recipe.load(path, ["model={name: resnet20}"])
    written = Recipe.load(path, ["model={name: resnet, widths: [16, 32, 64], blocks: 3, weights: openlth}"])
    assert preset == written
    assert preset.run_name() == written.run_name()
    assert Recipe.model_validate(preset.resolved()) == preset
    with_others = Recipe.load(path, ["model={name: resnet20, weights: he}"])
    assert preset.difference(with_others) == ["model.weights: openlth → he"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("torchvision:resnet18", TorchvisionModel), ("package.module:function", FunctionModel)],
)
def test_a_network_by_name_keeps_its_arguments(path: Path, name: str, kind: type[Any]) -> None:
    recipe = Recipe.load(path, [f"model={{name: '{name}', arguments: {{width: 3, deep: [1, x]}}}}"])
    assert isinstance(recipe.model, kind)
    assert recipe.resolved()["model"] == {
        "name": name,
        "arguments": {"width": 3, "deep": [1, "x"]},
        "weights": "own",
    }
    assert Recipe.model_validate(recipe.resolved()) == recipe


def test_a_file_of_weights_counts_by_its_content(path: Path, tmp_path: Path) -> None:
    def recipe_with(content: bytes, place: str) -> Recipe:
        file = tmp_path / place
        file.write_bytes(content)
        return Recipe.load(path, [f"model.weights={file}"])

    first = recipe_with(b"one", "a.pt")
    moved = recipe_with(b"one", "b.safetensors")
    changed = recipe_with(b"two", "a.pt")
    assert first.resolved()["model"]["weights"] == {
        "path": str(tmp_path / "a.pt"),
        "sha256": hashlib.sha256(b"one").hexdigest(),
    }
    assert first.digest() == moved.digest() != changed.digest()
    assert first.difference(moved) == []
    assert first.difference(changed) == [
        f"model.weights.sha256: {hashlib.sha256(b'one').hexdigest()} → {hashlib.sha256(b'two').hexdigest()}"
    ]


def test_a_resolved_recipe_keeps_the_content_it_was_resolved_with(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.pt"
    file.write_bytes(b"one")
    recipe = Recipe.load(path, [f"model.weights={file}"])
    file.write_bytes(b"two")
    assert Recipe.model_validate(recipe.resolved()) == recipe
    file.unlink()
    assert Recipe.model_validate(recipe.resolved()).digest() == recipe.digest()


def test_a_relative_path_starts_at_the_working_directory(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.pt").write_bytes(b"one")
    monkeypatch.chdir(tmp_path)
    weights = Recipe.load(path, ["model.weights=a.pt"]).model.weights
    assert isinstance(weights, WeightsFile)
    assert weights.path == str(tmp_path / "a.pt")


def test_a_fraction_a_round_gives_ratios_and_the_resolved_recipe_shows_which(path: Path) -> None:
    recipe = Recipe.load(path, ["pruning={fraction: 0.2, rounds: 10, exclude: [last-linear]}"])
    assert recipe.rounds == 11
    assert recipe.ratio_of_round[:4] == (1.0, 1.25, 1.5625, 1.95312)
    assert recipe.ratio_of_round[-1] == pytest.approx(1 / 0.8**10, rel=1e-5)
    shown = recipe.resolved()["pruning"]
    assert (shown["fraction"], shown["rounds"]) == (0.2, 10)
    assert "ratios" not in shown
    assert Recipe.model_validate(recipe.resolved()) == recipe
    halving = Recipe.load(path, ["pruning={fraction: 0.5, rounds: 8}"])
    assert halving.ratio_of_round == tuple(2.0**round for round in range(9))
    assert "fraction" not in Recipe.load(path).resolved()["pruning"]


def test_workers_are_a_number_or_a_range(path: Path) -> None:
    fixed, elastic = (Recipe.load(path, [f"workers={text}"]) for text in ("3", "{min: 1, max: 3}"))
    assert (fixed.min_workers, fixed.max_workers) == (3, 3)
    assert (elastic.min_workers, elastic.max_workers) == (1, 3)
    assert fixed.digest() != elastic.digest()
    for recipe in (fixed, elastic):
        assert Recipe.model_validate(recipe.resolved()) == recipe


def test_how_often_a_run_saves_is_no_part_of_what_it_computes(path: Path) -> None:
    often, rarely = (Recipe.load(path, [f"training.save_every={period}"]) for period in ("9it", "4ep"))
    assert often.digest() == rarely.digest()
    assert often.difference(rarely) == []


WRONG = {
    # Keys.
    "training.epoch=3": "training.epoch: unknown key; did you mean epochs?",
    "trainig.epochs=3": "trainig: unknown key; did you mean training?",
    "zzz=1": "zzz: unknown key; known are name, seed, workers, model, data",
    "model.blocks=2": "model.blocks: unknown key; known are name, stages",
    # Types.
    "workers=two": "workers: 'two' should be a valid integer",
    "seed=true": "seed: True should be a valid integer",
    "seed=7.5": "seed: 7.5 should be a valid integer",
    "training=5": "training: 5 should be a mapping",
    "training.milestones=1ep": "training.milestones: '1ep' should be a list",
    "model.stages=[[8, x]]": "model.stages.0.1: 'x' should be a valid integer",
    "seed=": "seed: None should be a valid integer",
    # Ranges.
    "training.epochs=0": "training.epochs: 0 should be greater than or equal to 1",
    "training.momentum=1": "training.momentum: 1 should be less than 1",
    "training.learning_rate=.inf": "training.learning_rate: inf should be a finite number",
    "pruning.ratios=[1, 2]": "pruning.ratios.0: 1 should be greater than 1",
    "pruning.ratios=[]": "pruning.ratios: [] should have at least 1 item",
    "model.stages=[[]]": "model.stages.0: [] should have at least 1 item",
    "name=a b": "name: 'a b' should be 1 to 64 letters",
    # Names.
    "data.name=cifar": "data.name: 'cifar' is unknown; known are cifar10, cifar100, image_folder, "
    "parquet, tiny_imagenet, digits",
    # Images.
    "data.folder=x": "data.folder: unknown key; known are size, validation, augmentation, name, test",
    "data={name: cifar10}": "data.folder: missing",
    "data={name: cifar10, folder: ''}": "data.folder: '' string should have at least 1",
    "data={name: image_folder, folder: x}": "data.size: missing",
    "data={name: cifar10, folder: x, test: 0.1}": "data.test: unknown key",
    "data={name: cifar10, folder: x, bad_rows: keep}": "'keep' is unknown; known are refuse, skip",
    "data={name: cifar10, folder: x, memory_mb: -1}": "data.memory_mb: -1 should be greater than",
    "data={name: parquet, folder: x, size: 8, classes: []}": "data.classes: [] should have at least 1 item",
    "data={name: parquet, folder: x, size: 8, files: {tset: x}}": "tset: unknown key; did you mean test?",
    "data={name: parquet, folder: x, size: 8, files: {train: null}}": "train: None should be a valid string",
    "data={name: parquet, folder: x, size: 8, test: 0.95}": "data: validation 0.1 and test 0.95 leave",
    "data.augmentation={crop: -1}": "data.augmentation.crop: -1 should be greater than or equal to 0",
    "data.augmentation={flip: 1}": "data.augmentation.flip: 1 should be a valid boolean",
    "model.name=vggg": "model.name: 'vggg' is unknown; known are vgg, vgg",
    "model.name=resnet21": "model.name: 'resnet21' is unknown; known are resnet20, resnet",
    "model={stages: [[8]]}": "model.name: missing; known are vgg, vgg11, vgg13, vgg16, vgg19, resnet, ",
    "model=vgg": "model: 'vgg' should be a mapping, e.g. {name: resnet20}",
    "model.name=vgg16": "model: vgg16 has its own stages: to choose them, write name: vgg",
    "model={name: 'torchvision:'}": "model.name: 'torchvision:' should read like torchvision:resnet18",
    "model={name: 'a.b:c.d'}": "model.name: 'a.b:c.d' should read like my_package.networks:small",
    "model={name: 'a:b', argument: {}}": "model.argument: unknown key; did you mean arguments?",
    "model={name: 'a:b', arguments: {when: 2020-01-01}}": "model.arguments.when",
    "model.weights=openth": "model.weights: 'openth' should be he, openlth, own, or a file whose name",
    "model.weights=nowhere.pt": "nowhere.pt cannot be read: No such file",
    "model.weights={path: a.pt}": "model.weights: {'path': 'a.pt'} should be he, openlth, own, or a file",
    "model.weights={path: a.pt, sha256: abc}": "model.weights: {'path': 'a.pt', 'sha256': 'abc'} should be",
    # Across fields.
    "data.validation=0.8": "data: validation 0.8 and test 0.2 leave nothing to train on",
    "pruning.fraction=0.2": "pruning: ratios and fraction: give ratios, or fraction and rounds",
    "pruning={rewind_to: 0it}": "pruning: nothing: give ratios, or fraction and rounds",
    "pruning={rounds: 3}": "pruning: rounds: give ratios, or fraction and rounds",
    "pruning={fraction: 0.5, rounds: 40}": "prunes to 1.1e+12x: it should stay below 1e+09x",
    "pruning={fraction: 1.0, rounds: 4}": "pruning.fraction: 1.0 should be less than or equal to 0.999",
    "pruning.rewind=weight": "pruning.rewind: 'weight' is unknown; known are weights, learning-rate",
    "pruning.accuracy_floor=90": "pruning.accuracy_floor: 90 should be less than 1",
    "pruning.ratios=[4, 2]": "pruning.ratios: 2 does not come after 4",
    "training.milestones=[2ep, 1ep]": "training.milestones: 1ep does not come after 2ep",
    "training.milestones=[1ep, soon]": "milestones.1: 'soon' is not a step: write iterations as '2000it'",
    "training.milestones=[2]": "training.milestones.0: '2' is not a step: write iterations as '2000it'",
    "training.warmup=1": "training.warmup: '1' is not a step: write iterations as '2000it', epochs as '5ep'",
    "training.milestones=[4ep]": "training.milestones.0: 4ep is not before the end of a round, 3ep",
    "training.save_every=often": "training.save_every: 'often' is not a step",
    "training.save_every=0ep": "training.save_every: 0ep is no period: it should be 1it or more",
    "training.warmup=4ep": "training.warmup: 4ep is not before the end of a round, 3ep",
    "training.epochs=1": "training.milestones.0: 1ep is not before the end of a round, 1ep",
    "pruning.rewind_to=4ep": "pruning.rewind_to: 4ep is not before the end of a round, 3ep",
    "workers={min: 3, max: 2}": "workers: min 3 is above max 2",
    "workers={min: 0, max: 2}": "workers.min: 0 should be greater than or equal to 1",
    "workers={least: 1, max: 2}": "workers.least: unknown key",
    "workers={min: 1, max: 33}": "training.batch_size: 32 images do not reach 33 workers",
    "workers=33": "training.batch_size: 32 images do not reach 33 workers",
    "model.stages=[[8],[8],[8],[8],[8]]": "data.size: images of 8x8 vanish in the poolings",
    # The overrides themselves.
    "training": "override 'training' should read path=value",
    "reduction.round_to=autp": "'autp' is no multiple to round to: give auto, or a whole number from 1 to 64",
    "reduction.round_to=65": "65 is no multiple to round to",
    "reduction.round_to=true": "True is no multiple to round to",
    "training..epochs=1": "should read path=value",
    "name.x=1": "override 'name.x=1': name is 'small' and has no parts",
    "seed=[": "override 'seed=[' is not YAML",
}


@pytest.mark.parametrize("override", WRONG)
def test_what_is_wrong_is_named_with_its_value_and_what_would_be_right(path: Path, override: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.load(path, [override])
    assert WRONG[override] in str(caught.value)


def test_several_faults_are_all_listed_once(path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.load(path, ["training={epoch: 2, batch_size: 0, learning_rate: 0.1}", "workers=x"])
    lines = str(caught.value).splitlines()
    assert lines[0] == f"recipe {path}:"
    assert sorted(lines[1:]) == [
        "  training.batch_size: 0 should be greater than or equal to 1",
        "  training.epoch: unknown key; did you mean epochs?",
        "  workers: 'x' should be a valid integer",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "should be a mapping with the keys name, seed"),
        ("", "should be a mapping"),
        ("name: [", "is not YAML"),
        ("name: a\nseed: 1\nname: b\n", "the key 'name' appears twice"),
        ("name: only", "model: missing"),
    ],
)
def test_files_that_are_no_recipes(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(text)
    with pytest.raises(RecipeError, match=r"r\.yaml") as caught:
        Recipe.load(file)
    assert message in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"nowhere\.yaml cannot be read: No such file"):
        Recipe.load(tmp_path / "nowhere.yaml")
    with pytest.raises(RecipeError, match="Is a directory"):
        Recipe.load(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="not text in UTF-8"):
        Recipe.load(tmp_path / "binary.yaml")


def test_differences_are_shown_in_both_directions(path: Path) -> None:
    recipe = Recipe.load(path)
    other = Recipe.load(path, ["seed=5", "model={name: resnet, widths: [8], blocks: 1}"])
    assert recipe.difference(recipe) == []
    assert recipe.difference(other) == [
        "seed: 0 → 5",
        "model.name: vgg → resnet",
        "model.stages: [[16, 16], [32]] → nothing",
        "model.widths: nothing → [8]",
        "model.blocks: nothing → 1",
    ]


@given(st.recursive(st.integers(), lambda inner: st.dictionaries(st.text(max_size=2), inner, max_size=3)))
def test_nothing_differs_from_itself(tree: Any) -> None:
    assert list(differences({"": tree}, {"": tree})) == []
