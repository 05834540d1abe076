"""The client that puts a service under load, in an open or a closed loop.

It posts bodies that are encoded already and keeps what comes back unparsed, so as not to disturb what
it measures. A latency counts from when the request was due: a service that stalls cannot hide it by
slowing the client down (coordinated omission).
"""

from __future__ import annotations

import asyncio
import io
import itertools
import tempfile
import time
from array import array
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

import numpy as np

from jobs.protocols import Read, Request, refusal
from jobs.records import Record, Recording

if TYPE_CHECKING:
    import aiohttp

VARIANT_HEADER = "X-Shifter-Variant"
JSON_LENGTH_HEADER = "Inference-Header-Content-Length"

# Less than servers keep an idle connection for: one that they close as a request leaves loses it.
_KEEP_IDLE_S = 3.0
_LARGE = 2**20


class Fate(IntEnum):
    """Why no answer came."""

    ANSWERED = 0
    TIMED_OUT = 1
    NO_CONNECTION = 2
    CONNECTION_LOST = 3
    NO_HTTP = 4
    NOT_SENT = 5


CAUSES = {
    Fate.TIMED_OUT: "timed out",
    Fate.NO_CONNECTION: "no connection",
    Fate.CONNECTION_LOST: "connection lost",
    Fate.NO_HTTP: "no valid HTTP",
    Fate.NOT_SENT: "not sent: too many in flight",
}
BROKEN = "broken answer"


@dataclass(frozen=True)
class Target:
    """Where requests go, and how.

    Args:
        url: of the service; requests have paths below it.
        headers: of each, beside its own.
        timeout_s: from when a request is sent until its answer's last byte; then it has failed.
        max_in_flight: requests, and so connections, at a time. One that is due while so many are out
            is not sent, and recorded as such.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 30.0
    max_in_flight: int = 10_000


class Log:
    """What came back, in columns, in the order in which it did; payloads in a file.

    Args:
        payloads: a file that can be written and read.
    """

    _TYPES: Mapping[str, str] = {
        **dict.fromkeys(("index", "status", "fate", "variant", "json_length", "offset", "length"), "q"),
        **dict.fromkeys(("scheduled", "sent", "latency"), "d"),
    }

    def __init__(self, payloads: IO[bytes]) -> None:
        self.began = time.time()
        self.cpu_share = 0.0
        self.columns: dict[str, array[Any]] = {name: array(kind) for name, kind in self._TYPES.items()}
        self._variants: dict[str | None, int] = {None: 0}
        self._payloads = payloads
        self._end = 0

    def add(
        self,
        index: int,
        scheduled: float,
        sent: float,
        latency: float,
        fate: Fate,
        status: int = 0,
        variant: str | None = None,
        json_length: int = 0,
        payload: bytes = b"",
    ) -> None:
        number = self._variants.setdefault(variant, len(self._variants))
        row = {
            "index": index,
            "status": status,
            "fate": int(fate),
            "variant": number,
            "json_length": json_length,
            "offset": self._end,
            "length": len(payload),
            "scheduled": scheduled,
            "sent": sent,
            "latency": latency,
        }
        for name, column in self.columns.items():
            column.append(row[name])
        self._payloads.write(payload)
        self._end += len(payload)

    def __len__(self) -> int:
        return len(self.columns["index"])

    def save(self, path: Path) -> None:
        """All but the payloads, as an ``.npz`` file."""
        self._payloads.flush()
        variants = np.array([name or "" for name in self._variants], np.str_)
        columns = {name: np.frombuffer(column, column.typecode) for name, column in self.columns.items()}
        meta = np.array([self.began, self.cpu_share])
        np.savez(path, allow_pickle=False, variants=variants, meta=meta, **columns)

    @classmethod
    def load(cls, path: Path, payloads: IO[bytes]) -> Self:
        """What `save` wrote, beside the payloads."""
        log = cls(payloads)
        with np.load(path, allow_pickle=False) as file:
            log.began, log.cpu_share = file["meta"].tolist()
            log._variants = {name or None: number for number, name in enumerate(file["variants"].tolist())}
            log.columns = {name: array(kind, file[name].tobytes()) for name, kind in cls._TYPES.items()}
        return log

    def recording(
        self, asked: Sequence[tuple[int, ...]], read: Read, *, keep_logits: bool = False
    ) -> Recording:
        """One record for each request, in their order.

        Args:
            asked: which images each carries, from the start again at the end.
            read: parses an answer; one that it refuses is recorded as broken.
            keep_logits: they may be large.
        """
        names = list(self._variants)
        columns = self.columns
        records = []
        for row in np.argsort(np.frombuffer(columns["index"], np.int64), kind="stable").tolist():
            status, fate = columns["status"][row], Fate(columns["fate"][row])
            images = asked[columns["index"][row] % len(asked)]
            cause = CAUSES.get(fate, "")
            predicted = logits = None
            if fate is Fate.ANSWERED:
                self._payloads.seek(columns["offset"][row])
                payload = self._payloads.read(columns["length"][row])
                if status == 200:
                    try:
                        answer = read(payload, columns["json_length"][row], len(images))
                    except (ValueError, KeyError, TypeError, IndexError):
                        cause = BROKEN
                    else:
                        predicted = tuple(answer.argmax(axis=1).tolist())
                        logits = answer if keep_logits else None
                else:
                    cause = refusal(status, payload)
            records.append(
                Record(
                    columns["scheduled"][row],
                    columns["sent"][row],
                    columns["latency"][row],
                    status,
                    names[columns["variant"][row]] if status == 200 else None,
                    images,
                    logits,
                    predicted,
                    cause,
                )
            )
        return Recording(self.began, records, self.cpu_share)


class Client:
    """Posts bodies and logs what came back. Made by `client`; its clock starts with it."""

    def __init__(self, session: aiohttp.ClientSession, target: Target, log: Log) -> None:
        self._session, self._target, self.log = session, target, log
        self._clock = time.perf_counter
        self._start = self._clock()
        self.sent = self.in_flight = self.answered = 0

    def now(self) -> float:
        """Seconds from the start."""
        return self._clock() - self._start

    async def post(self, index: int, scheduled: float, request: Request) -> None:
        """Sends one request that was due ``scheduled`` seconds from the start."""
        from aiohttp import ClientConnectorError, ClientError, ClientOSError, ServerDisconnectedError

        late = self.now() - scheduled
        if self.in_flight >= self._target.max_in_flight:
            self.log.add(index, scheduled, late, late, Fate.NOT_SENT)
            return
        self.sent += 1
        self.in_flight += 1
        fate, status, variant, json_length, payload = Fate.ANSWERED, 0, None, 0, b""
        try:
            # Large bytes block the loop, of which aiohttp warns; a file-like body goes piece by piece.
            data = request.body if len(request.body) < _LARGE else io.BytesIO(request.body)
            url = self._target.url + request.path
            async with self._session.post(url, data=data, headers=request.headers) as response:
                payload = await response.read()
                status, variant = response.status, response.headers.get(VARIANT_HEADER)
                length = response.headers.get(JSON_LENGTH_HEADER, "0")
                json_length = int(length) if length.isdecimal() and len(length) < 10 else 0
        except TimeoutError:
            fate = Fate.TIMED_OUT
        except ClientConnectorError:
            fate = Fate.NO_CONNECTION
        except (ClientOSError, ServerDisconnectedError):
            fate = Fate.CONNECTION_LOST
        except ClientError:
            fate = Fate.NO_HTTP
        finally:
            self.in_flight -= 1
        latency = self.now() - scheduled
        self.answered += status == 200
        self.log.add(index, scheduled, late, latency, fate, status, variant, json_length, payload)


@asynccontextmanager
async def client(target: Target, log: Log) -> AsyncIterator[Client]:
    """A client with connections of its own, which are reused."""
    from aiohttp import ClientSession, ClientTimeout, DummyCookieJar, TCPConnector

    async with ClientSession(
        connector=TCPConnector(limit=0, keepalive_timeout=_KEEP_IDLE_S),
        timeout=ClientTimeout(total=target.timeout_s),
        headers=target.headers,
        cookie_jar=DummyCookieJar(),
        auto_decompress=False,
    ) as session:
        one = Client(session, target, log)
        busy = time.process_time()
        log.began = time.time()
        yield one
        log.cpu_share = (time.process_time() - busy) / max(one.now(), 1e-9)


async def drive(
    target: Target,
    due: Sequence[float],
    requests: Sequence[Request],
    log: Log,
    watch: Callable[[Client], None] | None = None,
) -> None:
    """Open loop: sends ``requests[i % len(requests)]`` at ``due[i]`` seconds from now.

    Args:
        watch: called once a second.
    """
    async with client(target, log) as one:
        watching = asyncio.create_task(_every_second(one, watch)) if watch else None
        tasks: set[asyncio.Task[None]] = set()
        for index, moment in enumerate(due):
            # Also where it is late already: else no answer would be read until it has caught up.
            await asyncio.sleep(max(0.0, moment - one.now()))
            task = asyncio.create_task(one.post(index, moment, requests[index % len(requests)]))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
        if watching is not None:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


async def _every_second(one: Client, watch: Callable[[Client], None]) -> None:
    while True:
        await asyncio.sleep(1.0)
        watch(one)


async def saturate(
    target: Target, seconds: float, clients: int, requests: Sequence[Request], log: Log
) -> None:
    """Closed loop: ``clients`` of them, each sending its next request when the last one is answered."""
    async with client(target, log) as one:
        turns = itertools.count()

        async def again_and_again() -> None:
            while (now := one.now()) < seconds:
                index = next(turns)
                await one.post(index, now, requests[index % len(requests)])

        await asyncio.gather(*(again_and_again() for _ in range(clients)))


def temporary_payloads() -> IO[bytes]:
    """A file for a log, that is gone when it is closed."""
    return tempfile.TemporaryFile(prefix="shifter-answers-", buffering=_LARGE)
