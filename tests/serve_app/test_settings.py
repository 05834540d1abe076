"""What an operator may set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import ValidationError
from ray.serve.schema import ServeDeploySchema

from serve_app.service import url_safe
from serve_app.settings import MOST_PIXELS, Settings


@pytest.mark.parametrize(
    "wrong",
    [
        {"polcy": "slo"},
        {"policy": "best"},
        {"policy": "fixed"},
        {"variant": "1x"},
        {"policy": "trend", "variant": "1x"},
        {"policy": "trend", "objective_ms": 50},
        {"policy": "fixed", "variant": "1x", "objective_ms": 100},
        {"objective_ms": 0},
        {"objective_ms": float("nan")},
        {"max_queue": 0},
        {"threads": 0},
        {"decide_every_s": 0},
        {"refresh_s": 0},
        {"max_image_pixels": MOST_PIXELS + 1},
        {"memory_bytes": 0},
        {"deadline_ms": 0},
        {"deadline_ms": float("inf")},
        {"max_batch": 0},
        {"model": ""},
        {"model": "a/b"},
        {"model": ".."},
        {"max_read_bytes": "1KiB"},
        {"admin_token": "secret"},
        {"memory_bytes": "512 bananas"},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Settings.model_validate({"portfolio": "x.zip", **wrong})


@pytest.mark.parametrize(
    "given", [{"policy": "fixed", "variant": "1x"}, {"policy": "trend"}, {}, {"objective_ms": 20.0}]
)
def test_settings_travel_as_plain_data(given: dict[str, Any]) -> None:
    settings = Settings.model_validate({"portfolio": "runs/x", **given})
    assert Settings.model_validate(json.loads(json.dumps(settings.model_dump(mode="json")))) == settings


def test_an_objective_is_of_the_policy_that_keeps_it() -> None:
    assert Settings(portfolio="x.zip").objective_ms == 100
    assert Settings.model_validate({"portfolio": "x.zip", "objective_ms": None}).objective_ms == 100
    assert Settings(portfolio="x.zip", policy="trend").objective_ms is None
    with pytest.raises(ValidationError, match="objective_ms is for the policy 'slo', and 'trend'"):
        Settings(portfolio="x.zip", policy="trend", objective_ms=100)


def test_what_contradicts_itself_is_told_with_the_remedy() -> None:
    with pytest.raises(
        ValidationError, match=r"deadline_ms=50 .* within objective_ms=100: give at least that"
    ):
        Settings(portfolio="x.zip", deadline_ms=50)
    with pytest.raises(
        ValidationError, match=r"max_read_bytes=1000 holds no body of max_body_bytes=\d+: give"
    ):
        Settings(portfolio="x.zip", max_read_bytes=1000)


@pytest.mark.parametrize(
    ("given", "name"),
    [("vgg16", "vgg16"), ("torchvision:resnet18", "torchvision-resnet18"), ("../ä b", "b"), ("…", "model")],
)
def test_a_model_is_called_what_a_path_can_hold(given: str, name: str) -> None:
    assert url_safe(given) == name
    assert Settings(portfolio="x.zip", model=name).model == name


def test_no_more_pixels_than_pillow_reads() -> None:
    assert Image.MAX_IMAGE_PIXELS is not None
    assert 2 * Image.MAX_IMAGE_PIXELS == MOST_PIXELS
    assert Settings(portfolio="x.zip", max_image_pixels=MOST_PIXELS).limits.image_pixels == MOST_PIXELS
    with pytest.raises(ValidationError, match="Pillow refuses images of more than 178956970 pixels"):
        Settings(portfolio="x.zip", max_image_pixels=MOST_PIXELS + 1)


def test_a_memory_budget_may_have_a_unit() -> None:
    settings = Settings.model_validate({"portfolio": "x.zip", "memory_bytes": "512MiB"})
    assert settings.memory_bytes == 512 << 20
    assert settings.model_dump(mode="json")["memory_bytes"] == 512 << 20


def test_the_deployment_file_is_one_that_serve_and_the_application_take() -> None:
    import yaml

    file = Path(__file__).parents[2] / "serve_app" / "digits.yaml"
    schema = ServeDeploySchema.model_validate(yaml.safe_load(file.read_text()))
    (application,) = schema.applications
    assert application.import_path == "serve_app.edge:build"
    assert Settings.model_validate(application.args).policy == "slo"
