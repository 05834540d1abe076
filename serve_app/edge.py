"""The edge node's Ray Serve application: ``serve run serve_app/digits.yaml``.

``from __future__ import annotations`` must stay away from this module: Serve looks at the class
that annotates the builder's argument, and a string is none.
"""

from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve import Application

from serve_app.app import create_app
from serve_app.log import Log
from serve_app.metrics import Metrics
from serve_app.service import EdgeService
from serve_app.settings import Settings

# Requests that may be on their way to the replica beyond those that it admits: it is the replica
# that refuses, at once, and not the proxy that keeps them waiting.
_BEYOND_QUEUE = 1000

# A replica that died is found by a check, and only then is another one started.
_HEALTH_CHECK_PERIOD_S = 1.0

# Longer than the service itself waits for the requests inside.
_SHUTDOWN_S = 35.0


@serve.ingress()
class Edge:
    """One replica of the service, with a portfolio of its own."""

    def __init__(self, settings: dict[str, Any]) -> None:
        validated = Settings.model_validate(settings)
        self._service = EdgeService.open(validated)
        self._service.observers += [Metrics(validated), Log(validated)]

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve once the replica is made."""
        return create_app(self._service)

    def check_health(self) -> None:
        """Called by Serve every few seconds."""
        self._service.check()


def build(settings: Settings) -> Application:
    """The application; see `serve_app.settings.Settings` for what can be set.

    One site is one application, whose only replica is placed by ``node_labels``: Serve prefers replicas
    that are near, but takes any of the application's, so that none may be elsewhere.

    Used by ``serve run`` and ``serve deploy`` through its import path, ``serve_app.edge:build``.
    """
    deployment = serve.deployment(
        name="edge",
        # A switch is no new deployment, and load is met by switching: one replica serves a node.
        num_replicas=1,
        # Anew with other arguments, the next replica has to answer before the last one leaves: what does
        # not start (a portfolio that is corrupt or gone) takes nothing away.
        max_surge_percent=100,
        max_ongoing_requests=settings.max_queue + _BEYOND_QUEUE,
        health_check_period_s=_HEALTH_CHECK_PERIOD_S,
        graceful_shutdown_timeout_s=_SHUTDOWN_S,
        graceful_shutdown_wait_loop_s=0.2,
        # What is wrong with a portfolio now is wrong the next time as well.
        max_constructor_retry_count=1,
        ray_actor_options={"num_cpus": settings.cpus, "label_selector": settings.node_labels},
    )(Edge)
    return deployment.bind(settings.model_dump(mode="json"))
