"""The files that are deployed, and the application that they name, without a cluster."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from serve_app.edge import build
from serve_app.settings import Settings

ROOT = Path(__file__).parents[2]


def in_files() -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted((ROOT / "serve_app").glob("*.yaml"))}


def in_kuberay() -> str:
    """The configuration within the resource that docs/serving.md shows."""
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "serving.md").read_text(), re.DOTALL)
    resource = yaml.safe_load(block)
    assert resource["kind"] == "RayService"
    text: str = resource["spec"]["serveConfigV2"]
    return text


@pytest.mark.parametrize("text", [*in_files().values(), in_kuberay()], ids=[*in_files(), "RayService"])
def test_what_is_deployed_is_valid(text: str) -> None:
    config = ServeDeploySchema.model_validate(yaml.safe_load(text))
    assert config.applications
    assert len({application.route_prefix for application in config.applications}) == len(config.applications)
    for application in config.applications:
        assert application.import_path == "serve_app.edge:build"
        Settings.model_validate(application.args)


def deployment(**settings: Any) -> Any:
    return build(Settings(portfolio="runs/digits", **settings))._bound_deployment


def test_a_replica_is_placed_by_label_and_replaced_only_by_one_that_answers() -> None:
    made = deployment(node_labels={"site": "north"}, cpus=0.5)
    assert made.num_replicas == 1
    assert made.ray_actor_options["label_selector"] == {"site": "north"}
    assert made.ray_actor_options["num_cpus"] == 0.5
    assert made._deployment_config.max_surge_percent == 100


def test_the_replica_refuses_not_the_proxy() -> None:
    assert deployment(max_queue=7).max_ongoing_requests > 2 * 7


def test_a_stopped_replica_is_given_longer_than_the_service_waits_for_those_inside() -> None:
    from serve_app import service

    assert deployment()._deployment_config.graceful_shutdown_timeout_s > service._DRAIN_S
