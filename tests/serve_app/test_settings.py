"""What an operator may set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from ray.serve.schema import ServeDeploySchema

from serve_app.settings import Settings


@pytest.mark.parametrize(
    "wrong",
    [
        {"polcy": "slo"},
        {"policy": "best"},
        {"policy": "fixed"},
        {"variant": "1x"},
        {"policy": "trend", "variant": "1x"},
        {"objective_ms": 0},
        {"objective_ms": float("nan")},
        {"max_queue": 0},
        {"threads": 0},
        {"decide_every_s": 0},
        {"refresh_s": 0},
        {"memory_bytes": 0},
        {"memory_bytes": "512 bananas"},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Settings.model_validate({"portfolio": "x.zip", **wrong})


def test_settings_travel_as_plain_data() -> None:
    settings = Settings(portfolio="runs/x", policy="fixed", variant="1x")
    assert Settings.model_validate(json.loads(json.dumps(settings.model_dump(mode="json")))) == settings


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
