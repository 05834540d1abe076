"""What an operator may set, and where a portfolio is found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from ray.serve.schema import ServeDeploySchema

from serve_app.settings import Settings
from serve_app.source import find_package, read_portfolio
from shifter.errors import PackageError
from shifter.portfolio import Portfolio
from shifter.run import Run
from shifter.store import Store


@pytest.mark.parametrize(
    "wrong",
    [
        {"polcy": "slo"},
        {"policy": "best"},
        {"policy": "fixed"},
        {"variant": "1x"},
        {"objective_ms": 0},
        {"objective_ms": float("nan")},
        {"max_queue": 0},
        {"threads": 0},
        {"decide_every_s": 0},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Settings.model_validate({"portfolio": "x.zip", **wrong})


def test_settings_travel_as_plain_data() -> None:
    settings = Settings(portfolio="runs/x", policy="fixed", variant="1x")
    assert Settings.model_validate(json.loads(json.dumps(settings.model_dump(mode="json")))) == settings


def test_a_package_and_a_runs_current_package_are_found(portfolio_bytes: bytes, store_uri: str) -> None:
    digest = Portfolio.open(portfolio_bytes).digest
    run = Run(Store.open(store_uri), "digits")
    run.store.write(run.portfolio_key(digest), portfolio_bytes)
    run.store.replace(run.portfolio_json, json.dumps({"current": digest, "previous": None}).encode())
    assert read_portfolio(f"{store_uri}/digits").digest == digest
    assert read_portfolio(f"{store_uri}/digits/").digest == digest
    assert read_portfolio(f"{store_uri}/{run.portfolio_key(digest)}").digest == digest
    assert find_package(f"{store_uri}/digits") == f"{store_uri}/{run.portfolio_key(digest)}"


def test_no_portfolio_is_told_with_its_place(store_uri: str) -> None:
    store = Store.open(store_uri)
    store.write("broken.zip", b"PK no")
    store.replace("run/portfolio.json", b"{}")
    store.write("folder/x", b"")
    for name in ("none.zip", "broken.zip", "folder"):
        with pytest.raises(PackageError, match=f"{store_uri}/{name}"):
            read_portfolio(f"{store_uri}/{name}")
    with pytest.raises(PackageError, match=f"{store_uri}/run/portfolio.json is damaged"):
        read_portfolio(f"{store_uri}/run")
    for wrong in ("s3://", "s3:/bucket/run", "s3://bucket"):
        with pytest.raises(PackageError, match=r"s3://bucket/prefix|give s3://bucket"):
            read_portfolio(wrong)


def test_the_deployment_file_is_one_that_serve_and_the_application_take() -> None:
    import yaml

    file = Path(__file__).parents[2] / "serve_app" / "digits.yaml"
    schema = ServeDeploySchema.model_validate(yaml.safe_load(file.read_text()))
    (application,) = schema.applications
    assert application.import_path == "serve_app.edge:build"
    assert Settings.model_validate(application.args).policy == "slo"
