"""Edge applications on the connected Ray cluster, for a job that needs some for a while."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from ray import serve
from ray.serve.api import RunTarget

from serve_app.edge import build
from serve_app.settings import Settings
from shifter.errors import EngineError

_QUIET = {"log_level": "WARNING", "enable_access_log": False}


class Serving:
    """Applications on a Ray Serve that listens on this machine only. Made by `serving`."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._names: list[str] = []

    def deploy(self, applications: Mapping[str, Settings]) -> dict[str, str]:
        """Starts applications side by side; returns the address of each by name.

        Raises:
            EngineError: if one of them does not start.
        """
        targets = [
            RunTarget(build(settings), name=name, route_prefix=f"/{name}")
            for name, settings in applications.items()
        ]
        self._names += applications
        try:
            serve.run_many(targets)
        except RuntimeError as error:
            raise EngineError(f"{', '.join(applications)} did not start: {error}") from error
        return {name: f"http://127.0.0.1:{self.port}/{name}" for name in applications}

    def end(self) -> None:
        """Ends the applications that were started here."""
        for name in self._names:
            serve.delete(name)


@contextmanager
def serving() -> Iterator[Serving]:
    """Ray Serve on 127.0.0.1 and a free port; its applications end with it, whatever happens.

    The controller and the proxy stay until the cluster ends: they are the cluster's.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    port = _free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config=_QUIET)
    started = Serving(port)
    try:
        yield started
    finally:
        started.end()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
