"""Hostile and slow clients of Ray Serve's own ingresses: what they keep from the replica, and what not.

``docs/limits.md`` tells what was found.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import pytest

from .ingress import MODES, Ingress, ingress
from .server import received
from .test_hostile import GOOD, HEAD, MIB, ask, neighbour, request, said, status


@pytest.fixture(scope="module", params=MODES)
def edge(
    request: pytest.FixtureRequest, portfolio_bytes: bytes, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ingress]:
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "portfolio.zip").write_bytes(portfolio_bytes)
    limits = {"max_body_bytes": MIB, "body_timeout_s": 4.0, "body_silence_s": 2.0}
    with ingress(request.param, folder / "portfolio.zip", folder / "log", **limits) as edge:
        end = time.monotonic() + 60
        while ask(edge, GOOD)[0] != 200 and time.monotonic() < end:
            time.sleep(0.2)
        yield edge


@contextlib.contextmanager
def measured(edge: Ingress, what: str, growth: int) -> Iterator[None]:
    edge.forget_peak()
    before = edge.peaks
    yield
    grown = {name: peak - before.get(name, 0) for name, peak in edge.peaks.items()}
    print(
        what,
        {
            name: f"+{bytes_ / MIB:.0f} MiB of {before.get(name, 0) / MIB:.0f}"
            for name, bytes_ in grown.items()
        },
    )
    assert sum(grown.values()) < growth


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(600)
def test_hostile_clients_of_the_ingress(edge: Ingress) -> None:
    with measured(edge, "nobody", 64 * MIB), neighbour(edge):
        time.sleep(2)
    with measured(edge, "slow", 128 * MIB), neighbour(edge), contextlib.ExitStack() as open_:
        silent = [open_.enter_context(edge.connect()) for _ in range(100)]
        for client in silent:
            client.sendall(request(b"{", length=1000))
        answers = [received(client) for client in silent]
        print("slow", {status(answer) for answer in answers}, said(answers[0]))
        assert {status(answer) for answer in answers} == {408}
    with measured(edge, "declared", 64 * MIB), neighbour(edge), edge.connect() as client:
        client.sendall(request(b"", length=1 << 30))
        answer = received(client)
        print("declared", answer)
        assert status(answer) == 413
    sent = 0
    with measured(edge, "chunked", 600 * MIB), neighbour(edge), edge.connect() as client:
        client.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(ConnectionError, TimeoutError):
            while sent < 1 << 30:
                client.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
                sent += 65536
        print("chunked", sent / MIB, "MiB sent;", received(client))
    with measured(edge, "cut off", 64 * MIB), neighbour(edge):
        for _ in range(100):
            with edge.connect() as client:
                client.sendall(request(b"{", length=1000))
    for wrong, statuses in (
        (HEAD + b"Content-Length: many\r\n\r\n", {400}),
        (HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", {400}),
        (HEAD + b"X: " + b"x" * (100 << 10) + b"\r\nContent-Length: 2\r\n\r\n{}", {400, 422, 431}),
        (b"GET /nowhere HTTP/1.1\r\nHost: [\r\n\r\n", {400, 404}),
        (b"OPTIONS /predict HTTP/1.1\r\nHost: edge\r\n\r\n", {405}),
        (b"HEAD /status HTTP/1.1\r\nHost: edge\r\nConnection: close\r\n\r\n", {200}),
        (b"\0" * 1000, {400}),
    ):
        with neighbour(edge):
            answer = edge.ask(wrong)
            print("wrong", wrong[:120], "->", answer[:200])
            assert status(answer) in statuses


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(600)
def test_idle_connections_of_the_ingress(edge: Ingress) -> None:
    for count in (3_000, 9_000):
        with measured(edge, f"idle {count}", 1024 * MIB), contextlib.ExitStack() as open_:
            for _ in range(count):
                open_.enter_context(edge.connect())
            try:
                print("idle", count, ask(edge, GOOD))
            except OSError as error:
                print("idle", count, error)
