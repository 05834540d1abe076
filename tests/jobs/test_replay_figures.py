"""The figures of a replay, from records made by hand; and how they are told."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.records import Record, Recording
from jobs.replay_figures import NOT_SENT, Figures, figures, service_switches, timeline, to_json
from jobs.replay_text import merged, text

LABELS = np.array([1, 0, 2])
SLO_S = 0.05


def record(
    scheduled: float,
    latency: float = 0.01,
    *,
    variant: str = "1x",
    predicted: tuple[int, ...] = (1,),
    images: tuple[int, ...] = (0,),
    late: float = 0.0,
    status: int = 200,
    cause: str = "",
) -> Record:
    ok = status == 200 and not cause
    return Record(
        scheduled,
        late,
        latency,
        status,
        variant if status == 200 else None,
        images,
        None,
        predicted if ok else None,
        cause,
    )


def of(*records: Record, labels: Any = LABELS, seconds: float = 4.0, cpu_share: float = 0.1) -> Figures:
    return figures(Recording(1000.0, list(records), cpu_share), labels, SLO_S, seconds)


MIXED = (
    record(0.1),  # right, in time
    record(0.2, 0.2),  # right, too late
    record(1.1, predicted=(2,)),  # wrong, in time
    record(1.2, variant="16x", images=(0, 1), predicted=(1, 1)),  # one right, one wrong
    record(2.1, 0.002, status=503, cause="HTTP 503: N wait"),
    record(2.2, 0.003, status=503, cause="HTTP 503: N wait"),
    record(2.3, 0.003, status=412, cause="HTTP 412: no variant is so accurate"),
    record(3.1, 0.5, status=0, cause="timed out"),
    record(3.2, 0.001, status=500, cause="HTTP 500: ill"),
    record(3.3, 0.01, cause="broken answer"),
)


def test_what_was_right_and_in_time_counts_over_all() -> None:
    told = of(*MIXED)
    assert (told.offered, told.answered, told.images) == (10, 4, 11)
    assert told.effective_accuracy == pytest.approx(2 / 11)
    assert told.accuracy == pytest.approx(3 / 5)
    assert told.slo_attainment == pytest.approx(3 / 10)
    assert told.refused == {"HTTP 503: N wait": 2, "HTTP 412: no variant is so accurate": 1}
    assert told.failed == {"timed out": 1, "HTTP 500: ill": 1, "broken answer": 1}
    assert (told.offered_rps, told.answered_rps) == (2.5, 1.0)


def test_latencies_are_of_the_answered_and_of_all() -> None:
    told = of(*MIXED)
    assert told.latency_ms.p50 == pytest.approx(10)
    assert told.latency_ms.max == pytest.approx(200)
    assert told.all_latency_ms.max == pytest.approx(500)
    with_unsent = of(*MIXED, record(3.4, 0.0, status=0, cause=NOT_SENT))
    assert with_unsent.all_latency_ms == told.all_latency_ms
    assert with_unsent.failed[NOT_SENT] == 1


def test_variants_have_their_share_and_accuracy_and_their_changes_are_seen() -> None:
    told = of(*MIXED)
    assert [(one.name, one.answers, one.share, one.accuracy) for one in told.variants] == [
        ("1x", 3, 0.75, pytest.approx(2 / 3)),
        ("16x", 1, 0.25, 0.5),
    ]
    assert told.switches == ((pytest.approx(1.21), "1x", "16x"),)
    # By when they were answered, not by when they were due.
    late = of(record(0.0, 1.0, variant="a"), record(0.1, 0.1, variant="b"), record(2.0, variant="a"))
    assert [change[1:] for change in late.switches] == [("b", "a")]


def test_without_labels_no_accuracy_is_claimed() -> None:
    told = of(*MIXED, labels=None)
    assert math.isnan(told.accuracy)
    assert math.isnan(told.effective_accuracy)
    assert math.isnan(told.variants[0].accuracy)
    assert told.slo_attainment == pytest.approx(3 / 10)
    assert to_json(told)["accuracy"] is None


def test_of_nothing_answered_there_are_figures_too() -> None:
    told = of(record(0.5, status=0, cause="no connection"))
    document = json.loads(json.dumps(to_json(told), allow_nan=False))
    assert document["latency_ms"] == dict.fromkeys(("p50", "p90", "p99", "p99_9", "max"))
    assert document["slo_attainment"] == 0
    assert "no connection" in text(told, SLO_S, [])


@pytest.mark.parametrize(
    ("records", "cpu_share", "doubt"),
    [
        ([record(i / 100, late=0.001) for i in range(200)], 0.5, None),
        ([record(i / 100, late=0.1 if i == 0 else 0.0) for i in range(200)], 0.5, None),
        ([record(i / 100, late=0.006 if i % 50 == 0 else 0.0) for i in range(200)], 0.5, "later than 5 ms"),
        ([record(0.0), record(0.0, status=0, cause=NOT_SENT)], 0.5, "did not send 1 requests"),
        ([record(0.0)], 0.95, "95% of a core"),
    ],
)
def test_a_client_that_was_the_bottleneck_is_told(
    records: list[Record], cpu_share: float, doubt: str | None
) -> None:
    told = of(*records, cpu_share=cpu_share)
    if doubt is None:
        assert told.client.doubts == ()
        assert "TRUSTED" not in text(told, SLO_S, [])
    else:
        assert doubt in " ".join(told.client.doubts)
        assert "NOT TO BE TRUSTED" in text(told, SLO_S, [])
    assert told.client.late_max_ms == pytest.approx(max(1e3 * r.sent for r in records))


drawn = st.lists(
    st.tuples(st.floats(0, 29.9), st.sampled_from([200, 503, 500, 0]), st.sampled_from("abc")), max_size=60
)


@given(drawn, st.integers(1, 40))
def test_a_timeline_loses_no_request_however_it_is_merged(
    made: list[tuple[float, int, str]], rows: int
) -> None:
    records = [
        record(when, status=status, variant=variant, cause="" if status == 200 else "why")
        for when, status, variant in made
    ]
    seconds = timeline(records, SLO_S, 30.0)
    assert [one.start for one in seconds] == list(range(30))
    short = merged(seconds, rows)
    assert len(short) <= rows
    for part in (seconds, short):
        assert sum(one.seconds for one in part) == pytest.approx(30)
        assert sum(one.offered for one in part) == len(records)
        assert sum(one.answered + one.refused + one.failed for one in part) == len(records)
        assert sum(sum(one.variants.values()) for one in part) == sum(r.answered for r in records)


def test_a_timeline_has_seconds_without_requests_and_a_last_one_that_is_short() -> None:
    seconds = timeline([record(0.5), record(2.4)], SLO_S, 2.5)
    assert [(one.start, one.seconds, one.offered) for one in seconds] == [(0, 1, 1), (1, 1, 0), (2, 0.5, 1)]
    assert math.isnan(seconds[1].p99_ms)


def switch(at: str, to: str, **more: Any) -> dict[str, Any]:
    return {"at": at, "from": "4x", "to": to, "reason": f"{to} it is", "error": None, **more}


def test_switches_are_those_that_the_service_did_not_tell_of_before() -> None:
    early, late = switch("1970-01-01T00:16:35+00:00", "1x"), switch("1970-01-01T00:16:41.500+00:00", "16x")
    found = service_switches({"switches": [early]}, {"switches": [early, late]}, began=1000.0)
    assert [(one["second"], one["to"]) for one in found] == [(1.5, "16x")]
    assert service_switches(None, None, 0.0) == []
    assert service_switches({}, {"switches": [{"at": "soon"}, 3, {"to": "x"}]}, 0.0) == []
    told = text(of(*MIXED), SLO_S, [{**found[0], "error": "no\x1b[2J memory"}])
    assert "4x → 16x" in told
    assert "\x1b" not in told
    assert "1 switches as the service tells" in told


def test_the_text_tells_what_matters() -> None:
    told = text(of(*MIXED), SLO_S, [])
    for part in ("18.2%", "30.0%", "60.0%", "HTTP 503: N wait", "timed out", "1x", "16x", "█", "░"):
        assert part in told, part
