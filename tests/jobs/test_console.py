"""Progress: plain lines where there is no terminal, a live display where there is."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest
from rich.console import Console as Terminal

from jobs.console import QUIET_SECONDS, Console, results_only_on_stdout


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


def plain() -> tuple[Console, io.StringIO, list[float]]:
    stream, now = io.StringIO(), [0.0]
    terminal = Terminal(file=stream, soft_wrap=True, highlight=False, markup=False, width=40)
    return Console(terminal, clock=lambda: now[0]), stream, now


def test_rounds_and_variants_are_lines() -> None:
    console, stream, _ = plain()
    for event in (FINISHED, REDUCED, {"event": "profiling", "variants": 3}):
        console.on_event(event)
    assert stream.getvalue().splitlines() == [
        "   0.0 s  round 1 of 0–2 (2x) is finished: 1,234 weights, validation accuracy 97.50%",
        "   0.0 s  reduced 2x (1 of 3): 5,678 structural parameters, relative error 3.0e-16",
        "   0.0 s  profiling 3 variants",
    ]


def test_epochs_are_told_of_only_after_a_silence() -> None:
    console, stream, now = plain()
    for number, moment in ((1, 0.0), (2, 1.0), (3, QUIET_SECONDS), (4, QUIET_SECONDS + 1)):
        now[0] = moment
        console.on_event(epoch(number))
    assert [line.partition(":")[0] for line in stream.getvalue().splitlines()] == [
        "   0.0 s  round 1 (2x), epoch 1 of 4",
        "   5.0 s  round 1 (2x), epoch 3 of 4",
    ]


def test_what_looks_like_markup_is_shown_as_it_is() -> None:
    console, stream, _ = plain()
    console.say("[bold] is in /a/[folder]")
    assert stream.getvalue() == "   0.0 s  [bold] is in /a/[folder]\n"


def test_an_event_that_is_unknown_is_a_mistake_of_ours() -> None:
    with pytest.raises(AssertionError, match="nobody shows"):
        plain()[0].on_event({"event": "tea"})


def test_a_terminal_gets_a_live_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    with Console.open() as console:
        console.on_event(epoch(2))
        console.on_event(FINISHED)
    text = stream.getvalue()
    assert "train" in text
    assert "6/12" in text
    assert "round 1 of 0–2" in text
    assert "\x1b[" in text


def test_only_results_reach_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    with results_only_on_stdout() as show:
        print("a library's remark")
        show("the result")
    print("afterwards")
    captured = capsys.readouterr()
    assert captured.out == "the result\nafterwards\n"
    assert captured.err == "a library's remark\n"
