"""What requests need of a variant, and what administration pins: honoured or refused."""

from __future__ import annotations

import gc
import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shifter.errors import EngineError, NeedsError, OverloadError, RequestError
from shifter.portfolio import Portfolio
from shifter.switching.engine import OnnxEngine
from shifter.switching.host import Host
from shifter.switching.initialise import initialise
from shifter.switching.job import Answer
from shifter.switching.memory import NotNowError
from shifter.switching.needs import Needs
from shifter.switching.policies import Fixed, Slo
from shifter.switching.switcher import Observation, Switcher
from shifter.values import Profile, Variant

from .conftest import TENSOR_BYTES
from .test_host import IMAGES, Counted, Gated, Tour, same, submit
from .test_line import Calls, fixed, held, logits
from .test_refresh import wait_until
from .test_takeover import Making, make  # noqa: F401 - a fixture

NAMES = [f"v{i}" for i in range(5)]


def ask(host: Host, needs: Needs, deadline_s: float | None = None, images: np.ndarray = IMAGES) -> Answer:
    with host.request(needs, deadline_s) as request:
        return request.submit(images).result()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"variant": ""}, "by its name, not ''"),
        ({"variant": 3}, "by its name, not 3"),
        ({"min_accuracy": 1.5}, "from 0 to 1, not 1.5"),
        ({"min_accuracy": -0.1}, "from 0 to 1"),
        ({"min_accuracy": math.nan}, "from 0 to 1, not nan"),
        ({"min_accuracy": True}, "from 0 to 1, not True"),
        ({"min_accuracy": "0.9"}, "from 0 to 1, not '0.9'"),
    ],
)
def test_nonsense_is_refused_as_the_requests_fault(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(NeedsError, match=says) as refused:
        Needs(**wrong)
    assert isinstance(refused.value, RequestError)
    assert refused.value.status == 422


@given(
    st.none() | st.sampled_from(NAMES),
    st.none() | st.floats(0, 1),
    st.sets(st.sampled_from(NAMES), min_size=1),
)
def test_whoever_is_named_meets_them_and_an_error_says_what_there_is(
    five: dict[str, Profile], variant: str | None, accuracy: float | None, usable: set[str]
) -> None:
    needs = Needs(variant, accuracy)
    meets = {
        name
        for name, profile in five.items()
        if variant in (None, name) and profile.validation_accuracy >= (accuracy or 0)
    }
    if meets & usable:
        found = needs.met_by(five, usable)
        assert set(found) == meets & usable
        assert list(found) == sorted(found, key=lambda name: five[name].latency.p50_ms)
    else:
        with pytest.raises(NeedsError):
            needs.met_by(five, usable)


@pytest.mark.parametrize(
    ("needs", "says"),
    [
        (Needs("v9"), "no variant is called 'v9'; the portfolio has v0, v1, v2, v3, v4"),
        (Needs(min_accuracy=0.99), "no variant has an accuracy of 0.99; the highest is 0.98, of v4"),
        (Needs("v1", 0.95), "v1 has an accuracy of 0.92: 0.95 is asked for"),
    ],
)
def test_needs_that_nothing_meets_are_refused_when_the_request_comes(
    portfolio: Portfolio, needs: Needs, says: str
) -> None:
    with initialise(portfolio, Slo(0.05)) as host:
        with pytest.raises(NeedsError, match=says), host.request(needs):
            pass
        assert host.queue == 0
        assert submit(host, IMAGES).result().variant == "v2"


@pytest.mark.parametrize(
    ("needs", "answers"),
    [
        (Needs(), "v2"),
        (Needs("v2"), "v2"),
        (Needs("v0"), "v0"),
        (Needs("v4"), "v4"),
        (Needs(min_accuracy=0.9), "v2"),
        (Needs(min_accuracy=0.95), "v3"),
        (Needs(min_accuracy=0.97), "v4"),
        (Needs("v4", 0.95), "v4"),
    ],
)
@pytest.mark.parametrize("policy", [Slo(0.05), Fixed("v2")])
def test_needs_are_met_and_others_served_as_before(
    portfolio: Portfolio, variants: dict[str, Variant], needs: Needs, answers: str, policy: Any
) -> None:
    build = Counted()
    with initialise(portfolio, policy, build=build, ahead_bytes=0) as host:
        answer = ask(host, needs)
        assert answer.variant == answers
        assert same(answer.logits, logits(variants, answers, IMAGES))
        assert host.active == submit(host, IMAGES).result().variant == "v2"
        assert host.status().switches == ()
        assert build.built == ["v2", answers][: 1 + (answers != "v2")]
        assert ask(host, needs).variant == answers
        assert len(build.built) <= 2


def test_a_ready_one_that_meets_them_answers_before_a_faster_one_is_inflated(portfolio: Portfolio) -> None:
    build = Counted()
    with Host(portfolio, fixed(portfolio, "v0"), build) as host:
        assert ask(host, Needs("v4")).variant == "v4"
        assert ask(host, Needs(min_accuracy=0.95)).variant == "v4"
        assert build.built == ["v0", "v4"]


def test_one_that_waits_for_its_variant_holds_nobody_up_and_is_not_mixed_with_others(
    portfolio: Portfolio, variants: dict[str, Variant]
) -> None:
    calls, inflating, gate = Calls(), threading.Event(), threading.Event()

    def build(variant: Variant) -> Any:
        if variant.name == "v4":
            inflating.set()
            assert gate.wait(60)
        return calls(variant)

    with Host(portfolio, fixed(portfolio), build) as host, host.request(Needs("v4")) as request:
        needing = request.submit(IMAGES[:1])
        assert inflating.wait(60)
        assert submit(host, IMAGES[:1]).result().variant == "v2"
        assert not needing.done()
        computing = held(host, calls)
        with host.request(Needs("v4")) as another:
            with_it = another.submit(IMAGES[1:2])
        with host.request(Needs(min_accuracy=0.9)) as whoever:
            with_others = whoever.submit(IMAGES[:1])
        others = submit(host, IMAGES[2:])
        gate.set()
        wait_until(lambda: "v4" in host.status().ready)
        calls.gate.set()
        assert computing.result().variant == "v2"
        answers = [future.result() for future in (needing, with_it, with_others, others)]
        assert [answer.variant for answer in answers] == ["v4", "v4", "v2", "v2"]
        assert [answer.batch for answer in answers] == [2, 2, 2, 2]
        assert same(answers[1].logits, logits(variants, "v4", IMAGES[1:2]))


def test_it_waits_until_its_deadline(portfolio: Portfolio) -> None:
    """In real time: whenever that is, it is told while the variant is still being made."""
    inflating, gate = threading.Event(), threading.Event()

    def build(variant: Variant) -> OnnxEngine:
        if variant.name == "v4":
            inflating.set()
            assert gate.wait(60)
        return OnnxEngine(variant.graph, variant.tensors)

    with Host(portfolio, fixed(portfolio), build) as host:
        with pytest.raises(OverloadError, match="in time"):
            ask(host, Needs("v4"), deadline_s=0.2)
        gate.set()
        assert ask(host, Needs("v4"), deadline_s=60).variant == "v4"


def test_what_was_inflated_for_a_request_is_given_back_after_a_minute(portfolio: Portfolio) -> None:
    build, now = Counted(), [0.0]
    with Host(portfolio, fixed(portfolio), build, clock=lambda: now[0]) as host:
        ask(host, Needs("v4"))
        for now[0], ready in ((1.0, {"v2", "v4"}), (59.0, {"v2", "v4"})):
            host.tick()
            assert set(host.status().ready) == ready
        ask(host, Needs("v4"))
        now[0] = 100.0
        host.tick()
        assert set(host.status().ready) == {"v2", "v4"}
        now[0] = 120.0
        host.tick()
        gc.collect()
        assert set(host.status().ready) == {"v2"}
        assert len(build.alive) == 1
        assert build.built == ["v2", "v4"]


def budget(portfolio: Portfolio, engines: int) -> int:
    return portfolio.deflated_bytes + 1000 * engines + TENSOR_BYTES


def test_the_budget_holds_and_the_policy_comes_first(portfolio: Portfolio) -> None:
    now = [0.0]
    switcher = Switcher(portfolio.profiles, Tour("v0", "v2"), dwell=0.0)
    memory_bytes = budget(portfolio, 2)
    with Host(
        portfolio, switcher, Counted(), memory_bytes=memory_bytes, ahead_bytes=0, clock=lambda: now[0]
    ) as host:
        assert ask(host, Needs("v4")).variant == "v4"
        with pytest.raises(OverloadError, match="v3 cannot be inflated now") as refused:
            ask(host, Needs("v3"))  # v4 was needed just now
        assert refused.value.retry_after_s >= 1
        now[0] = 2.0
        assert ask(host, Needs("v3")).variant == "v3"
        assert host.status().memory_bytes <= memory_bytes
        host.tick()
        assert (host.active, host.status().ready) == ("v0", ("v0",))
        assert all(switch.error is None for switch in host.status().switches)


def test_what_the_budget_never_holds_is_refused_for_good(portfolio: Portfolio) -> None:
    with initialise(portfolio, Slo(0.05), memory_bytes=budget(portfolio, 1)) as host:
        with pytest.raises(NeedsError, match=r"v4 cannot serve on this node, by its memory .*; v0 can"):
            ask(host, Needs("v4"))
        with pytest.raises(NeedsError, match="v4 cannot serve"):
            host.pin("v4")


def test_one_that_does_not_run_here_is_refused_and_the_next_that_meets_them_answers(
    portfolio: Portfolio,
) -> None:
    def build(variant: Variant) -> OnnxEngine:
        if variant.name == "v3":
            raise EngineError("not on this node")
        return OnnxEngine(variant.graph, variant.tensors)

    with Host(portfolio, fixed(portfolio), build) as host:
        with pytest.raises(NeedsError, match="v3 cannot serve on this node: EngineError: not on this node"):
            ask(host, Needs("v3"))
        with pytest.raises(NeedsError, match="v3 cannot serve on this node"):
            ask(host, Needs("v3"))
        assert ask(host, Needs(min_accuracy=0.95)).variant == "v4"
        assert submit(host, IMAGES).result().variant == "v2"


def test_for_want_of_memory_it_is_asked_to_come_again(portfolio: Portfolio) -> None:
    now, full = [0.0], [True]

    def build(variant: Variant) -> OnnxEngine:
        if full[0] and variant.name == "v4":
            raise MemoryError("for a moment")
        return OnnxEngine(variant.graph, variant.tensors)

    with Host(portfolio, fixed(portfolio), build, clock=lambda: now[0]) as host:
        for _ in range(2):
            with pytest.raises(OverloadError, match="v4 cannot be inflated now"):
                ask(host, Needs("v4"))
        full[0], now[0] = False, 1.0
        assert ask(host, Needs("v4")).variant == "v4"


def test_a_request_that_came_for_the_old_portfolio_is_not_answered_by_another_variant(
    portfolio: Portfolio,
    make: Making,  # noqa: F811
) -> None:
    calls = Gated()
    with Host(portfolio, Switcher(portfolio.profiles, Slo(0.05)), calls) as host:
        with host.request(Needs("v4")) as request:
            host.take_over(make(1))
            answer = request.submit(IMAGES)
            with pytest.raises(OverloadError, match="a newer portfolio"):
                answer.result()
        assert host.queue == 0


def test_under_switches_and_needs_of_all_kinds_each_gets_what_it_needs(
    portfolio: Portfolio, variants: dict[str, Variant]
) -> None:
    expected = {name: logits(variants, name, IMAGES) for name in NAMES}
    switcher = Switcher(portfolio.profiles, Tour("v4", "v0", "v3", "v1", "v2"), dwell=0.0)
    all_needs = [Needs(), Needs("v1"), Needs("v4"), Needs(min_accuracy=0.95), Needs(min_accuracy=0.92)]
    with Host(portfolio, switcher, Counted(), servers=2, memory_bytes=budget(portfolio, 3)) as host:
        stop, faults = threading.Event(), list[str]()

        def client(needs: Needs) -> None:
            while not stop.is_set():
                try:
                    answer = ask(host, needs)
                except OverloadError:
                    continue
                meets = needs.met_by(portfolio.profiles, NAMES) if needs else NAMES
                if answer.variant not in meets or not same(answer.logits, expected[answer.variant]):
                    faults.append(f"{needs}: {answer.variant}")

        clients = [threading.Thread(target=client, args=(needs,)) for needs in all_needs]
        for thread in clients:
            thread.start()
        for _ in range(40):
            host.tick()
            assert host.status().memory_bytes <= budget(portfolio, 3)
        stop.set()
        for thread in clients:
            thread.join(60)
        assert not faults
        assert host.queue == 0


@pytest.mark.parametrize("policy", [Slo(10.0), Fixed("v4")])
def test_a_pinned_variant_serves_until_it_is_unpinned(portfolio: Portfolio, policy: Any) -> None:
    with initialise(portfolio, policy, dwell=0.0) as host:
        host.tick()
        assert host.active == "v4"
        host.pin("v1")
        for _ in range(3):
            assert host.tick().reason == host.status().reason == "v1 is pinned"
            assert host.active == host.status().pinned == "v1"
            assert submit(host, IMAGES).result().variant == "v1"
        with pytest.raises(NeedsError, match="no variant is called 'v9'"):
            host.pin("v9")
        assert host.status().pinned == "v1"
        host.pin(None)
        assert host.tick().variant == host.active == "v4"
        assert host.status().pinned is None


def test_a_pin_waits_for_no_dwell_and_yields_to_memory_that_is_short(five: dict[str, Profile]) -> None:
    switcher = Switcher(five, Slo(10.0), dwell=60.0)
    switcher.observe(Observation(0.0))
    switcher.pinned = "v4"
    assert switcher.observe(Observation(0.1)).reason == "v4 is pinned"
    assert switcher.current == "v4"
    switcher = Switcher(five, Slo(10.0), dwell=0.0)
    switcher.pinned = "v4"
    switcher.observe(Observation(0.0, free_bytes=10_000))
    switcher.suspend("v3", 100.0)
    switcher.pinned = "v3"
    decision = switcher.observe(Observation(1.0, free_bytes=10_000))
    assert decision.variant == "v4"
    assert decision.reason.startswith("v3 is pinned, and cannot serve now; ")


def test_a_portfolio_without_the_pinned_variant_is_not_taken_over_for_now(
    portfolio: Portfolio,
    make: Making,  # noqa: F811
) -> None:
    with initialise(portfolio, Slo(0.05), dwell=0.0) as host:
        host.pin("v4")
        with pytest.raises(NotNowError, match="'v4', which is pinned"):
            host.take_over(make(1))
        assert host.portfolio is portfolio
        host.pin("v1")
        host.take_over(make(1))
        assert host.tick().reason == "v1 is pinned"
        assert host.portfolio is not portfolio


def test_what_is_inflated_is_recorded(portfolio: Portfolio) -> None:
    recorded: Callable[[Host], list[tuple[str, str]]] = lambda host: [  # noqa: E731
        (one.variant, one.reason) for one in host.status().inflations
    ]
    with Host(portfolio, Switcher(portfolio.profiles, Tour("v3"), dwell=0.0), Counted()) as host:
        ask(host, Needs("v0"))
        host.tick()
        assert recorded(host) == [
            ("v0", "a request needs it"),
            ("v3", "the tour"),
            ("v4", "inflated ahead"),
        ]
        assert all(one.seconds > 0 for one in host.status().inflations)
