"""An edge service over HTTP without Ray: uvicorn on a thread of this process."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.responses import PlainTextResponse

from serve_app.app import create_app
from serve_app.service import EdgeService


@contextmanager
def serving(service: EdgeService, *, prefix: str = "", port: int = 0) -> Iterator[str]:
    """Serves below ``prefix``, as Ray's proxies do, until it is left; gives the URL of the root.

    Args:
        port: by default, a free one.
    """
    app = create_app(service)

    async def below(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            if not f"{scope['path']}/".startswith(f"{prefix}/"):
                return await PlainTextResponse("another application's", 404)(scope, receive, send)
            scope["root_path"] = prefix
        await app(scope, receive, send)

    # A service that is stopped and comes back at once has the same port.
    with socket.create_server(("127.0.0.1", port)) as listening:
        config = uvicorn.Config(below, log_config=None, lifespan="on", timeout_graceful_shutdown=5)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="uvicorn")
        thread.start()
        try:
            end = time.monotonic() + 30
            while not server.started:
                assert thread.is_alive(), "the server ended while it started"
                assert time.monotonic() < end, "the server did not start"
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}{prefix}/"
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive(), "the server did not end"
