"""Progress: lines, JSON or nothing where there is no terminal, a live table where there is."""

from __future__ import annotations

import io
import json
import sys
from typing import Any

import pytest
from rich.console import Console as Terminal

from jobs.console import (
    QUIET_SECONDS,
    Console,
    JsonConsole,
    LiveConsole,
    SilentConsole,
    Style,
    results_only_on_stdout,
)


def epoch(number: int) -> dict[str, Any]:
    return {
        "event": "epoch",
        "round": 1,
        "rounds": 3,
        "ratio": 2.0,
        "epoch": number,
        "epochs": 4,
        "loss": 0.5,
        "validation_accuracy": 0.9,
        "seconds": 1.0,
        "images": 1000,
        "images_left": 1000 * (8 - number),
        "workers": 2,
        "device": "cpu",
    }


FINISHED = {
    "event": "round",
    "round": 1,
    "rounds": 3,
    "ratio": 2.0,
    "nonzero_weights": 1234,
    "validation_accuracy": 0.975,
    "test_accuracy": 0.5,
}
REDUCED = {
    "event": "reduced",
    "variant": "2x",
    "done": 1,
    "of": 3,
    "structural_parameters": 5678,
    "error": 3e-16,
}
PROFILING = {"event": "profiling", "variants": 3}
WAITING = {"event": "waiting", "seconds": 65, "cpus": 4, "begun": False}


def shown(kind: type[Console]) -> tuple[Console, io.StringIO, list[float]]:
    stream, now = io.StringIO(), [0.0]
    terminal = Terminal(file=stream, soft_wrap=True, highlight=False, markup=False, width=40)
    return kind(terminal, clock=lambda: now[0]), stream, now


def test_rounds_and_variants_are_lines() -> None:
    console, stream, _ = shown(Console)
    for event in (FINISHED, WAITING, WAITING | {"begun": True}, REDUCED, PROFILING):
        console.on_event(event)
    assert stream.getvalue().splitlines() == [
        "   0.0 s  round 1 of 0–2 (2x) is finished: 1,234 weights, validation accuracy 97.50%",
        "   0.0 s  waiting for a CPU: all of the cluster's (4) are taken; 0:01:05 so far",
        "   0.0 s  waiting for 0:01:05: all CPUs of the cluster (4) are taken, by this reduction's own tasks "
        "or by others",
        "   0.0 s  reduced 2x (1 of 3): 5,678 structural parameters, error 3.0e-16 (relative, in float64)",
        "   0.0 s  profiling 3 variants",
    ]


def test_epochs_are_told_of_only_after_a_silence() -> None:
    console, stream, now = shown(Console)
    for number, moment in ((1, 1.0), (2, 2.0), (3, QUIET_SECONDS + 1), (4, QUIET_SECONDS + 2)):
        now[0] = moment
        console.on_event(epoch(number))
    assert stream.getvalue().splitlines() == [
        "   1.0 s  round 1 of 0–2 (2x), epoch 1 of 4: loss 0.5000, validation accuracy 90.00%, "
        "1,000 images/s, 0:00:07 left, 2 CPU-s so far",
        # Three epochs in six seconds, so the five that are left take ten.
        "   6.0 s  round 1 of 0–2 (2x), epoch 3 of 4: loss 0.5000, validation accuracy 90.00%, "
        "1,000 images/s, 0:00:10 left, 12 CPU-s so far",
    ]


@pytest.mark.parametrize("kind", [Console, LiveConsole])
def test_what_looks_like_markup_is_shown_as_it_is(kind: type[Console]) -> None:
    console, stream, _ = shown(kind)
    console.say("[bold] is in /a/[folder]")
    assert stream.getvalue() == "   0.0 s  [bold] is in /a/[folder]\n"


@pytest.mark.parametrize("kind", [Console, LiveConsole])
def test_an_event_that_is_unknown_is_a_mistake_of_ours(kind: type[Console]) -> None:
    with pytest.raises(AssertionError, match="nobody shows"):
        shown(kind)[0].on_event({"event": "tea"})


def test_json_lines_carry_every_event_whole() -> None:
    console, stream, now = shown(JsonConsole)
    console.say("starting [Ray] …")
    now[0] = 1.0
    for event in (epoch(1), FINISHED, REDUCED, PROFILING):
        console.on_event(event)
    assert [json.loads(line) for line in stream.getvalue().splitlines()] == [
        {"elapsed": 0.0, "event": "message", "text": "starting [Ray] …"},
        {
            "elapsed": 1.0,
            **epoch(1),
            "images_per_second": 1000.0,
            "seconds_left": 7.0,
            "worker_seconds": 2.0,
        },
        *({"elapsed": 1.0, **event} for event in (FINISHED, REDUCED, PROFILING)),
    ]


def test_nothing_is_nothing() -> None:
    console, stream, _ = shown(SilentConsole)
    console.say("starting")
    for event in (epoch(1), FINISHED, REDUCED, PROFILING):
        console.on_event(event)
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("style", "terminal", "kind"),
    [
        (Style.AUTO, True, LiveConsole),
        (Style.AUTO, False, Console),
        (Style.PLAIN, True, Console),
        (Style.JSONL, True, JsonConsole),
        (Style.NONE, True, SilentConsole),
    ],
)
def test_the_style_is_what_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, style: Style, terminal: bool, kind: type[Console]
) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setenv("TTY_COMPATIBLE", "1" if terminal else "0")
    monkeypatch.setenv("TERM", "xterm")
    with Console.open(style) as console:
        assert type(console) is kind


def test_a_terminal_gets_a_live_table(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with Console.open(Style.AUTO) as console:
        console.say("starting")
        console.on_event(epoch(2))
        console.on_event(FINISHED)
        before, _, _ = stream.getvalue().partition("round 1 of 0–2 (2x) is finished")
        console.on_event(REDUCED)
    assert "\x1b[" in before, "the display is redrawn"
    for told in ("time left", "cost", "1/2", "2x", "2/4", "90.00%", "1,000", "0:00:06"):
        assert told in before
    assert "epoch 2 of 4" not in before, "what the table shows is not repeated as a line"
    _, _, after = stream.getvalue().partition("reduced 2x (1 of 3)")
    assert "time left" not in after, "the table goes with the training"


def test_only_results_reach_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    with results_only_on_stdout() as show:
        print("a library's remark")
        show("the result")
    print("afterwards")
    captured = capsys.readouterr()
    assert captured.out == "the result\nafterwards\n"
    assert captured.err == "a library's remark\n"
