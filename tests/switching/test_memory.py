"""The budget: what may serve within it, and that no moment exceeds it."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable, Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shifter.errors import EngineError
from shifter.portfolio import Portfolio, pack
from shifter.switching.backoff import Backoff
from shifter.switching.engine import OnnxEngine
from shifter.switching.engines import make_engine
from shifter.switching.host import Host
from shifter.switching.initialise import initialise
from shifter.switching.memory import Memory, NoRoomError, building_bytes, usable
from shifter.switching.policies import Fixed, Situation, Slo
from shifter.switching.switcher import Switcher
from shifter.values import InputSpec, Profile, Variant

from .conftest import TENSOR_BYTES, ProfileMaker
from .test_host import IMAGES, Gated, GatedEngine, Tour, submit

PACKAGE = 5000


@pytest.fixture
def growing(make_profile: ProfileMaker) -> dict[str, Profile]:
    """Engines of 1,000, 2,000 and 8,000 bytes, each built from 400 bytes of tensors."""
    return {
        f"v{index}": make_profile(1.0, 2.0, 0.9, memory_bytes=size)
        for index, size in enumerate((1000, 2000, 8000))
    }


def test_without_a_budget_all_may_serve(growing: dict[str, Profile]) -> None:
    assert usable(growing, PACKAGE, None) == growing


@pytest.mark.parametrize(
    ("memory_bytes", "names"),
    [
        (PACKAGE + 1400, ["v0"]),
        (PACKAGE + 3399, ["v0"]),
        (PACKAGE + 3400, ["v0", "v1"]),
        (PACKAGE + 9399, ["v0", "v1"]),
        (PACKAGE + 9400, ["v0", "v1", "v2"]),
    ],
)
def test_what_fits_beside_the_smallest_may_serve(
    growing: dict[str, Profile], memory_bytes: int, names: list[str]
) -> None:
    assert list(usable(growing, PACKAGE, memory_bytes)) == names


def test_a_budget_below_the_smallest_is_refused_with_what_is_needed(growing: dict[str, Profile]) -> None:
    with pytest.raises(EngineError, match=r"memory_bytes is 6399: .* v0 .* give at least 6400"):
        usable(growing, PACKAGE, PACKAGE + 1399)


def test_the_service_refuses_it_at_the_start(portfolio: Portfolio) -> None:
    least = portfolio.deflated_bytes + 1000 + TENSOR_BYTES
    with pytest.raises(EngineError, match=f"give at least {least}"):
        initialise(portfolio, Slo(0.05), memory_bytes=least - 1)
    with initialise(portfolio, Slo(0.05), memory_bytes=least) as host:
        assert host.status().usable == ("v0",)
        assert host.tick().variant == "v0"


def test_a_fixed_variant_needs_room_for_itself_alone(portfolio: Portfolio) -> None:
    least = portfolio.deflated_bytes + 1000 + TENSOR_BYTES
    with initialise(portfolio, Fixed("v4"), memory_bytes=least) as host:
        assert submit(host, IMAGES).result().variant == "v4"
    with pytest.raises(EngineError, match=f"v4 with it {least}"):
        initialise(portfolio, Fixed("v4"), memory_bytes=least - 1)


def test_what_is_counted_counts_until_it_is_gone() -> None:
    memory = Memory(100)
    first, second = Portfolio.__new__(Portfolio), Portfolio.__new__(Portfolio)
    memory.count(first, 30)
    memory.count(second, 40)
    assert memory.taken == 70
    held = [second]
    threading.Timer(0.05, held.clear).start()
    del second
    room = memory.reserve("v1", 70, [first], patience_s=60)
    assert (memory.taken, memory.gone) == (100, 1)
    memory.give_up(room)
    memory.give_up(room)
    assert (memory.taken, memory.gone) == (30, 1)
    with pytest.raises(NoRoomError, match=r"memory_bytes is 100: v1, .* take 101"):
        memory.reserve("v1", 71, [first], patience_s=60)


def test_room_that_others_hold_is_waited_for_until_it_takes_too_long_or_is_stopped() -> None:
    memory, held = Memory(100), Portfolio.__new__(Portfolio)
    memory.count(held, 30)
    memory.give_up(memory.reserve("v1", 70, [], patience_s=0))  # there is room besides
    with pytest.raises(TimeoutError, match="requests are still on, take 101"):
        memory.reserve("v1", 71, [], patience_s=0.01)
    threading.Timer(0.05, memory.stop).start()
    with pytest.raises(TimeoutError):
        memory.reserve("v1", 71, [], patience_s=600)


class Ledger:
    """Counts what exists while each engine is built, as the real thing would be counted."""

    def __init__(self, portfolio: Portfolio, memory_bytes: int) -> None:
        self.portfolio, self.limit, self.host = portfolio, memory_bytes, None
        self.most = 0

    def __call__(self, variant: Variant) -> OnnxEngine:
        first = self.portfolio.deflated_bytes + building_bytes(variant.profile)
        self.most = max(self.most, first if self.host is None else self.host.status().memory_bytes)
        assert self.most <= self.limit
        return OnnxEngine(variant.graph, variant.tensors)


def touring(portfolio: Portfolio, memory_bytes: int, names: Iterable[str]) -> tuple[Host, Ledger]:
    profiles = usable(portfolio.profiles, portfolio.deflated_bytes, memory_bytes)
    build = Ledger(portfolio, memory_bytes)
    switcher = Switcher(profiles, Tour(*(name for name in names if name in profiles)), dwell=0.0)
    build.host = Host(portfolio, switcher, build, memory_bytes=memory_bytes)
    return build.host, build


@pytest.mark.parametrize("engines", [2, 2.5, 3, 4])
def test_no_switch_exceeds_the_budget_and_every_variant_is_reached(
    portfolio: Portfolio, engines: float
) -> None:
    """Profiles of 1,000 bytes each, built from `TENSOR_BYTES`."""
    names = ["v4", "v0", "v3", "v1", "v2"]
    memory_bytes = portfolio.deflated_bytes + int(1000 * engines) + TENSOR_BYTES
    host, _ = touring(portfolio, memory_bytes, names)
    with host:
        for name in names * 3:
            assert host.tick().variant == host.active == name
            assert submit(host, IMAGES).result().variant == name
            assert len(host.status().ready) == min(int(engines), 3 if name in ("v1", "v2", "v3") else 2)
        assert all(switch.error is None for switch in host.status().switches)


def sized(variants: dict[str, Variant], **sizes: int) -> Portfolio:
    """Of those variants, whose engines take so many bytes."""
    some = [
        replace(variants[n], profile=replace(variants[n].profile, memory_bytes=m)) for n, m in sizes.items()
    ]
    spec = InputSpec(1, 6, 6, 16.0, (0.3,), (0.5,), ("zero", "one", "two"))
    return Portfolio.open(pack(some, spec, model="tiny", provenance={}))


def test_where_a_pair_does_not_fit_the_smallest_serves_between(variants: dict[str, Variant]) -> None:
    portfolio = sized(variants, v0=100, v1=1000, v2=1000)
    host, build = touring(portfolio, portfolio.deflated_bytes + 1100 + TENSOR_BYTES, ["v2", "v1"])
    with host:
        for name in ("v2", "v1", "v2"):
            assert host.tick().variant == host.active == name
        passed = [(switch.before, switch.after) for switch in host.status().switches]
        # It starts with v1, the median.
        assert passed == [("v1", "v0"), ("v0", "v2"), ("v2", "v0"), ("v0", "v1"), ("v1", "v0"), ("v0", "v2")]
        assert build.most == build.limit


class Largest:
    """A policy that knows only size."""

    def start(self, profiles: Mapping[str, Profile]) -> str:
        return next(iter(profiles))

    def choose(self, now: Situation) -> tuple[str, str]:
        return list(now.profiles)[-1], "the largest"


def test_where_others_take_the_nodes_memory_a_smaller_variant_serves(variants: dict[str, Variant]) -> None:
    portfolio = sized(variants, v0=100, v1=1000, v2=5000)
    left: list[int | None] = [None]
    switcher = Switcher(portfolio.profiles, Largest(), dwell=0.0)
    with Host(portfolio, switcher, make_engine(), ahead_bytes=10_000, free_memory=lambda: left[0]) as host:
        for left[0], active, ready in (
            (None, "v2", {"v1", "v2"}),
            (0, "v2", {"v2"}),  # it has its memory already; what was inflated ahead goes
            (10_000, "v2", {"v1", "v2"}),
            (-2000, "v1", {"v1", "v0"}),
            (0, "v1", {"v1"}),
        ):
            assert host.tick().variant == host.active == active
            assert set(host.status().ready) == ready


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=6), st.integers(1, 40_000))
def test_whatever_may_serve_can_be_reached_from_whatever_does(sizes: list[int], memory_bytes: int) -> None:
    from .conftest import _profile

    profiles = {f"v{i}": _profile(1.0, 2.0, 0.9, memory_bytes=size) for i, size in enumerate(sizes)}
    try:
        able = usable(profiles, PACKAGE, memory_bytes)
    except EngineError:
        assert PACKAGE + min(sizes) + 400 > memory_bytes
        return
    first = min(able, key=lambda name: building_bytes(able[name]))
    for name in able:
        if name != first:
            assert PACKAGE + able[name].memory_bytes + building_bytes(able[first]) <= memory_bytes
            assert PACKAGE + able[first].memory_bytes + building_bytes(able[name]) <= memory_bytes


def test_an_engine_that_a_request_is_on_counts_until_it_is_answered(portfolio: Portfolio) -> None:
    """There is room for two: the third is built when the first has answered its last request."""
    build = Gated()
    switcher = Switcher(portfolio.profiles, Tour("v0", "v4"), dwell=0.0)
    memory_bytes = portfolio.deflated_bytes + 2000 + TENSOR_BYTES
    with Host(portfolio, switcher, build, servers=2, memory_bytes=memory_bytes, ahead_bytes=0) as host:
        started = submit(host, IMAGES[:2])
        assert build.entered.wait(60)
        host.tick()
        assert host.active == "v0"
        ticking = threading.Thread(target=host.tick)
        ticking.start()
        ticking.join(0.2)
        assert ticking.is_alive()
        assert submit(host, IMAGES).result().variant == "v0"
        build.gate.set()
        assert started.result().variant == "v2"
        ticking.join(60)
        assert host.active == "v4"


def test_room_that_there_is_is_not_waited_for(portfolio: Portfolio) -> None:
    build = Gated()
    switcher = Switcher(portfolio.profiles, Tour("v0", "v4"), dwell=0.0)
    with Host(portfolio, switcher, build, servers=2, memory_bytes=10**12) as host:
        started = submit(host, IMAGES[:2])
        assert build.entered.wait(60)
        assert [host.tick().variant for _ in range(2)] == ["v0", "v4"]
        assert not started.done()
        build.gate.set()
        assert started.result().variant == "v2"


def test_a_request_that_keeps_the_room_puts_a_switch_off(
    portfolio: Portfolio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shifter.switching.resident.PATIENCE_S", 0.01)
    build, now = Gated(), [0.0]
    memory_bytes = portfolio.deflated_bytes + 2400
    with Host(
        portfolio,
        Switcher(portfolio.profiles, Tour("v0", "v4"), dwell=0.0),
        build,
        servers=2,
        memory_bytes=memory_bytes,
        ahead_bytes=0,
        clock=lambda: now[0],
    ) as host:
        started = submit(host, IMAGES[:2])
        assert build.entered.wait(60)
        assert host.tick().variant == "v0"
        assert host.tick().variant == "v0"
        assert "v4 cannot serve: TimeoutError: " in host.status().reason
        build.gate.set()
        assert started.result().variant == "v2"
        host.tick()
        assert host.tick().variant == host.active == "v4"
        assert set(host.status().usable) == set(portfolio.names)


def test_a_host_that_is_closed_waits_for_no_room(portfolio: Portfolio) -> None:
    build = Gated()
    switcher = Switcher(portfolio.profiles, Tour("v0", "v4"), dwell=0.0)
    host = Host(portfolio, switcher, build, memory_bytes=portfolio.deflated_bytes + 2400, ahead_bytes=0)
    with host.request():  # it holds on to no engine, so that the other request alone does
        started = submit(host, IMAGES[:2])
        assert build.entered.wait(60)
        host.tick()
        ticking = threading.Thread(target=host.tick)
        ticking.start()
        closing = threading.Thread(target=host.close)
        closing.start()
        ticking.join(5)
        assert not ticking.is_alive()
        build.gate.set()
        assert started.result().variant == "v2"
        closing.join(60)
    assert host.active == "v0"


def test_the_heap_is_trimmed_whenever_an_engine_is_let_go(
    portfolio: Portfolio, monkeypatch: pytest.MonkeyPatch
) -> None:
    trims: list[int] = []
    monkeypatch.setattr("shifter.switching.changes.trim", lambda: trims.append(1))
    build = Gated()
    switcher = Switcher(portfolio.profiles, Tour("v0"), dwell=0.0)
    with Host(portfolio, switcher, build, servers=2, ahead_bytes=0) as host:
        started = submit(host, IMAGES[:2])
        assert build.entered.wait(60)
        for _ in range(5):
            host.tick()
        assert not trims
        build.gate.set()
        started.result()
        host.tick()
        assert trims


def test_where_the_smallest_does_not_run_what_cannot_be_reached_without_it_is_out(
    variants: dict[str, Variant],
) -> None:
    portfolio = sized(variants, v0=100, v1=1000, v2=1000, v3=200)
    memory_bytes = portfolio.deflated_bytes + 1650

    def build(variant: Variant) -> OnnxEngine:
        if variant.name == "v0":
            raise EngineError("not on this node")
        return OnnxEngine(variant.graph, variant.tensors)

    profiles = usable(portfolio.profiles, portfolio.deflated_bytes, memory_bytes)
    assert list(profiles) == ["v0", "v1", "v2", "v3"]
    switcher = Switcher(profiles, Largest(), dwell=0.0)
    switcher.current = "v1"
    with Host(portfolio, switcher, build, memory_bytes=memory_bytes, ahead_bytes=0) as host:
        switcher.policy = Tour("v0", "v2", "v1", "v3")
        assert host.tick().variant == "v1"
        assert host.status().usable == ("v1", "v2", "v3")
        for name in ("v2", "v1", "v3"):
            assert host.tick().variant == host.active == name
        passed = [(switch.before, switch.after) for switch in host.status().switches if not switch.error]
        assert passed == [("v1", "v3"), ("v3", "v2"), ("v2", "v3"), ("v3", "v1"), ("v1", "v3")]


def test_without_the_smallest_only_what_serves_stays_if_it_has_no_room_for_others(
    variants: dict[str, Variant],
) -> None:
    portfolio = sized(variants, v0=100, v1=1000, v2=1000)

    def build(variant: Variant) -> OnnxEngine:
        if variant.name == "v0":
            raise EngineError("not on this node")
        return OnnxEngine(variant.graph, variant.tensors)

    memory_bytes = portfolio.deflated_bytes + 1500
    switcher = Switcher(portfolio.profiles, Largest(), dwell=0.0)
    switcher.current = "v1"
    with Host(portfolio, switcher, build, memory_bytes=memory_bytes) as host:
        assert [host.tick().variant for _ in range(3)] == ["v1"] * 3
        assert host.status().usable == ("v1",)
        assert all(switch.error for switch in host.status().switches)


class Reluctant(GatedEngine):
    """Has no memory to be optimised at first."""

    tries = 0

    def optimise(self) -> None:
        Reluctant.tries += 1
        if Reluctant.tries == 1:
            raise MemoryError("for a moment")


def test_an_engine_that_keeps_its_tensors_for_now_costs_no_neighbour(
    variants: dict[str, Variant], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shifter.switching.resident.Backoff", lambda: Backoff(0.0, 0.0))
    portfolio, held = sized(variants, v0=1000, v1=1000, v2=1000), Gated()
    Reluctant.tries = 0
    switcher = Switcher(portfolio.profiles, Tour("v1"), dwell=0.0)
    memory_bytes = portfolio.deflated_bytes + 3400
    with Host(portfolio, switcher, lambda v: Reluctant(v, held), memory_bytes=memory_bytes) as host:
        for _ in range(3):
            host.tick()
        assert host.status().usable == ("v0", "v1", "v2")
        assert set(host.status().ready) == {"v0", "v1", "v2"}
        assert host.status().memory_bytes == portfolio.deflated_bytes + 3000


class QuickHeld(GatedEngine):
    def __init__(self, variant: Variant, held: Gated) -> None:
        super().__init__(variant, held)
        self._engine = OnnxEngine(variant.graph, variant.tensors, quick=True)

    def optimise(self) -> None:
        self._engine = copy.copy(self._engine)
        self._engine.optimise()


def test_the_tensors_that_a_request_reads_count_until_it_is_answered(portfolio: Portfolio) -> None:
    held = Gated()
    switcher = Switcher(portfolio.profiles, Fixed("v2"))
    with Host(portfolio, switcher, lambda variant: QuickHeld(variant, held), ahead_bytes=0) as host:
        started = submit(host, IMAGES[:2])
        assert held.entered.wait(60)
        host.tick()
        assert host.status().memory_bytes == portfolio.deflated_bytes + 1000 + TENSOR_BYTES
        held.gate.set()
        started.result()
        assert host.status().memory_bytes == portfolio.deflated_bytes + 1000
