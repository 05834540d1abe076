"""The lines of a service's log, as Serve's own JSON formatter writes them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from ray._common.formatters import JSONFormatter

from serve_app.log import Log
from serve_app.observer import Answered
from serve_app.service import EdgeService
from serve_app.settings import Settings
from shifter.portfolio import Portfolio
from shifter.switching.host import Status, Switch

DOCS = Path(__file__).parents[2] / "docs" / "observability.md"
SETTINGS = Settings(portfolio="x.zip", objective_ms=100)
FAST = Answered("4x", 2, 0.0123456, 0.004, 8, "abc-1")
LATE = Answered("4x", 1, 0.2, 0.004, 1, "abc-2")
NOW = 1_790_000_000.5


class Lines:
    """What a replica's log would have, newest last; Ray's and Python's own fields left out."""

    def __init__(self) -> None:
        self.records: list[logging.LogRecord] = []

    def all(self) -> list[dict[str, Any]]:
        formatter = JSONFormatter()
        told = [json.loads(formatter.format(record)) for record in self.records]
        ours = ("asctime", "filename", "lineno", "process", "timestamp_ns", "log_to_stderr")
        return [{key: value for key, value in line.items() if key not in ours} for line in told]


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lines]:
    found = Lines()
    logger = logging.getLogger("ray.serve")
    handler = logging.Handler()
    handler.emit = found.records.append  # type: ignore[method-assign]
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield found
    logger.setLevel(level)
    logger.removeHandler(handler)


@pytest.fixture
def status(portfolio_bytes: bytes) -> Status:
    service = EdgeService(Portfolio.open(portfolio_bytes), SETTINGS)
    return replace(service._host.status(), active="4x", since=NOW)


class Clock:
    now = NOW

    def __call__(self) -> float:
        return self.now


def test_a_switch_is_a_line_and_one_that_failed_a_warning(lines: Lines) -> None:
    switch = Switch(NOW, "4x", "1x", "one size up", 0.0314159, False)
    Log(SETTINGS).switched(switch)
    Log(SETTINGS).switched(Switch(NOW, "4x", "1x", "one size up", 1.0, False, "NoRoomError: full"))
    done, failed = lines.all()
    assert done == {
        "levelname": "INFO",
        "message": "switched: 4x to 1x in 31.416 ms: one size up",
        "time": datetime.fromtimestamp(NOW, UTC).isoformat(timespec="milliseconds"),
        "event": "switched",
        "before": "4x",
        "variant": "1x",
        "reason": "one size up",
        "ms": 31.416,
        "ahead": False,
    }
    assert (failed["levelname"], failed["event"]) == ("WARNING", "switch failed")
    assert failed["error"] == "NoRoomError: full"
    assert failed["message"].endswith("one size up: NoRoomError: full")


def test_a_portfolio_is_told_when_it_begins_to_serve_and_once(lines: Lines, status: Status) -> None:
    log = Log(SETTINGS)
    for _ in range(3):
        log.ticked(status)
    (line,) = lines.all()
    assert (line["event"], line["model"], line["portfolio"]) == ("portfolio", "tiny", status.portfolio.digest)
    assert line["variant"] == "4x"
    assert "portfolio_before" not in line
    log._digest = "older"
    log.ticked(status)
    assert lines.all()[-1]["portfolio_before"] == "older"


def test_no_answer_is_logged_unless_it_is_asked_for(lines: Lines, status: Status) -> None:
    log = Log(SETTINGS)
    log.answered(FAST)
    log.ticked(status)
    assert [line["event"] for line in lines.all()] == ["portfolio"]


def test_answers_are_logged_at_the_next_tick_with_what_is_known_of_them(lines: Lines, status: Status) -> None:
    log = Log(Settings(portfolio="x.zip", log_requests=1.0), clock=Clock())
    log.answered(FAST)
    assert not lines.records
    log.ticked(status)
    assert lines.all()[-1] == {
        "levelname": "INFO",
        "message": "answered: abc-1 by 4x in 12.346 ms",
        "time": datetime.fromtimestamp(NOW, UTC).isoformat(timespec="milliseconds"),
        "event": "answered",
        "request_id": "abc-1",
        "variant": "4x",
        "images": 2,
        "ms": 12.346,
        "engine_ms": 4.0,
        "batch": 8,
    }
    assert lines.records[-1].__dict__["log_to_stderr"] is False  # the file is for them, not the console


def test_a_share_of_the_answers_is_logged(lines: Lines, status: Status) -> None:
    drawn = iter([0.1, 0.3, 0.24, 0.9])
    log = Log(Settings(portfolio="x.zip", log_requests=0.25), chance=lambda: next(drawn))
    for number in range(4):
        log.answered(Answered("4x", 1, 0.001, 0.001, 1, str(number)))
    log.ticked(status)
    assert [line["request_id"] for line in lines.all() if line["event"] == "answered"] == ["0", "2"]


def test_late_and_refused_requests_get_a_line_a_second_of_each_kind(lines: Lines, status: Status) -> None:
    clock = Clock()
    log = Log(SETTINGS, clock=clock)
    log.ticked(status)
    for _ in range(100):
        log.answered(LATE)
        log.refused("queue", "abc-3")
        log.refused("engine", "")
    clock.now += 1
    log.answered(LATE)
    log.refused("queue", "abc-4")
    log.ticked(status)
    told = [
        (line["levelname"], line["event"], line.get("cause"), line.get("request_id"), line["left_out"])
        for line in lines.all()[1:]
    ]
    assert told == [
        ("WARNING", "late", None, "abc-2", 0),
        ("WARNING", "refused", "queue", "abc-3", 0),
        ("ERROR", "refused", "engine", None, 0),
        ("WARNING", "late", None, "abc-2", 99),
        ("WARNING", "refused", "queue", "abc-4", 99),
    ]


def test_a_late_answer_that_is_logged_anyway_is_no_second_line(lines: Lines, status: Status) -> None:
    log = Log(Settings(portfolio="x.zip", objective_ms=100, log_requests=1.0))
    log.answered(LATE)
    log.ticked(status)
    assert [line["event"] for line in lines.all()] == ["portfolio", "late"]


def test_lines_that_nobody_writes_are_bounded_and_counted(
    lines: Lines, status: Status, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_app.log._MOST_KEPT", 5)
    log = Log(Settings(portfolio="x.zip", log_requests=1.0))
    for _ in range(8):
        log.answered(FAST)
    log.ticked(status)
    events = [line["event"] for line in lines.all()]
    assert events == ["portfolio", *["answered"] * 5, "left out"]
    assert lines.all()[-1]["left_out"] == 3


def test_an_id_that_a_client_made_up_breaks_no_line(lines: Lines, status: Status) -> None:
    log = Log(Settings(portfolio="x.zip", log_requests=1.0))
    log.answered(Answered("4x", 1, 0.001, 0.001, 1, 'a\n{"event": "switched"} \x1b[31m' + "b" * 1000))
    log.ticked(status)
    line = lines.all()[-1]
    assert line["request_id"].startswith("a??")
    assert len(line["request_id"]) == 64
    assert "\n" not in line["message"]
    assert "\x1b" not in line["message"]


def test_the_examples_of_the_documentation_are_lines_that_are_written(lines: Lines, status: Status) -> None:
    """With other values."""
    log = Log(Settings(portfolio="x.zip", objective_ms=100, log_requests=1.0))
    log.ticked(status)
    log.switched(Switch(NOW, "4x", "1x", "one size up", 0.0314159, False))
    log.switched(Switch(NOW, "4x", "1x", "one size up", 1.0, False, "NoRoomError: full"))
    log.answered(FAST)
    log.answered(LATE)
    log.refused("queue", "abc-3")
    log.ticked(status)
    shown = [json.loads(line) for line in DOCS.read_text().splitlines() if line.startswith('{"')]
    of_the_shown = [{key: type(value) for key, value in line.items()} for line in shown]
    written = [{key: type(value) for key, value in line.items()} for line in lines.all()]
    assert [line["event"] for line in shown] == [line["event"] for line in lines.all()]
    assert of_the_shown == written
