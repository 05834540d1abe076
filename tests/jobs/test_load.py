"""The load generator: its schedule, its open loop against a real server, and its figures."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from jobs.__main__ import app
from jobs.load_client import BROKEN, CAUSES, Fate, Log, Target, drive, saturate, temporary_payloads
from jobs.protocols import Request, encode, groups, read_predict
from jobs.records import Record, Recording, accuracy, attainment, load, save, summarise, timeline
from jobs.schedule import Schedule, Segment, parse_schedule
from shifter.errors import RecipeError

segments = st.lists(
    st.builds(Segment, seconds=st.floats(0.1, 20), rate=st.floats(0, 50, allow_subnormal=False)),
    min_size=1,
    max_size=5,
)


@given(segments, st.integers(0, 100), st.sampled_from(["poisson", "even"]))
def test_arrivals_ascend_within_the_schedule_and_repeat(segments, seed, spacing) -> None:
    schedule = Schedule.of(segments)
    due = schedule.due(seed, spacing)
    assert np.all(np.diff(due) >= 0)
    assert np.all((due >= 0) & (due <= schedule.total_s + 1e-9))
    assert np.array_equal(due, schedule.due(seed, spacing))


@given(segments)
def test_even_arrivals_follow_the_rate_of_every_segment(schedule) -> None:
    due = Schedule.of(schedule).due(0, "even")
    start = 0.0
    for segment in schedule:
        inside = np.count_nonzero((due >= start) & (due < start + segment.seconds))
        assert abs(inside - segment.seconds * segment.rate) <= 1 + 1e-6
        start += segment.seconds


def test_random_arrivals_have_the_schedules_rate_and_a_poisson_spread() -> None:
    schedule = Schedule.of([Segment(2.0, 100.0), Segment(1.0, 0.0), Segment(2.0, 20.0)])
    counts = np.array([np.histogram(schedule.due(seed), [0, 2, 3, 5])[0] for seed in range(200)], np.float64)
    expected = np.array([200.0, 0.0, 40.0])
    # The mean of 200 runs lies within 5 standard errors, the variance of a count near its mean.
    assert np.all(np.abs(counts.mean(axis=0) - expected) <= 5 * np.sqrt(expected / 200))
    assert np.all(counts[:, 1] == 0)
    assert 0.6 < counts[:, 0].var() / 200 < 1.5


@pytest.mark.parametrize("text", ["", "5", "5:x", "5:1:2", "0:10", "5:-1", "nan:3"])
def test_a_wrong_schedule_is_refused_with_its_text_or_value(text: str) -> None:
    with pytest.raises(RecipeError, match=r"schedule|segment"):
        parse_schedule(text)


def test_a_schedule_reads_as_written() -> None:
    assert parse_schedule("5:20,2.5:60") == [Segment(5, 20), Segment(2.5, 60)]


def test_bodies_carry_the_pixels_exactly() -> None:
    whole = np.arange(32).reshape(2, 1, 4, 4)
    broken = whole / 7
    for images in (whole, whole.astype(np.float32), broken):
        assert np.array_equal(json.loads(encode(images))["images"], images)
    assert b"." not in encode(whole.astype(np.float32))


def test_every_image_has_its_turn() -> None:
    asked = groups(requests=5, per_request=3, images=7)
    assert [index for indices in asked for index in indices] == [i % 7 for i in range(15)]
    # Then it begins anew: as many different ones as it takes for the turns to repeat.
    assert groups(requests=100, per_request=3, images=6) == [(0, 1, 2), (3, 4, 5)]
    assert len(groups(requests=100, per_request=4, images=6)) == 3


def body(index: int) -> Request:
    return Request("/predict", json.dumps({"images": [index]}).encode(), {"Content-Type": "application/json"})


async def answering(
    scenario: Callable[[str, Log], Awaitable[None]], predict: Any, asked: list[tuple[int, ...]]
) -> Recording:
    """What is logged of ``scenario``, given the address of a server that answers with ``predict``."""
    server = web.Application()
    server.router.add_post("/predict", predict)
    runner = web.AppRunner(server, shutdown_timeout=0.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    with temporary_payloads() as payloads:
        log = Log(payloads)
        try:
            await scenario(f"http://127.0.0.1:{runner.addresses[0][1]}", log)
        finally:
            await runner.cleanup()
        return log.recording(asked, read_predict, keep_logits=True)


def test_a_stalled_server_neither_slows_the_client_nor_hides_its_stall() -> None:
    """The first request is held until the last one has arrived: an open loop gets there, and the
    time that the first one waited is in its record."""
    requests = 20
    arrived: list[int] = []
    asked = [(i,) for i in range(requests)]

    async def scenario() -> Recording:
        last = asyncio.Event()

        async def predict(request: web.Request) -> web.Response:
            index = (await request.json())["images"][0]
            arrived.append(index)
            if len(arrived) == requests:
                last.set()
            if index == 0:
                await last.wait()
            if index == 3:
                return web.json_response({"error": "7 wait already"}, status=503)
            if index == 4:
                assert request.transport is not None
                request.transport.abort()
            if index == 5:
                return web.Response(text="a lie", headers={"X-Shifter-Variant": "2x"})
            answer = {"predictions": [{"logits": [float(index), 1.0]}]}
            return web.json_response(answer, headers={"X-Shifter-Variant": "2x"})

        due = [0.01 * i for i in range(requests)]
        bodies = [body(i) for i in range(requests)]
        return await answering(
            lambda url, log: drive(Target(url, timeout_s=20), due, bodies, log), predict, asked
        )

    before = time.time()
    recording = asyncio.run(scenario())
    records = recording.records
    assert before <= recording.began <= time.time()
    assert recording.cpu_share > 0
    assert sorted(arrived) == list(range(requests))
    assert [r.scheduled for r in records] == [0.01 * i for i in range(requests)]
    assert [r.status for r in records] == [200, 200, 200, 503, 0, 200] + [200] * 14
    causes = {3: "HTTP 503: N wait already", 4: CAUSES[Fate.CONNECTION_LOST], 5: BROKEN}
    for index, record in enumerate(records):
        assert record.cause == causes.get(index, "")
        assert record.answered == (index not in causes)
        assert record.refused == (index == 3)
        assert (record.logits is not None) == record.answered
        assert record.logits is None or record.logits.tolist() == [[index, 1.0]]
        assert record.predicted == ((int(index == 0),) if record.answered else None)
        assert record.variant == ("2x" if record.status == 200 else None)
        assert 0 <= record.sent <= record.latency
    # It was answered after the last one had been sent, 0.19 s later: not a matter of speed.
    assert records[0].latency >= 0.19


def test_a_request_beyond_the_cap_is_not_sent_and_one_without_an_answer_times_out() -> None:
    """Nothing is answered in time: two are sent and time out, the others find them in flight."""
    arrived = 0

    async def predict(request: web.Request) -> web.Response:
        nonlocal arrived
        await request.read()
        arrived += 1
        await asyncio.sleep(6)  # three times as long as the client waits
        return web.Response()

    asked = [(i,) for i in range(5)]
    recording = asyncio.run(
        answering(
            lambda url, log: drive(Target(url, {}, 2.0, 2), [0.0] * 5, [body(i) for i in range(5)], log),
            predict,
            asked,
        )
    )
    assert arrived == 2
    assert [r.cause for r in recording.records] == [CAUSES[Fate.TIMED_OUT]] * 2 + [CAUSES[Fate.NOT_SENT]] * 3
    assert [r.images for r in recording.records] == asked
    assert not any(r.answered or r.refused for r in recording.records)


def test_a_closed_loop_keeps_every_client_busy_and_asks_about_everything() -> None:
    inside = most = 0

    async def predict(request: web.Request) -> web.Response:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        index = (await request.json())["images"][0]
        await asyncio.sleep(0.001)
        inside -= 1
        answer = {"predictions": [{"logits": [float(index)]}]}
        return web.json_response(answer, headers={"X-Shifter-Variant": "1x"})

    bodies = [body(i) for i in range(5)]
    asked = [(i,) for i in range(5)]
    recording = asyncio.run(
        answering(lambda url, log: saturate(Target(url), 0.3, 3, bodies, log), predict, asked)
    )
    assert most == 3
    assert len(recording.records) > 5
    for index, one in enumerate(recording.records):
        assert one.images == (index % 5,)
        assert one.logits is not None
        assert one.logits.tolist() == [[index % 5]]


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["load", "--url", "http://127.0.0.1:9", *map(str, arguments)])


def test_images_that_cannot_be_used_are_one_clear_error(tmp_path: Path) -> None:
    good = np.zeros((2, 1, 8, 8))
    files: dict[str, tuple[Any, str]] = {
        "missing.npy": (None, "cannot be read: No such file"),
        "text.npy": (b"no array", "are no .npy file of numbers"),
        "empty.npy": (b"", "are no .npy file of numbers"),
        "object.npy": (np.array([[[[{}]]]]), "are no .npy file of numbers"),
        "flat.npy": (good[:, 0], r"an array of float64, shape (2, 8, 8): numbers of shape (images, channels"),
        "none.npy": (good[:0], "shape (0, 1, 8, 8)"),
        "words.npy": (np.full((1, 1, 1, 1), "a"), "an array of <U1"),
    }
    for name, (content, says) in files.items():
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            np.save(path, content)
        result = command("--images", path, "--schedule", "1:1")
        assert (result.exit_code, result.stdout) == (1, ""), name
        assert result.stderr.startswith(f"error: the images {path} "), result.stderr
        assert says in result.stderr
        assert result.stderr.count("\n") == 1
    np.save(tmp_path / "good.npy", good)
    result = command("--images", tmp_path / "good.npy", "--saturate", 1, "--out", tmp_path / "no" / "x.npz")
    assert result.exit_code == 1
    assert "there is no folder" in result.stderr


def test_a_service_that_is_not_there_answers_nothing_and_that_is_json(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.zeros((2, 1, 8, 8)))
    result = command("--images", tmp_path / "images.npy", "--schedule", "0.1:50", "--even")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout, parse_constant=pytest.fail)
    assert (told["requests"], told["failed"], told["p50_ms"]) == (5, 5, None)


def record(
    scheduled: float, latency: float, status: int = 200, variant: str = "1x", image: int = 0
) -> Record:
    ok = status == 200
    return Record(
        scheduled,
        0.0,
        latency,
        status,
        variant if ok else None,
        (image,),
        np.array([[0.0, 1.0]], np.float32) if ok else None,
        (1,) if ok else None,
        "" if ok else "why",
    )


def test_attainment_counts_refused_and_late_requests_against_the_service() -> None:
    records = [record(0, 0.01), record(1, 0.2), record(2, 0.01, status=503), record(3, 0.05)]
    assert attainment(records, 0.05) == 0.5
    summary = summarise([*records, record(4, 1.0, status=0)], 0.05)
    assert (summary.requests, summary.answered, summary.refused, summary.failed) == (5, 3, 1, 1)
    assert summary.p50_ms == pytest.approx(50)
    assert summary.variants == {"1x": 3}


def test_accuracy_is_of_all_images_asked_about_and_may_demand_them_in_time() -> None:
    labels = np.array([1, 0])
    records = [record(0, 0.01), record(1, 0.2), record(2, 0.01, image=1), record(3, 0.01, status=503)]
    assert accuracy(records, labels) == 0.5
    assert accuracy(records, labels, objective_s=0.05) == 0.25


@given(
    st.lists(
        st.tuples(
            st.floats(0, 30, allow_subnormal=False), st.sampled_from([200, 503]), st.sampled_from("abc")
        )
    )
)
def test_a_timeline_loses_no_request_and_keeps_order(drawn: list[tuple[float, int, str]]) -> None:
    records = [record(when, 0.01, status, variant) for when, status, variant in drawn]
    intervals = timeline(records, 0.05, width_s=2.0)
    assert sum(i.requests for i in intervals) == len(records)
    assert [i.start for i in intervals] == sorted({2.0 * (r.scheduled // 2.0) for r in records})
    assert {v for i in intervals for v in i.variants} == {r.variant for r in records if r.variant}


@pytest.mark.parametrize("statuses", [[], [200], [503], [200, 503, 0, 200]])
def test_records_survive_the_file(statuses: list[int], tmp_path: Path) -> None:
    records = [record(0.5 * i, 0.01, status, image=i) for i, status in enumerate(statuses)]
    save(Recording(1234.5, records), tmp_path / "records.npz")
    recording = load(tmp_path / "records.npz")
    assert recording.began == 1234.5
    read = recording.records
    assert len(read) == len(records)
    for one, other in zip(read, records, strict=True):
        for field in dataclasses.fields(Record):
            a, b = getattr(one, field.name), getattr(other, field.name)
            assert np.array_equal(a, b) if isinstance(b, np.ndarray) else a == b, field.name
