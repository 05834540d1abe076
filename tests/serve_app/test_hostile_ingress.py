"""Hostile and slow clients of Ray Serve's own ingresses: what they keep from the replica, and what not.

``docs/limits.md`` tells what was found.
"""

from __future__ import annotations

import contextlib
import resource
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
def bounded(edge: Ingress, growth: int) -> Iterator[None]:
    """What requests go through takes no more than ``growth`` bytes beyond what it has, with a neighbour."""
    edge.forget_peak()
    before = edge.peaks
    with neighbour(edge):
        yield
    grown = {name: peak - before.get(name, 0) for name, peak in edge.peaks.items()}
    assert sum(grown.values()) < growth, grown


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(600)
def test_hostile_clients_of_the_ingress(edge: Ingress) -> None:
    with bounded(edge, 128 * MIB), contextlib.ExitStack() as open_:
        silent = [open_.enter_context(edge.connect()) for _ in range(100)]
        for client in silent:
            client.sendall(request(b"{", length=1000))
        for client in silent:
            answer = received(client)
            assert status(answer) == 408
            assert "has stopped coming for 2 s" in said(answer)
    with bounded(edge, 64 * MIB), edge.connect() as client:
        client.sendall(request(b"", length=1 << 30))
        assert status(received(client)) == 413
    sent = 0
    with bounded(edge, 512 * MIB), edge.connect() as client:  # the default proxy reads ahead without limit
        client.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while sent < 1 << 30:
                client.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
                sent += 65536
        assert sent < 1 << 29
    with bounded(edge, 64 * MIB):
        for _ in range(100):
            with edge.connect() as client:
                client.sendall(request(b"{", length=1000))


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.parametrize(
    ("sent", "statuses"),
    [
        (HEAD + b"Content-Length: many\r\n\r\n", {400}),
        (HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", {400}),
        (HEAD + b"X: " + b"x" * (100 << 10) + b"\r\nContent-Length: 2\r\n\r\n{}", {400, 422, 431}),
        (b"GET /nowhere HTTP/1.1\r\nHost: [\r\n\r\n", {400, 404}),
        (b"OPTIONS /predict HTTP/1.1\r\nHost: edge\r\n\r\n", {405}),
        (b"HEAD /status HTTP/1.1\r\nHost: edge\r\nConnection: close\r\n\r\n", {200}),
        (b"\0" * 1000, {400}),
    ],
)
def test_what_is_no_proper_request_is_refused(edge: Ingress, sent: bytes, statuses: set[int]) -> None:
    with neighbour(edge):
        assert status(edge.ask(sent)) in statuses


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(600)
def test_thousands_of_idle_connections_of_the_ingress(edge: Ingress) -> None:
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 20_000:
        pytest.skip("HAProxy opens two files and a half for each connection")
    with bounded(edge, 256 * MIB), contextlib.ExitStack() as open_:
        idle = [open_.enter_context(edge.connect()) for _ in range(7_000)]
        assert ask(edge, GOOD) == (200, "")
        if edge.limits_silence:
            assert status(received(idle[0])) == 408
