"""Every sentence that a switch may be given for is of a known kind."""

from __future__ import annotations

from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.reasons import REASONS, failure, reason
from shifter.errors import EngineError
from shifter.portfolio import Portfolio
from shifter.switching.engines import make_engine
from shifter.switching.host import Host
from shifter.switching.memory import NoRoomError
from shifter.switching.policies import Fixed, Policy, Situation, Slo, Trend
from shifter.switching.resident import Resident
from shifter.switching.switcher import Observation, Switcher

NAMES = ("16x", "4x", "1x")
few = st.integers(0, 200)


@given(
    policy=st.sampled_from([Slo(0.001), Slo(0.05), Slo(1.0), Trend()]),
    current=st.sampled_from(NAMES),
    accuracy=st.permutations([0.9, 0.95, 0.97]),
    seconds=st.lists(st.floats(1e-5, 2.0), min_size=3, max_size=3),
    rates=st.lists(st.floats(0, 5000), min_size=3, max_size=3),
    counts=st.tuples(few, few, few, few),
)
def test_a_policy_changes_the_variant_because_of_load_or_room(
    policy: Policy,
    current: str,
    accuracy: list[float],
    seconds: list[float],
    rates: list[float],
    counts: tuple[int, int, int, int],
) -> None:
    profiles: Any = {
        name: SimpleNamespace(validation_accuracy=one) for name, one in zip(NAMES, accuracy, strict=True)
    }
    waiting, standing, arrived, answered = counts
    now = Situation(
        profiles,
        current,
        dict(zip(NAMES, seconds, strict=True)),
        *rates,
        waiting=waiting,
        standing=standing,
        arrived=arrived,
        answered=answered,
    )
    chosen, said = policy.choose(now)
    if chosen != current:
        assert reason(said) in ("load", "room")
        if accuracy[NAMES.index(chosen)] < accuracy[NAMES.index(current)] and isinstance(policy, Slo):
            assert reason(said) == "load"


def test_memory_a_fixed_variant_and_inflating_ahead_are_kinds_of_their_own(
    portfolio_bytes: bytes,
) -> None:
    profiles = Portfolio.open(portfolio_bytes).profiles
    switcher = Switcher(profiles, Trend())
    short = Observation(0.0, 0, 0, (), profiles[switcher.current].memory_bytes - 1)
    decision = switcher.observe(short)
    assert decision.variant == "16x"
    assert reason(decision.reason) == "memory"
    fixed = Situation(profiles, "4x", dict.fromkeys(profiles, 0.01))
    assert reason(Fixed("4x").choose(fixed)[1]) == "pinned"
    assert reason("4x is pinned") == "pinned"
    assert reason("1x is pinned, and cannot serve now; it answers 9.1% in time") == "load"
    assert reason("a sentence that nobody has said") == "other"
    assert REASONS == ("load", "room", "memory", "pinned", "ahead", "other")


@pytest.mark.parametrize(
    ("problem", "kind"),
    [
        (NoRoomError("1x takes too much"), "memory"),
        (TimeoutError("requests hold on to it"), "memory"),
        (MemoryError("2 GB"), "memory"),
        (EngineError("it does not run"), "variant"),
    ],
)
def test_a_failure_is_told_by_what_the_host_says_of_it(
    portfolio_bytes: bytes, monkeypatch: pytest.MonkeyPatch, problem: Exception, kind: str
) -> None:
    """And inflating ahead, which only a failure tells of."""
    portfolio = Portfolio.open(portfolio_bytes)
    now = count(step=10)
    build = make_engine("onnxruntime", ("cpu",), 1)
    with Host(portfolio, Switcher(portfolio.profiles, Trend()), build, clock=lambda: next(now)) as host:

        def broken(*_: object, **__: object) -> None:
            raise problem

        monkeypatch.setattr(Resident, "make_ready", broken)
        for _ in range(3):
            host.tick()
        switches = host.status().switches
    assert {failure(one.error or "") for one in switches} == {kind}
    kinds = {reason(one.reason) for one in switches}
    assert kinds == ({"ahead"} if kind == "variant" else {"ahead", "room"})
