"""The demonstration's plan and verdicts: each must be able to say no."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.leftovers import Descendants
from jobs.records import Record
from jobs.trial import check_answers, descends_and_returns, plan
from shifter.errors import DemoError
from shifter.portfolio import Portfolio
from shifter.switching.engine import OnnxEngine

PIXELS = np.random.default_rng(0).integers(0, 17, (6, 1, 8, 8))


@given(st.floats(1, 500), st.floats(1.61, 50))
def test_the_load_exceeds_the_largest_variant_and_not_the_smallest(largest: float, ratio: float) -> None:
    planned = plan(largest, largest * ratio)
    rates = [segment.rate for segment in planned.schedule]
    peak = max(rates)
    assert 1.2 * largest < peak <= 0.8 * ratio * largest
    assert rates[0] == rates[-1] < 0.5 * largest
    top = rates.index(peak)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert planned.objective_s >= 10 / largest


def test_variants_too_alike_in_speed_prove_nothing() -> None:
    with pytest.raises(DemoError, match=r"150 requests/s .* 100"):
        plan(100, 150)


def record(variant: str | None, when: float, images: tuple[int, ...] = (0,), logits: Any = None) -> Record:
    return Record(when, 0.0, 0.01, 200 if variant else 503, variant, images, logits)


@pytest.mark.parametrize(
    ("variants", "verdict"),
    [
        ([], False),
        ([None, None], False),
        (["1x"], False),
        (["1x", "4x"], False),
        (["4x", "1x"], False),
        (["4x", "1x", "4x"], False),
        (["1x", "16x", "4x"], True),
        (["1x", None, "16x", None, "4x"], True),
        (["16x", "1x", "16x"], False),
        (["16x", "1x", "16x", "4x"], True),
    ],
)
def test_down_and_up_again(variants: list[str | None], verdict: bool) -> None:
    records = [record(variant, float(when)) for when, variant in enumerate(variants)]
    assert descends_and_returns(records, ["16x", "4x", "1x"]) is verdict


def answers(portfolio: Portfolio) -> list[Record]:
    records = []
    for when, name in enumerate(portfolio.names):
        variant = portfolio.inflate(name)
        images = (when, 5, 2)
        logits = OnnxEngine(variant.graph, variant.tensors).run(
            portfolio.input_spec.normalise(PIXELS[list(images)])
        )
        records.append(record(name, when, images, logits))
    return records


def test_true_answers_pass_and_refused_requests_are_left_out(portfolio_bytes: bytes) -> None:
    portfolio = Portfolio.open(portfolio_bytes)
    assert check_answers([*answers(portfolio), record(None, 9)], portfolio, PIXELS) == 9


def test_an_answer_of_another_variant_image_or_shape_is_caught(portfolio_bytes: bytes) -> None:
    portfolio = Portfolio.open(portfolio_bytes)
    first, second, _ = answers(portfolio)
    assert first.logits is not None
    for changed in (
        dataclasses.replace(first, variant=second.variant),
        dataclasses.replace(first, images=(1, 5, 2)),
        dataclasses.replace(first, logits=first.logits + 0.01),
        dataclasses.replace(first, logits=first.logits[:2]),
        dataclasses.replace(first, logits=first.logits * np.nan),
        dataclasses.replace(first, variant="2x"),
    ):
        with pytest.raises(DemoError, match="answer 1 "):
            check_answers([second, changed], portfolio, PIXELS)


def test_a_process_left_behind_is_found_and_one_that_ended_is_not() -> None:
    with Descendants(every_s=0.01) as descendants:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        while not descendants.seen:
            pass
    with pytest.raises(DemoError, match=str(child.pid)):
        descendants.check_gone(patience_s=0.1)
    child.communicate(b"\n")
    assert descendants.check_gone() >= 1
