"""Open-loop load on a running service, and what it answered.

Requests leave at the times of a schedule whether or not earlier ones have been answered, and a
latency counts from the scheduled time, so a service that stalls cannot hide it by slowing the
client down (coordinated omission). Bodies are encoded before the clock starts and answers are
parsed after it stopped; the client runs in a process of its own.

    python -m jobs.load --url http://127.0.0.1:8000 --images images.npy --schedule 5:20,5:60,5:20
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import typer
from numpy.typing import NDArray

from jobs import cli
from jobs.records import Record, Recording, save, summarise
from shifter.errors import DataError, RecipeError

if TYPE_CHECKING:
    import aiohttp

Spacing = Literal["poisson", "even"]


@dataclass(frozen=True)
class Segment:
    """So many requests a second for so many seconds."""

    seconds: float
    rate: float

    def __post_init__(self) -> None:
        if not (self.seconds > 0 and math.isfinite(self.seconds)):
            raise RecipeError(f"a segment of {self.seconds} s: it must last longer than 0 s")
        if not (self.rate >= 0 and math.isfinite(self.rate)):
            raise RecipeError(f"a segment of {self.rate} requests/s: the rate must be 0 or more")


def parse_schedule(text: str) -> list[Segment]:
    """Reads ``5:20,5:60``: 5 s at 20 requests/s, then 5 s at 60.

    Raises:
        RecipeError: if the text is nothing like that.
    """
    try:
        pairs = [part.split(":") for part in text.split(",")]
        return [Segment(float(seconds), float(rate)) for seconds, rate in pairs]
    except ValueError as error:
        raise RecipeError(
            f"{text!r} is no schedule: write SECONDS:RATE,… as in 5:20,5:60 ({error})"
        ) from error


def arrivals(schedule: Sequence[Segment], seed: int, spacing: Spacing = "poisson") -> NDArray[np.float64]:
    """When requests are due, in seconds from the start, ascending.

    Arrivals of unit rate, random or even, are mapped through the inverse of the expected count up
    to each moment, which makes them follow the schedule's rate.
    """
    seconds = np.array([0.0, *(s.seconds for s in schedule)])
    expected = np.cumsum([0.0, *(s.seconds * s.rate for s in schedule)])
    total = expected[-1]
    if spacing == "even":
        counts = np.arange(math.floor(total + 0.5)) + 0.5
    else:
        random = np.random.default_rng(seed)
        counts = np.cumsum(random.exponential(size=math.ceil(total + 10 * math.sqrt(total) + 10)))
    due: NDArray[np.float64] = np.interp(counts[counts < total], expected, np.cumsum(seconds))
    return due


def image_indices(requests: int, per_request: int, images: int) -> list[tuple[int, ...]]:
    """Which images each request carries: one after another, from the start again at the end."""
    return [
        tuple((first * per_request + offset) % images for offset in range(per_request))
        for first in range(requests)
    ]


def encode(images: NDArray[Any]) -> bytes:
    """The JSON body that asks about ``images``, pixels of shape (n, c, h, w)."""
    # Whole numbers are written as such: a third of the bytes, and exact.
    whole = images.astype(np.int64)
    pixels = whole if np.array_equal(whole, images) else images
    return json.dumps({"images": pixels.tolist()}, separators=(",", ":")).encode()


class _Client:
    """Posts bodies and remembers what came back, unparsed, so as not to disturb what is measured."""

    def __init__(self, session: aiohttp.ClientSession, url: str, asked: Sequence[tuple[int, ...]]) -> None:
        self._session, self._url, self._asked = session, url, asked
        self._raw: list[tuple[int, float, float, float, int, str | None, bytes]] = []
        self._clock = time.perf_counter
        self._start = self._clock()
        self._began = time.time()

    def now(self) -> float:
        """Seconds from the start."""
        return self._clock() - self._start

    async def post(self, index: int, scheduled: float, body: bytes) -> None:
        """Sends one request that was due ``scheduled`` seconds from the start."""
        from aiohttp import ClientError

        sent = self.now() - scheduled
        status, variant, payload = 0, None, b""
        try:
            async with self._session.post(self._url, data=body) as response:
                payload = await response.read()
                status, variant = response.status, response.headers.get("X-Shifter-Variant")
        except (ClientError, TimeoutError):
            pass  # status 0: no answer came, which the record says
        latency = self.now() - scheduled
        self._raw.append((index, scheduled, sent, latency, status, variant, payload))

    def recording(self) -> Recording:
        records = [
            Record(
                scheduled,
                sent,
                latency,
                status,
                variant if status == 200 else None,
                self._asked[index % len(self._asked)],
                _logits(payload) if status == 200 else None,
            )
            for index, scheduled, sent, latency, status, variant, payload in sorted(
                self._raw, key=lambda one: one[0]
            )
        ]
        return Recording(self._began, records)


def _logits(payload: bytes) -> NDArray[np.float32]:
    return np.array([p["logits"] for p in json.loads(payload)["predictions"]], np.float32)


@asynccontextmanager
async def _client(url: str, asked: Sequence[tuple[int, ...]], timeout_s: float) -> AsyncIterator[_Client]:
    """Its clock starts with it."""
    from aiohttp import ClientSession, ClientTimeout, TCPConnector

    async with ClientSession(
        connector=TCPConnector(limit=0),
        timeout=ClientTimeout(total=timeout_s),
        headers={"Content-Type": "application/json"},
    ) as session:
        yield _Client(session, url, asked)


async def drive(
    url: str,
    due: Sequence[float],
    asked: Sequence[tuple[int, ...]],
    bodies: Sequence[bytes],
    timeout_s: float = 30.0,
) -> Recording:
    """Open loop: sends ``bodies[i]`` to ``url`` at ``due[i]`` seconds from now; one record each, in order."""
    async with _client(url, asked, timeout_s) as client:
        tasks = []
        for index, moment in enumerate(due):
            delay = moment - client.now()
            if delay > 0:
                await asyncio.sleep(delay)
            tasks.append(asyncio.create_task(client.post(index, moment, bodies[index])))
        await asyncio.gather(*tasks)
    return client.recording()


async def saturate(
    url: str,
    seconds: float,
    clients: int,
    asked: Sequence[tuple[int, ...]],
    bodies: Sequence[bytes],
    timeout_s: float = 30.0,
) -> Recording:
    """Closed loop: ``clients`` of them, each sending its next request when the last one is answered."""
    async with _client(url, asked, timeout_s) as client:
        turns = itertools.count()

        async def one() -> None:
            while (now := client.now()) < seconds:
                index = next(turns)
                await client.post(index, now, bodies[index % len(bodies)])

        await asyncio.gather(*(one() for _ in range(clients)))
    return client.recording()


def read_images(path: Path) -> NDArray[Any]:
    """The pixels of a ``.npy`` file, real numbers of shape (n, c, h, w).

    Raises:
        DataError: if it cannot be read, or holds anything else.
    """
    try:
        with path.open("rb") as file:
            pixels: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    except OSError as error:
        raise DataError(f"the images {path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise DataError(
            f"the images {path} are no .npy file of numbers ({error}): write one with numpy.save"
        ) from None
    if pixels.ndim != 4 or not pixels.size or pixels.dtype.kind not in "iuf":
        raise DataError(
            f"the images {path} are an array of {pixels.dtype}, shape {pixels.shape}: numbers of shape "
            "(images, channels, height, width) are wanted"
        )
    return pixels


def _bodies(images: NDArray[Any], asked: Sequence[tuple[int, ...]]) -> list[bytes]:
    encoded: dict[tuple[int, ...], bytes] = {}
    for indices in asked:
        if indices not in encoded:
            encoded[indices] = encode(images[list(indices)])
    return [encoded[indices] for indices in asked]


@cli.reports_errors
def main(
    url: Annotated[str, typer.Option(help="Where the service listens, e.g. http://127.0.0.1:8000.")],
    images: Annotated[Path, typer.Option(help="A .npy file of pixels, shape (n, c, h, w).")],
    schedule: Annotated[
        str | None, typer.Option(help="Open loop: SECONDS:REQUESTS_PER_SECOND,…", show_default=False)
    ] = None,
    saturating: Annotated[
        float | None,
        typer.Option("--saturate", help="Closed loop: so many seconds without a pause.", show_default=False),
    ] = None,
    clients: Annotated[int, typer.Option(min=1, help="Of the closed loop.")] = 4,
    per_request: Annotated[int, typer.Option(min=1, help="Images in one request.")] = 1,
    objective_ms: Annotated[float, typer.Option(min=0, help="An answer later than this is late.")] = 100.0,
    seed: Annotated[int, typer.Option(help="Of the random arrivals.")] = 0,
    even: Annotated[bool, typer.Option("--even", help="Even spacing instead of random arrivals.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write the records to this .npz file.", show_default=False)
    ] = None,
    version: cli.Version = False,
) -> None:
    """Put a running service under load; print what it answered, as JSON."""
    cli.require("load", "train", "aiohttp")
    if (schedule is None) == (saturating is None):
        raise RecipeError("give either --schedule, for an open loop, or --saturate, for a closed one")
    pixels = read_images(images)
    if out is not None and not out.absolute().parent.is_dir():
        raise DataError(f"the records cannot be written to {out}: there is no folder {out.parent}")
    target = url.rstrip("/") + "/predict"
    if schedule is not None:
        due = arrivals(parse_schedule(schedule), seed, "even" if even else "poisson").tolist()
        asked = image_indices(len(due), per_request, len(pixels))
        recording = asyncio.run(drive(target, due, asked, _bodies(pixels, asked)))
    else:
        assert saturating is not None
        # As many different requests as it takes for every image to have its turn.
        asked = image_indices(len(pixels), per_request, len(pixels))
        asked = asked[: len(pixels) // math.gcd(len(pixels), per_request)]
        recording = asyncio.run(saturate(target, saturating, clients, asked, _bodies(pixels, asked)))
    if out is not None:
        save(recording, out)
    summary = asdict(summarise(recording.records, objective_ms / 1e3))
    # Of nothing there is no percentile; JSON has no NaN.
    told = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in summary.items()}
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    cli.run(main)
