"""A server that speaks S3 (moto's), which misbehaves as it is told: ``python tests/s3_server.py``.

Prints its port. ``POST /_play`` sets how it plays, ``GET /_play`` tells what it has done since.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

SOUND = {
    "share": 0.0,
    "seed": 0,
    "gone": False,
    "conditions": "kept",
    "verbs": None,
    "delay_s": 0.0,
    "status": 0,
}

_REFUSALS = {403: ("403 Forbidden", "AccessDenied"), 400: ("400 Bad Request", "AuthorizationHeaderMalformed")}


class Misbehaving:
    """Between the wire and moto.

    ``share`` of the requests (of ``verbs``, if given) fail before or after they are done, are cut
    off, or are slow; all of them if it is ``gone``. ``conditions`` are kept, ignored or refused.
    Each takes up to ``delay_s`` longer, so that those of several overlap; each is refused with
    ``status``, if one is given.
    """

    def __init__(self, application: Callable[..., Iterable[bytes]]) -> None:
        self._application = application
        self._lock = threading.Lock()
        self._play(SOUND)

    def _play(self, how: dict[str, Any]) -> None:
        self.how = SOUND | how
        self.random = random.Random(self.how["seed"])
        self.done: Counter[str] = Counter()

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/_play":
            return self._control(environ, start)
        verb, how = environ["REQUEST_METHOD"], self.how
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        with self._lock:
            played = self.random.random() < how["share"] and (how["verbs"] is None or verb in how["verbs"])
            fault = self.random.choice(["busy", "dropped", "after", "cut", "slow"]) if played else ""
            self.done[verb] += 1
            self.done[fault or "sound"] += 1
        if how["gone"] or fault == "dropped":
            return self._hang_up(environ, start)
        if how["status"]:
            return _error(start, *_REFUSALS[how["status"]])
        if fault == "busy":
            return _error(start, "503 Slow Down", "SlowDown")
        if fault == "slow":
            time.sleep(0.05)
        if fault == "cut" and verb in ("PUT", "POST"):
            environ["wsgi.input"] = io.BytesIO(body := body[: len(body) // 2])
            environ["CONTENT_LENGTH"] = str(len(body))
        md5 = environ.get("HTTP_CONTENT_MD5")
        if md5 and base64.b64encode(hashlib.md5(body).digest()).decode() != md5:
            return _error(start, "400 Bad Request", "BadDigest")
        if environ.get("HTTP_IF_NONE_MATCH") and how["conditions"] == "refused":
            return _error(start, "501 Not Implemented", "NotImplemented")
        if how["conditions"] == "ignored":
            environ.pop("HTTP_IF_NONE_MATCH", None)

        time.sleep(how["delay_s"] * self.random.random())
        answer: list[Any] = []
        content = b"".join(self._application(environ, lambda *given: answer.extend(given)))
        if fault == "after":
            return _error(start, "500 Internal Server Error", "InternalError")
        start(*answer[:2])
        if fault == "cut" and verb == "GET" and content:
            return self._half(environ, content)
        if verb == "GET":
            self.done["bytes"] += len(content)
        return [content]

    def _half(self, environ: dict[str, Any], content: bytes) -> Iterable[bytes]:
        yield content[: len(content) // 2]
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)

    def _hang_up(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        return _error(start, "503 Service Unavailable", "Unheard")

    def _control(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] == "POST":
            self._play(json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))))
        start("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(self.done).encode()]


def _error(start: Callable[..., Any], status: str, code: str) -> Iterable[bytes]:
    text = f"<Error><Code>{code}</Code><Message>as told</Message></Error>".encode()
    start(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(text)))])
    return [text]


def main() -> None:
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, *_: Any) -> None:
            pass

    application = Misbehaving(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Quiet)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
