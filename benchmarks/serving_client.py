"""HTTP load from a process of its own that costs the server's cores little: raw sockets, one thread.

Answers are parsed no further than status, length and variant. A latency counts from when a request was due,
or, in a closed loop, sent. Commands come as JSON lines on stdin; what was measured goes to a file.
"""

from __future__ import annotations

import json
import re
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_VARIANT = re.compile(rb"\r\nx-shifter-variant: *([^\r]+)", re.IGNORECASE)
_CLOSES = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
_ROOT = Path(__file__).parents[1]
_RECEIVE = 1 << 20
_UNKNOWN = 1 << 62


@dataclass(frozen=True)
class Asked:
    """A request that is sent again and again: ``POST url`` with ``headers`` and ``body``."""

    url: str
    headers: Mapping[str, str]
    body: bytes

    def message(self, more: Mapping[str, str] | None = None) -> bytes:
        parts = urlsplit(self.url)
        headers = {
            "Host": parts.netloc,
            "Content-Length": str(len(self.body)),
            **self.headers,
            **(more or {}),
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"POST {parts.path} HTTP/1.1\r\n{head}\r\n".encode() + self.body


@dataclass(frozen=True)
class Answers:
    """What became of each request, in the order in which they were due.

    Args:
        due: seconds from the start. late: of the sending, behind ``due``. seconds: from ``due`` to the
            answer's end. status: of HTTP; 0 where the connection ended without an answer.
        variant: the one that answered, or empty.
        began: the start, in seconds of the system's clock.
    """

    due: NDArray[np.float64]
    late: NDArray[np.float64]
    seconds: NDArray[np.float64]
    status: NDArray[np.int64]
    variant: NDArray[np.str_]
    began: float

    @property
    def ok(self) -> NDArray[np.bool_]:
        answered: NDArray[np.bool_] = self.status == 200
        return answered

    def percentile_ms(self, q: float, where: NDArray[np.bool_] | None = None) -> float:
        """Of those that were answered with 200, and ``where``."""
        chosen = self.ok if where is None else self.ok & where
        return float(1e3 * np.percentile(self.seconds[chosen], q))

    @property
    def per_second(self) -> float:
        """Answers of 200 a second, to the last one."""
        return float(self.ok.sum() / (self.due + self.seconds).max())


class Client:
    """The client's process; a context manager.

    Args:
        within: what goes before its command, such as ``ip netns exec NAME``.
    """

    def __init__(self, within: Sequence[str] = ()) -> None:
        self._process = subprocess.Popen(
            [*within, sys.executable, "-m", "benchmarks.serving_client"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=_ROOT,
        )

    def closed(self, asked: Asked, *, clients: int, seconds: float) -> Answers:
        """Each client sends its next request when the last one is answered."""
        return self._do(asked, {"clients": clients, "seconds": seconds})

    def open(self, asked: Asked, due: Sequence[float] | NDArray[np.float64]) -> Answers:
        """Requests leave when they are due, whether or not earlier ones are answered."""
        return self._do(asked, {"due": list(due)})

    def choosing(self, asked: Asked, due: NDArray[np.float64], carries: Mapping[str, float]) -> Answers:
        """Open loop; each request names the model that carries the rate of the last second, the best first.

        Args:
            carries: requests/s by model. The last one is taken where none carries the rate.
        """
        return self._do(asked, {"due": due.tolist(), "carries": dict(carries)})

    def _do(self, asked: Asked, what: dict[str, Any]) -> Answers:
        with tempfile.TemporaryDirectory(prefix="shifter-") as folder:
            body, out, told = Path(folder, "body"), Path(folder, "out.npz"), Path(folder, "what.json")
            body.write_bytes(asked.body)
            told.write_text(json.dumps(what | {"url": asked.url, "headers": dict(asked.headers)}))
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            print(json.dumps([str(told), str(body), str(out)]), file=self._process.stdin, flush=True)
            if not self._process.stdout.readline():
                raise RuntimeError(f"the client ended with status {self._process.wait()}")
            with np.load(out) as arrays:
                return Answers(
                    arrays["due"],
                    arrays["late"],
                    arrays["seconds"],
                    arrays["status"],
                    arrays["variant"],
                    float(arrays["began"]),
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=60)  # which ends its input, and so itself


class _Connection:
    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.request = -1
        self.received = bytearray()
        self.length = -1

    def received_all(self) -> bool:
        """Reads what has come; whether the answer is whole. Raises ConnectionError if it never will be."""
        try:
            part = self.socket.recv(_RECEIVE, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        if not part:
            raise ConnectionError
        self.received += part
        if self.length < 0:
            end = self.received.find(b"\r\n\r\n")
            if end < 0:
                return False
            found = _LENGTH.search(self.received, 0, end)
            self.length = end + 4 + int(found[1]) if found else _UNKNOWN
        return len(self.received) >= self.length or (
            self.length == _UNKNOWN and self.received.endswith(b"0\r\n\r\n")  # its last chunk
        )


class _Load:
    """Sends messages over as many connections as are needed, and notes what comes back."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._address = (parts.hostname, parts.port or 80)
        self._epoll = select.epoll()
        self._all: dict[int, _Connection] = {}
        self._idle: list[_Connection] = []
        self.rows: list[tuple[float, float, float, int, str]] = []
        self.busy = 0
        self.start = time.perf_counter()
        self.began = time.time()

    def now(self) -> float:
        return time.perf_counter() - self.start

    def send(self, due: float, message: bytes) -> None:
        """Over an idle connection, or a new one."""
        row = len(self.rows)
        try:
            connection = self._idle.pop() if self._idle else self._connect()
            self.rows.append((due, self.now() - due, np.nan, 0, ""))
            connection.socket.sendall(message)
        except OSError:
            if row == len(self.rows):
                self.rows.append((due, self.now() - due, self.now() - due, 0, ""))
            self._note(row, 0, "")
            return
        connection.request = row
        self.busy += 1

    def wait(self, until: float | None) -> int:
        """Until something came, or the moment (seconds from the start); returns how many were answered."""
        timeout = None if until is None else max(0.0, until - self.now())
        select.select([self._epoll], [], [], timeout)  # in microseconds; epoll itself counts milliseconds
        answered = 0
        for number, _ in self._epoll.poll(0):
            connection = self._all[number]
            try:
                if not connection.received_all():
                    continue
                head = bytes(connection.received).partition(b"\r\n\r\n")[0]
                variant = _VARIANT.search(head)
                self._note(connection.request, int(head[9:12]), variant[1].decode() if variant else "")
                closes = _CLOSES.search(head) is not None
            except OSError:
                if connection.request >= 0:
                    self._note(connection.request, 0, "")
                closes = True
            if connection.request >= 0:
                answered += 1
                self.busy -= 1
            connection.request, connection.length = -1, -1
            connection.received.clear()
            if closes:
                self._close(connection)
            else:
                self._idle.append(connection)
        return answered

    def _note(self, row: int, status: int, variant: str) -> None:
        due, late, *_ = self.rows[row]
        self.rows[row] = (due, late, self.now() - due, status, variant)

    def _connect(self) -> _Connection:
        connection = _Connection(self._address)
        self._all[connection.socket.fileno()] = connection
        self._epoll.register(connection.socket, select.EPOLLIN)
        return connection

    def _close(self, connection: _Connection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)
        self._epoll.unregister(connection.socket)
        del self._all[connection.socket.fileno()]
        connection.socket.close()

    def end(self) -> None:
        for connection in list(self._all.values()):
            self._close(connection)
        self._epoll.close()


def _closed(load: _Load, message: bytes, clients: int, seconds: float) -> None:
    for _ in range(clients):
        load.send(load.now(), message)
    while load.busy:
        answered = load.wait(None)
        if (now := load.now()) < seconds:
            for _ in range(answered):
                load.send(now, message)


def _open(
    load: _Load, due: Sequence[float], messages: Mapping[str, bytes], carries: dict[str, float]
) -> None:
    """``messages`` by model, and what each carries; without models, the one message there is."""
    first = 0  # of those due within the last second
    for index, moment in enumerate(due):
        while load.now() < moment:
            load.wait(moment)
        while due[first] < moment - 1.0:
            first += 1
        rate = index - first
        chosen = next((name for name, most in carries.items() if most >= rate), [*messages][-1])
        load.send(moment, messages[chosen])
        load.wait(0.0)
    while load.busy:
        load.wait(None)


def main() -> None:
    """Carries out commands until there are no more."""
    for line in sys.stdin:
        told, body, out = map(Path, json.loads(line))
        what = json.loads(told.read_text())
        asked = Asked(what["url"], what["headers"], body.read_bytes())
        carries = what.get("carries", {})
        names = [*carries] or [""]
        messages = {n: asked.message({"serve_multiplexed_model_id": n} if n else None) for n in names}
        load = _Load(asked.url)
        if "due" in what:
            _open(load, what["due"], messages, carries)
        else:
            _closed(load, messages[""], what["clients"], what["seconds"])
        load.end()
        columns = list(zip(*load.rows, strict=True)) or [()] * 5
        arrays = dict(
            zip(("due", "late", "seconds", "status", "variant"), map(np.array, columns), strict=True)
        )
        np.savez(out, allow_pickle=False, began=np.float64(load.began), **arrays)
        print("done", flush=True)


if __name__ == "__main__":
    main()
