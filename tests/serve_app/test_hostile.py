"""Hostile and slow clients of the application under uvicorn: refused, in bounded memory, beside others."""

from __future__ import annotations

import contextlib
import http.client
import json
import resource
import socket
import threading
import time
import zlib
from collections.abc import Iterator

import pytest

from .server import Server, received, serving
from .test_pictures import JPEG, PNG, chunk, scans, with_chunks
from .test_protocol import bomb

MIB = 1 << 20
LIMIT = MIB
JSON = "application/json"
GOOD = json.dumps({"images": [[[7] * 8] * 8]}).encode()


@pytest.fixture(scope="module")
def server(portfolio_bytes: bytes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "portfolio.zip").write_bytes(portfolio_bytes)
    with serving(
        folder / "portfolio.zip",
        folder / "log",
        max_body_bytes=LIMIT,
        max_image_pixels=MIB,
        body_timeout_s=2.0,
        body_silence_s=1.0,
    ) as server:
        ask(server, GOOD)
        yield server


def request(body: bytes, kind: str = JSON, length: int | None = None) -> bytes:
    length = len(body) if length is None else length
    head = f"POST /predict HTTP/1.1\r\nHost: edge\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
    return head.encode() + body


def status(answer: bytes) -> int:
    """Of the last response in it."""
    assert answer.startswith(b"HTTP/1.1 "), answer[:200]
    return int(answer[answer.rindex(b"HTTP/1.1 ") :].split(b" ", 2)[1])


def said(answer: bytes) -> str:
    return json.loads(answer.rpartition(b"\r\n\r\n")[2])["error"]


def ask(server: Server, body: bytes, kind: str = JSON) -> tuple[int, str]:
    """Status, and what is said of it."""
    client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    with contextlib.closing(client):
        client.request("POST", "/predict", body, {"Content-Type": kind})
        response = client.getresponse()
        content = json.loads(response.read())
        return response.status, content.get("error", "")


@contextlib.contextmanager
def neighbour(server: Server) -> Iterator[None]:
    """Another client, who is answered each time."""
    over = threading.Event()
    statuses: list[int] = []

    def asking() -> None:
        client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        with contextlib.closing(client):
            while not over.is_set():
                client.request("POST", "/predict", GOOD, {"Content-Type": JSON})
                response = client.getresponse()
                response.read()
                statuses.append(response.status)
                time.sleep(0.01)

    thread = threading.Thread(target=asking)
    thread.start()
    try:
        while not statuses and thread.is_alive():
            time.sleep(0.01)
        yield
        before = len(statuses)
        while len(statuses) < before + 2 and thread.is_alive():  # whom nothing that was done holds up
            time.sleep(0.01)
    finally:
        over.set()
        thread.join()
    assert set(statuses) == {200}


@contextlib.contextmanager
def bounded(server: Server, growth: int) -> Iterator[None]:
    """The server takes no more than ``growth`` bytes beyond what it has, and logs no fault of its own."""
    before = server.forget_peak()
    yield
    grown = server.peak_bytes - before
    assert grown < growth, f"{grown / MIB:.0f} MiB more"
    assert "Traceback" not in server.log.read_text()


def test_a_body_that_comes_slowly_is_given_up(server: Server) -> None:
    with neighbour(server), bounded(server, 32 * MIB), contextlib.ExitStack() as open_:
        silent = [open_.enter_context(server.connect()) for _ in range(200)]
        for client in silent:
            client.sendall(request(b"{", length=1000))
        dripping = open_.enter_context(server.connect())
        dripping.sendall(request(b"", length=1000))
        dripped = 0
        with contextlib.suppress(OSError):
            while dripped < 100:
                dripping.sendall(b" ")
                dripped += 1
                time.sleep(0.1)
        assert dripped < 100  # the connection is closed before
        for client in silent:
            answer = received(client)
            assert status(answer) == 408
            assert "has stopped coming for 1 s" in said(answer)
    with server.connect() as client:
        client.sendall(request(b"", length=1 << 19))
        answer = b""
        client.settimeout(0.1)
        while not answer:
            client.sendall(b" ")
            with contextlib.suppress(TimeoutError):
                answer = received(client)
    assert status(answer) == 408
    assert "is not here after 2 s" in said(answer)
    assert b"connection: close" in answer.lower()


def test_a_body_that_is_cut_off_disturbs_nobody(server: Server) -> None:
    with neighbour(server), bounded(server, 16 * MIB):
        for cut in (b"", b"{", GOOD[:-1]):
            for _ in range(50):
                with server.connect() as client:
                    client.sendall(request(cut, length=1000))
        with server.connect() as client:
            client.sendall(request(b"{", length=1000))
            client.shutdown(socket.SHUT_WR)
            assert received(client)[:12] in (b"", b"HTTP/1.1 400", b"HTTP/1.1 408")


def test_a_gigabyte_that_is_declared_is_refused_unread(server: Server) -> None:
    with neighbour(server), bounded(server, 16 * MIB), server.connect() as client:
        client.sendall(request(b"", length=1 << 30))
        answer = received(client)
        assert status(answer) == 413
        assert str(LIMIT) in said(answer)
        assert b"connection: close" in answer.lower()
        assert client.recv(1) == b""


@pytest.mark.parametrize("path", ["/predict", "/status", "/nowhere"])
def test_a_gigabyte_without_a_length_is_cut_off(server: Server, path: str) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: edge\r\nContent-Type: {JSON}\r\nTransfer-Encoding: chunked\r\n\r\n"
    part = b"10000\r\n" + b" " * 65536 + b"\r\n"
    sent = 0
    with neighbour(server), bounded(server, 16 * MIB), server.connect() as client:
        client.sendall(head.encode())
        with contextlib.suppress(ConnectionError):
            while sent < 1 << 30:
                client.sendall(part)
                sent += len(part)
        assert sent < 64 * MIB  # what lay in the kernel's buffers
        answer = received(client)
    if answer:  # a reset may overtake it
        assert status(answer) == {"/predict": 413, "/status": 405, "/nowhere": 404}[path]


def test_many_large_bodies_at_once_take_no_more_than_their_limit_each(server: Server) -> None:
    with neighbour(server), bounded(server, (20 * 3 + 16) * MIB), contextlib.ExitStack() as open_:
        clients = [open_.enter_context(server.connect()) for _ in range(20)]
        for client in clients:
            client.sendall(request(b" " * (LIMIT - 1), length=LIMIT))
        assert {status(received(client)) for client in clients} == {408}


HEAD = b"POST /predict HTTP/1.1\r\nHost: edge\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("sent", "statuses"),
    [
        (HEAD + b"Content-Length: many\r\n\r\n", {400}),
        (HEAD + b"Content-Length: -1\r\n\r\n", {400}),
        (HEAD + b"Content-Length: " + b"9" * 400 + b"\r\n\r\n", {400, 413}),
        (HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", {400}),
        (HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", {400}),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nmany\r\n{}\r\n0\r\n\r\n", {400}),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n2;said=yes\r\n{}\r\n0\r\nTrailer: 1\r\n\r\n", {422}),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n{}", {400, 408}),
        (HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", {400, 422}),
        (HEAD + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}", {415}),
        (HEAD + b"X: " + b"x" * (100 << 10) + b"\r\nContent-Length: 2\r\n\r\n{}", {400, 422, 431}),
        (HEAD + b"X: x\r\n" * 5000 + b"Content-Length: 2\r\n\r\n{}", {400, 422, 431}),
        (HEAD + b"X\0: \0\r\nContent-Length: 2\r\n\r\n{}", {400}),
        (HEAD + b"Content-Length: 0\r\n\r\n", {400}),
        (HEAD + b"Content-Type: image/png\r\nContent-Length: 2\r\n\r\n{}", {400, 415, 422}),
        (HEAD.replace(b"application/json", b"\xff\xfe") + b"Content-Length: 2\r\n\r\n{}", {415}),
        (HEAD.replace(b"Host: edge", b"Host: [") + b"Content-Length: 2\r\n\r\n{}", {422}),
        (b"GET /nowhere HTTP/1.1\r\nHost: [\r\n\r\n", {404}),
        (b"GET /nowhere HTTP/1.1\r\n\r\n", {404}),
        (b"GET /" + b"a" * 60_000 + b" HTTP/1.1\r\nHost: edge\r\n\r\n", {404, 414}),
        (b"GET /%ff%00%2e%2e/..%2f HTTP/1.1\r\nHost: edge\r\n\r\n", {404}),
        (b"GET /\xff\xfe HTTP/1.1\r\nHost: edge\r\n\r\n", {400, 404}),
        (b"GET http://[ HTTP/1.1\r\nHost: edge\r\n\r\n", {400, 404}),
        (b"GET * HTTP/1.1\r\nHost: edge\r\n\r\n", {400, 404}),
        (b"POST /predict/ HTTP/1.1\r\nHost: evil\r\nContent-Length: 0\r\n\r\n", {404}),
        (b"OPTIONS /predict HTTP/1.1\r\nHost: edge\r\n\r\n", {405}),
        (b"DELETE /status HTTP/1.1\r\nHost: edge\r\n\r\n", {405}),
        (b"TRACE /status HTTP/1.1\r\nHost: edge\r\n\r\n", {405}),
        (b"CONNECT edge:80 HTTP/1.1\r\nHost: edge\r\n\r\n", {400, 404, 405}),
        (b"BREW /status HTTP/1.1\r\nHost: edge\r\n\r\n", {400, 405}),
        (b"GET /status HTTP/9.9\r\nHost: edge\r\n\r\n", {400, 505}),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400}),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), {400}),
        (b"\0" * 1000, {400}),
    ],
)
def test_what_is_no_proper_request_is_refused(server: Server, sent: bytes, statuses: set[int]) -> None:
    with neighbour(server), bounded(server, 16 * MIB):
        answer = server.ask(sent)
        assert status(answer) in statuses
        assert len(answer) < 4096
        if b"application/json" in answer:
            assert said(answer)


def test_every_method_of_a_path_is_allowed_in_the_405(server: Server) -> None:
    for path, allowed in (("predict", b"POST"), ("status", b"GET, HEAD"), ("docs", b"GET, HEAD")):
        answer = server.ask(f"OPTIONS /{path} HTTP/1.1\r\nHost: edge\r\n\r\n".encode())
        assert b"\r\nallow: " + allowed + b"\r\n" in answer, path


def test_what_http_allows_is_answered(server: Server) -> None:
    head = b"HTTP/1.1\r\nHost: edge\r\n"
    answer = server.ask(b"GET /status " + head + b"Range: bytes=0-1\r\n\r\n")
    assert status(answer) == 200
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["model"] == "tiny"
    old = server.ask(request(GOOD).replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert (status(old), b"connection: close" in old.lower()) == (200, True)
    expects = request(GOOD).replace(b"Host", b"Expect: 100-continue\r\nHost")
    assert server.ask(expects).startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200")
    # No invitation to send what will not be read.
    assert (
        server.ask(request(b"", length=1 << 30).replace(b"Host", b"Expect: 100-continue\r\nHost"))[9:12]
        == b"413"
    )
    client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    with contextlib.closing(client):
        for path in ("/status", "/docs", "/openapi.json", "/status"):  # one connection
            client.request("HEAD", path)
            response = client.getresponse()
            assert (response.status, response.read()) == (200, b"")
            assert int(response.headers["content-length"]) > 100


def test_requests_in_a_row_are_answered_in_order(server: Server) -> None:
    with neighbour(server), server.connect() as client:
        client.sendall(
            request(b"{") * 20 + request(GOOD) + b"GET /nowhere HTTP/1.1\r\nConnection: close\r\n\r\n"
        )
        answer = b""
        while part := client.recv(65536):
            answer += part
    statuses = [int(one[:3]) for one in answer.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [400] * 20 + [200, 404]


ROOM = LIMIT - 100


@pytest.mark.parametrize(
    "body",
    [
        *(b"[" * ROOM, b'{"a":' * (ROOM // 5), b'{"images":' + b"[" * 500 + b"]" * 500 + b"}"),
        *(
            b'{"images": [' + b"[]," * (ROOM // 3) + b"[]]}",
            b'{"images": [[' + b"[]," * (ROOM // 3) + b"[]]]}",
        ),
        *(b'{"images": [' + b"9" * ROOM + b"]}", b'{"images": [[[1e400]]]}', b'{"images": [[[1e-400]]]}'),
        *(
            b'{"images": [[[NaN]]]}',
            b'{"images": [[[-Infinity]]]}',
            b'{"images": [[[340282366920938463463]]]}',
        ),
        *(b'{"images": [[[18446744073709551615, -1]]]}', b'{"images": [[[null]]]}', b'{"images": null}'),
        *(
            GOOD[:-1] + b"," + GOOD[1:],
            b'{"images": [[1], 2, [[3]]]}',
            b'{"images": ["' + b"a" * ROOM + b'"]}',
        ),
        *(
            b'{"images": [["\xff"]]}',
            b'{"images": [["\\ud800"]]}',
            b"\xef\xbb\xbf" + GOOD,
            GOOD.decode().encode("utf-16"),
        ),
        *(b'{"images": [[' + b'"a",' * (ROOM // 4 - 20) + b'"a"]]}', b'{"' + b"a" * ROOM + b'": 1}'),
        *(
            b"{" + b",".join(b'"%d":0' % i for i in range(90_000)) + b"}",
            b"null",
            b"7",
            b'"images"',
            b"[]",
            b" ",
        ),
        b'{"images": [[' + b'{"a":0},' * (ROOM // 8 - 20) + b"0]]}",
    ],
)
def test_json_made_to_cost_is_refused(server: Server, body: bytes) -> None:
    with neighbour(server), bounded(server, 64 * MIB):
        code, told = ask(server, body)
    assert code in (400, 413, 422)
    assert told
    assert len(told) < 4096


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (bomb(100_000, 100_000), 413),
        (bomb(2**31 - 1, 2**31 - 1), 413),
        (JPEG.replace(b"\0\x04\0\x06", b"\xff\xdc\xff\xdc", 1), 413),
        (scans(1024, 20_000), 400),
        (scans(1024, 40), 413),
        (with_chunks(PNG, *[chunk(b"IDAT", b"")] * 80_000), 400),
        (with_chunks(PNG, *[chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(64 << 20), 9))] * 10), 200),
        (with_chunks(PNG, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(256 << 20), 9))), 200),
        (JPEG[:2] + b"\xff\xfe\0\2" * 200_000 + JPEG[2:], 400),
        (PNG[: len(PNG) // 2], 400),
        (b"", 400),
    ],
)
def test_an_image_made_to_cost_is_refused_or_read_for_its_pixels(
    server: Server, body: bytes, code: int
) -> None:
    with neighbour(server), bounded(server, 64 * MIB):
        got, told = ask(server, body, "image/png")
    assert got == code, told
    assert bool(told) == (code != 200)


def idle(server: Server, count: int) -> None:
    with neighbour(server), bounded(server, 16 * MIB + count * 16 * 1024), contextlib.ExitStack() as open_:
        for _ in range(count):
            open_.enter_context(server.connect())
        assert ask(server, GOOD) == (200, "")
    assert ask(server, GOOD) == (200, "")


def test_idle_connections_disturb_nobody(server: Server) -> None:
    idle(server, 500)


@pytest.mark.long
def test_ten_thousand_idle_connections_disturb_nobody(server: Server) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 11_000:
        pytest.skip(f"a process may open {hard} files here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        idle(server, 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
