"""A newer portfolio is noticed, read and handed over; a bad one is refused once, storage asked again."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shifter.errors import PackageError, StoreError
from shifter.portfolio import Portfolio, pack
from shifter.portfolio.source import Source
from shifter.run import Run
from shifter.store import Store
from shifter.switching.host import Host
from shifter.switching.initialise import initialise
from shifter.switching.policies import Slo
from shifter.switching.refresh import Refresh

from .. import s3
from .test_host import IMAGES, same, submit
from .test_takeover import SPEC, Making, logits, make  # noqa: F401 - a fixture


class Place:
    """A source whose package is replaced, and which fails when it is told to."""

    def __init__(self, data: bytes) -> None:
        self.data, self.failing = data, False
        self.opened = 0

    def version(self) -> str:
        self._answer()
        return str(hash(self.data))

    def open(self, most_bytes: int | None = None) -> Portfolio:
        self._answer()
        self.opened += 1
        return Portfolio.open(self.data)

    def _answer(self) -> None:
        if self.failing:
            raise StoreError("the storage does not answer")


def repacked(portfolio: Portfolio) -> bytes:
    variants = [portfolio.inflate(name) for name in portfolio.names]
    return pack(variants, portfolio.input_spec, model="tiny", provenance=portfolio.manifest.provenance)


@pytest.fixture
def newer(make: Making) -> bytes:  # noqa: F811
    return repacked(make(1))


def wait_until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < end, "it takes longer than a minute"
        time.sleep(0.001)


def looking(host: Host, place: Place) -> Refresh:
    return Refresh(host, place, place.version(), clock=lambda: 7.0)


def test_a_newer_one_is_taken_over_and_an_older_one_named_again_too(package: bytes, newer: bytes) -> None:
    place = Place(package)
    with initialise(place.open(), Slo(0.05)) as host:
        refresh = looking(host, place)
        assert refresh.last is None
        for data in (package, newer, newer, package):
            place.data = data
            refresh.look()
            assert host.portfolio.digest == Portfolio.open(data).digest
            assert submit(host, IMAGES).result().portfolio == host.portfolio.digest
            assert (refresh.last.time, refresh.last.error) == (7.0, None)
        assert place.opened == 3  # at the start, and twice another one


def test_the_same_bytes_under_another_version_change_nothing(package: bytes) -> None:
    place = Place(package)
    with initialise(place.open(), Slo(0.05)) as host:
        refresh = Refresh(host, place, "another version")
        portfolio = host.portfolio
        refresh.look()
        refresh.look()
        assert host.portfolio is portfolio
        assert place.opened == 2


def test_a_bad_one_is_refused_once_until_there_is_another(package: bytes, newer: bytes) -> None:
    place = Place(package)
    with initialise(place.open(), Slo(0.05)) as host:
        refresh, first = looking(host, place), host.portfolio
        place.data = newer[: len(newer) // 2]
        for _ in range(3):
            refresh.look()
            assert "PackageError: " in refresh.last.error
            assert host.portfolio is first
        place.failing = True
        refresh.look()
        assert "does not answer" in refresh.last.error
        place.failing = False
        refresh.look()
        assert "PackageError: " in refresh.last.error
        assert place.opened == 2
        place.data = newer
        refresh.look()
        assert refresh.last.error is None
        assert host.portfolio is not first


def test_storage_that_fails_for_a_while_is_asked_again(package: bytes, newer: bytes) -> None:
    place = Place(package)
    with initialise(place.open(), Slo(0.05)) as host:
        refresh, first = looking(host, place), host.portfolio
        place.data, place.failing = newer, True
        for _ in range(3):
            refresh.look()
            assert refresh.last.error == "the storage does not answer"
            assert host.portfolio is first
            assert submit(host, IMAGES).result().portfolio == first.digest
        place.failing = False
        refresh.look()
        assert refresh.last.error is None
        assert host.portfolio.digest == Portfolio.open(newer).digest


def test_whatever_is_wrong_with_it_the_one_that_serves_goes_on(package: bytes, newer: bytes) -> None:
    class Broken(Place):
        def open(self, most_bytes: int | None = None) -> Portfolio:
            self.opened += 1
            raise RecursionError("a hostile one that no check knows")

    place = Broken(package)
    with initialise(Portfolio.open(package), Slo(0.05)) as host:
        refresh = looking(host, place)
        place.data = newer
        refresh.look()
        refresh.look()
        assert refresh.last.error == "RecursionError: a hostile one that no check knows"
        assert place.opened == 1
        assert submit(host, IMAGES).result().portfolio == Portfolio.open(package).digest


def test_a_look_survives_whatever_goes_wrong_in_it(package: bytes) -> None:
    class Strange(Place):
        def version(self) -> str:
            raise RecursionError("too deep")

    with initialise(Portfolio.open(package), Slo(0.05)) as host:
        refresh = Refresh(host, Strange(package), "1")
        refresh.look()
        assert refresh.last.error == "RecursionError: too deep"


def test_what_found_no_memory_is_tried_again(package: bytes, newer: bytes) -> None:
    class Full(Place):
        full = True

        def open(self, most_bytes: int | None = None) -> Portfolio:
            if self.full:
                raise MemoryError("no room")
            return super().open()

    place = Full(package)
    with initialise(Portfolio.open(package), Slo(0.05)) as host:
        refresh = looking(host, place)
        place.data = newer
        refresh.look()
        assert refresh.last.error == "MemoryError: no room"
        place.full = False
        refresh.look()
        assert refresh.last.error is None
        assert host.portfolio.digest == Portfolio.open(newer).digest


def test_one_without_room_beside_what_serves_is_tried_again_less_and_less_often(
    package: bytes, newer: bytes
) -> None:
    place, now = Place(package), [0.0]
    first, second = Portfolio.open(package), Portfolio.open(newer)
    room = first.deflated_bytes + second.deflated_bytes + 2000
    with initialise(first, Slo(0.05), memory_bytes=room) as host:
        refresh = Refresh(host, place, place.version(), clock=lambda: now[0])
        place.data, tried = newer, []
        for now[0] in range(0, 300, 5):
            refresh.look()
            assert "NoRoomError: memory_bytes is" in refresh.last.error
            if len(tried) < place.opened:
                tried.append(now[0])
        assert tried == [0, 30, 90, 210]
        host._memory.limit = room + 1000
        for now[0] in (449, 450):
            refresh.look()
        assert refresh.last.error is None
        assert host.portfolio.digest == second.digest


def test_what_the_budget_cannot_hold_is_not_read(package: bytes, newer: bytes, tmp_path: Path) -> None:
    path = tmp_path / "portfolio.zip"
    path.write_bytes(package)
    source, budget = Source(str(path)), len(package) + 5000
    with initialise(source.open(), Slo(0.05), memory_bytes=budget) as host:
        refresh = Refresh(host, source, source.version(), memory_bytes=budget)
        path.write_bytes(newer.ljust(5001, b"\0"))
        refresh.look()
        assert f"has {path.stat().st_size} bytes: there is room for 5000" in refresh.last.error
        assert host.portfolio.digest == Portfolio.open(package).digest


def test_a_damaged_name_is_told_each_time(package: bytes) -> None:
    class Unnamed(Place):
        def version(self) -> str:
            raise PackageError("portfolio.json is damaged")

    with initialise(Portfolio.open(package), Slo(0.05)) as host:
        refresh = Refresh(host, Unnamed(package), "1")
        refresh.look()
        assert refresh.last.error == "portfolio.json is damaged"


def test_a_file_replaced_under_load_is_served_without_losing_a_request(
    package: bytes, newer: bytes, tmp_path: Path
) -> None:
    """The real source: good and broken files come and go, some of them written while they are read."""
    path = tmp_path / "portfolio.zip"
    path.write_bytes(package)
    known = {Portfolio.open(data).digest: Portfolio.open(data) for data in (package, newer)}
    source = Source(str(path), patience_s=0)
    version = source.version()
    with initialise(source.open(), Slo(0.05)) as host:
        expected = {
            (digest, name): logits(each, name, IMAGES)
            for digest, each in known.items()
            for name in each.names
        }
        refresh = Refresh(host, source, version)
        stop = threading.Event()

        def client(_: int) -> set[str]:
            seen = set()
            while not stop.is_set():
                answer = submit(host, IMAGES).result()
                assert same(answer.logits, expected[answer.portfolio, answer.variant])
                seen.add(answer.portfolio)
            return seen

        def looker() -> int:
            looks = 0
            while not stop.is_set():
                refresh.look()
                host.tick()
                looks += 1
            return looks

        with ThreadPoolExecutor(3) as threads:
            clients = [threads.submit(client, index) for index in range(2)]
            looks = threads.submit(looker)
            try:
                for turn in range(12):
                    data = newer if turn % 2 == 0 else package
                    path.write_bytes(data[: 1000 * turn])
                    refused = refresh.last
                    wait_until(lambda refused=refused: refresh.last is not refused)
                    other = tmp_path / "other.zip"
                    other.write_bytes(data)
                    os.replace(other, path)
                    digest = Portfolio.open(data).digest
                    wait_until(lambda digest=digest: host.portfolio.digest == digest)
            finally:
                stop.set()
            assert set().union(*(future.result() for future in clients)) == set(known)
            assert looks.result() >= 12
        assert host.queue == 0


def test_a_file_that_is_gone_is_an_error_and_no_refusal(package: bytes, tmp_path: Path) -> None:
    path = tmp_path / "portfolio.zip"
    path.write_bytes(package)
    source = Source(str(path))
    with initialise(source.open(), Slo(0.05)) as host:
        refresh = Refresh(host, source, source.version())
        path.rename(tmp_path / "away.zip")
        refresh.look()
        assert os.strerror(errno.ENOENT) in refresh.last.error
        (tmp_path / "away.zip").rename(path)
        refresh.look()
        assert refresh.last.error is None


def test_a_run_that_names_a_newer_package_and_then_the_old_one_again(
    package: bytes, newer: bytes, store_uri: str
) -> None:
    """In a folder and in a bucket; a look that finds nothing new reads no package."""
    run = Run(Store.open(store_uri), "digits")
    digests = [Portfolio.open(data).digest for data in (package, newer)]
    for digest, data in zip(digests, (package, newer), strict=True):
        run.store.write(run.portfolio_key(digest), data)

    def name(digest: str) -> None:
        run.store.replace(run.portfolio_json, json.dumps({"current": digest}).encode())

    name(digests[0])
    source = Source(f"{store_uri}/digits", patience_s=0)
    with initialise(source.open(), Slo(0.05)) as host:
        refresh = Refresh(host, source, source.version())
        for digest in (digests[1], digests[0], digests[1]):
            name(digest)
            refresh.look()
            assert refresh.last.error is None
            assert submit(host, IMAGES).result().portfolio == digest
        name("0" * 64)
        refresh.look()
        assert "0000.zip" in refresh.last.error
        assert host.portfolio.digest == digests[1]


def test_a_bucket_that_is_gone_for_a_while(bucket: s3.Server, package: bytes, newer: bytes) -> None:
    store = Store.open(f"s3://{bucket.bucket()}/edge")
    store.write("mine.zip", package)
    source = Source(f"{store.uri}/mine.zip", patience_s=0)
    with initialise(source.open(), Slo(0.05)) as host:
        refresh, first = Refresh(host, source, source.version()), host.portfolio
        store.delete("mine.zip")
        store.write("mine.zip", newer)
        bucket.play(gone=True)
        for _ in range(2):
            refresh.look()
            assert f"no portfolio can be read at {store.uri}/mine.zip" in refresh.last.error
            assert submit(host, IMAGES).result().portfolio == first.digest
        bucket.play()
        refresh.look()
        assert refresh.last.error is None
        assert submit(host, IMAGES).result().portfolio == Portfolio.open(newer).digest
