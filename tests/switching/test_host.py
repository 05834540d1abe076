import gc
import threading
import weakref
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from itertools import cycle

import numpy as np
import pytest

from shifter.errors import EngineError, PackageError
from shifter.portfolio import Portfolio
from shifter.switching.engine import OnnxEngine
from shifter.switching.host import Answer, Host
from shifter.switching.initialise import initialise
from shifter.switching.policies import Fixed, Situation, Slo, median
from shifter.switching.switcher import Observation, Switcher
from shifter.values import Profile, Variant

IMAGES = np.random.default_rng(9).standard_normal((3, 1, 6, 6)).astype(np.float32)


def same(answer: np.ndarray, expected: np.ndarray) -> bool:
    """But for rounding, which differs until an engine is optimised."""
    return np.allclose(answer, expected, rtol=1e-4, atol=1e-4)


def submit(host: Host, images: np.ndarray, overhead: float = 0.0) -> Future[Answer]:
    """A request that nobody waits for; it leaves when it is answered."""
    with host.request() as request:
        request.overhead = overhead
        return request.submit(images)


class Tour:
    """A policy that goes through given variants, one a decision."""

    def __init__(self, *names: str) -> None:
        self._names = cycle(names)

    def start(self, profiles: dict[str, Profile]) -> str:
        return median(profiles)

    def choose(self, now: Situation) -> tuple[str, str]:
        return next(self._names), "the tour"


class Counted:
    """Builds real engines, and knows whose sessions still exist."""

    def __init__(self) -> None:
        self.alive: weakref.WeakSet[object] = weakref.WeakSet()
        self.built: list[str] = []

    def __call__(self, variant: Variant) -> OnnxEngine:
        engine = OnnxEngine(variant.graph, variant.tensors)
        self.alive.add(engine._loaded.session)
        self.built.append(variant.name)
        return engine


def touring(portfolio: Portfolio, build: Counted, *names: str, ahead_bytes: int = 0) -> Host:
    switcher = Switcher(portfolio.profiles, Tour(*names), dwell=0.0)
    return Host(portfolio, switcher, build, ahead_bytes=ahead_bytes)


def test_one_step_gives_a_host_that_answers_with_the_median(
    portfolio: Portfolio, variants: dict[str, Variant]
) -> None:
    with initialise(portfolio, Slo(0.05)) as host:
        answer = submit(host, IMAGES).result()
        assert answer.variant == host.active == host.status().active == "v2"
        engine = OnnxEngine(variants["v2"].graph, variants["v2"].tensors)
        assert same(answer.logits, engine.run(IMAGES))


def test_a_fixed_variant_is_the_first_and_stays(portfolio: Portfolio) -> None:
    with initialise(portfolio, Fixed("v4"), dwell=0.0) as host:
        for _ in range(3):
            host.tick()
        assert submit(host, IMAGES).result().variant == "v4"
        assert host.status().switches == ()


def test_a_switch_under_concurrent_requests_drops_none_and_every_answer_is_its_variants(
    portfolio: Portfolio, variants: dict[str, Variant]
) -> None:
    expected = {
        name: OnnxEngine(variant.graph, variant.tensors).run(IMAGES) for name, variant in variants.items()
    }
    switcher = Switcher(portfolio.profiles, Tour("v4", "v0", "v3", "v1", "v2"), dwell=0.0)
    with Host(portfolio, switcher, Counted(), servers=3, ahead_bytes=1000) as host:
        stop = threading.Event()

        def client(_: int) -> set[str]:
            named = set()
            while not stop.is_set():
                answer = submit(host, IMAGES).result()
                assert same(answer.logits, expected[answer.variant])
                named.add(answer.variant)
            return named

        with ThreadPoolExecutor(4) as clients:
            running = [clients.submit(client, index) for index in range(4)]
            for _ in range(60):
                decision = host.tick()
                assert submit(host, IMAGES).result().variant == decision.variant
            stop.set()
            named = set().union(*(future.result() for future in running))
        assert named <= set(expected)
        assert host.queue == 0
        assert len(host.status().switches) == 60


class Gated:
    """Builds real engines that compute two images only once the gate is open."""

    def __init__(self) -> None:
        self.entered, self.gate = threading.Event(), threading.Event()

    def __call__(self, variant: Variant) -> "GatedEngine":
        return GatedEngine(variant, self)


class GatedEngine:
    def __init__(self, variant: Variant, gated: Gated) -> None:
        self._engine, self._gated = OnnxEngine(variant.graph, variant.tensors), gated

    def run(self, images: np.ndarray) -> np.ndarray:
        if len(images) == 2 and images.any():  # which no warm-up is
            self._gated.entered.set()
            assert self._gated.gate.wait(60)
        return self._engine.run(images)


def test_a_request_finishes_on_the_engine_that_it_started_on(portfolio: Portfolio) -> None:
    build = Gated()
    switcher = Switcher(portfolio.profiles, Tour("v0"), dwell=0.0)
    with Host(portfolio, switcher, build, servers=2) as host:
        started = submit(host, IMAGES[:2])
        assert build.entered.wait(60)
        host.tick()
        assert submit(host, IMAGES[:1]).result().variant == "v0"
        assert not started.done()
        assert host.queue == 1
        build.gate.set()
        assert started.result().variant == "v2"


def test_a_request_is_seen_from_its_arrival_and_counts_all_its_work(portfolio: Portfolio) -> None:
    """One that is still being decoded is load already, and encoding its answer is work."""
    with initialise(portfolio, Slo(10.0), dwell=0.0) as host:
        with host.request() as request:
            assert host.queue == 1
            assert request.submit(IMAGES).result().variant
            assert host.queue == 1
            request.overhead = 7.0
        assert host.queue == 0
        with pytest.raises(ZeroDivisionError), host.request():
            _ = 1 / 0  # it could not be decoded
        assert host.queue == 0
        seen: list[Observation] = []
        observe = host._switcher.observe
        host._switcher.observe = lambda one: seen.append(one) or observe(one)  # type: ignore[func-returns-value,method-assign]
        host.tick()
    (observation,) = seen
    assert observation.requests == 2
    assert [(s.images, s.overhead) for s in observation.services] == [(3, 7.0)]


def test_requests_that_are_turned_away_are_load(portfolio: Portfolio) -> None:
    seen: list[Observation] = []
    with Host(portfolio, Switcher(portfolio.profiles, Fixed("v2")), Counted()) as host:
        observe = host._switcher.observe
        host._switcher.observe = lambda one: seen.append(one) or observe(one)  # type: ignore[func-returns-value,method-assign]
        submit(host, IMAGES).result()
        host.refused()
        host.tick()
    (observation,) = seen
    assert (observation.requests, observation.queue) == (2, 0)


def test_failed_and_cancelled_requests_leave_the_queue(portfolio: Portfolio) -> None:
    build = Gated()
    with Host(portfolio, Switcher(portfolio.profiles, Slo(0.05)), build) as host:
        computing = submit(host, IMAGES[:2])
        assert build.entered.wait(60)
        failing, waiting = submit(host, IMAGES[:, :, :4]), submit(host, IMAGES)
        assert host.queue == 3
        assert waiting.cancel()
        assert not computing.cancel()
        assert host.queue == 2
        build.gate.set()
        with pytest.raises(EngineError):
            failing.result()
        assert computing.result().variant == "v2"
        with pytest.raises(CancelledError):
            waiting.result()
    assert host.queue == 0


def test_engines_do_not_pile_up_over_many_switches(portfolio: Portfolio) -> None:
    build = Counted()
    with touring(portfolio, build, "v0", "v4", "v1", "v3") as host:
        for _ in range(200):
            host.tick()
            submit(host, IMAGES).result()
        assert len(build.built) == 201
        gc.collect()
        assert len(build.alive) == 1
        assert host.status().ready == (host.active,)


def test_neighbours_are_ready_before_they_are_needed(portfolio: Portfolio) -> None:
    build = Counted()
    with touring(portfolio, build, "v2", "v1", "v0", "v1", "v4", ahead_bytes=10_000) as host:
        host.tick()
        assert set(host.status().ready) == {"v1", "v2", "v3"}
        host.tick()
        assert set(host.status().ready) == {"v0", "v1", "v2"}
        host.tick()
        assert set(host.status().ready) == {"v0", "v1"}
        host.tick()
        assert build.built == ["v2", "v1", "v3", "v0", "v2"]  # v2 twice: at v0 it was no neighbour
        host.tick()
        assert [switch.ahead for switch in host.status().switches] == [True, True, True, False]
        gc.collect()
        assert len(build.alive) == len(host.status().ready) == 2


@pytest.mark.parametrize(
    ("ahead_bytes", "ready"), [(999, {"v2"}), (1999, {"v1", "v2"}), (2000, {"v1", "v2", "v3"})]
)
def test_inflating_ahead_keeps_within_its_memory(
    portfolio: Portfolio, ahead_bytes: int, ready: set[str]
) -> None:
    with touring(portfolio, Counted(), "v2", ahead_bytes=ahead_bytes) as host:
        host.tick()
        assert set(host.status().ready) == ready


def test_a_switch_is_recorded_with_its_reason_and_duration(portfolio: Portfolio) -> None:
    with touring(portfolio, Counted(), "v4") as host:
        host.tick()
        (switch,) = host.status().switches
        assert (switch.before, switch.after, switch.reason) == ("v2", "v4", "the tour")
        assert switch.seconds > 0
        assert switch.error is None


def test_a_variant_that_does_not_run_leaves_the_old_one_serving(portfolio: Portfolio) -> None:
    build = Counted()

    def reluctant(variant: Variant) -> OnnxEngine:
        if variant.name == "v4":
            raise EngineError("not on this node")
        return build(variant)

    with Host(
        portfolio, Switcher(portfolio.profiles, Slo(10.0), dwell=0.0), reluctant, ahead_bytes=0
    ) as host:
        decision = host.tick()
        assert decision.variant == "v2"
        assert decision.reason == host.status().reason == "v4 cannot serve: EngineError: not on this node"
        assert submit(host, IMAGES).result().variant == "v2"
        (failed,) = host.status().switches
        assert (failed.before, failed.after, failed.error) == ("v2", "v4", "EngineError: not on this node")
        host.tick()
        assert host.active == "v3"  # the best of those that run
        assert len(host.status().switches) == 2


class Short:
    """Builds real engines, while there is memory for them; there always is for v2."""

    def __init__(self) -> None:
        self.has_memory, self.tried = False, []

    def __call__(self, variant: Variant) -> OnnxEngine:
        self.tried.append(variant.name)
        if not self.has_memory and variant.name != "v2":
            raise MemoryError("for a moment")
        return OnnxEngine(variant.graph, variant.tensors)


def test_what_cannot_be_inflated_ahead_for_want_of_memory_is_tried_again(portfolio: Portfolio) -> None:
    build, now = Short(), [0.0]
    switcher = Switcher(portfolio.profiles, Tour("v2"), dwell=0.0)
    with Host(portfolio, switcher, build, clock=lambda: now[0]) as host:
        for now[0] in (0.0, 0.1, 0.9, 1.0, 1.1, 2.9):
            host.tick()
        assert build.tried == ["v2", "v1", "v3", "v1", "v3"]
        assert host.status().usable == ("v0", "v1", "v2", "v3", "v4")
        build.has_memory = True
        now[0] = 3.1
        host.tick()
        assert set(host.status().ready) == {"v1", "v2", "v3"}


def test_a_switch_that_fails_for_want_of_memory_is_tried_again(portfolio: Portfolio) -> None:
    build, now = Short(), [0.0]
    switcher = Switcher(portfolio.profiles, Slo(10.0), dwell=0.0)
    with Host(portfolio, switcher, build, ahead_bytes=0, clock=lambda: now[0]) as host:
        for now[0] in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5):
            assert host.tick().variant == host.active == "v2"
        assert build.tried == ["v2", "v4", "v3"]
        build.has_memory = True
        now[0] = 1.1
        assert host.tick().variant == host.active == "v4"
        assert host.status().usable == ("v0", "v1", "v2", "v3", "v4")


class Unfit:
    """Quick engines that no longer answer once they are optimised."""

    def __init__(self, variant: Variant) -> None:
        self._engine, self._is_fast = OnnxEngine(variant.graph, variant.tensors, quick=True), False

    def run(self, images: np.ndarray) -> np.ndarray:
        if self._is_fast:
            raise EngineError("out of memory")
        return self._engine.run(images)

    def optimise(self) -> None:
        self._is_fast = True


def test_a_quick_engine_whose_fast_one_does_not_answer_serves_on(portfolio: Portfolio) -> None:
    with Host(portfolio, Switcher(portfolio.profiles, Tour("v2", "v4"), dwell=0.0), Unfit) as host:
        for name in ("v2", "v4", "v2"):
            assert host.tick().variant == name
            assert submit(host, IMAGES).result().variant == name
        assert all(switch.error is None for switch in host.status().switches)


def test_what_is_served_reaches_the_switcher(portfolio: Portfolio) -> None:
    with initialise(portfolio, Slo(10.0), dwell=0.0) as host:
        host.tick()
        for _ in range(20):
            submit(host, IMAGES, overhead=30.0).result()
        assert "too slow" in host.tick().reason
        assert 0 < host.status().rate <= 20
        assert host.active == "v0"


def test_a_damaged_package_is_refused_before_anything_serves(package: bytes) -> None:
    portfolio = Portfolio.open(package)
    victim = portfolio.manifest.variants[4].tensors[1].entry.encode()
    at = package.index(victim) + len(victim) + 20
    damaged = package[:at] + bytes([package[at] ^ 0x55]) + package[at + 1 :]
    with pytest.raises(PackageError, match=victim.decode()):
        initialise(Portfolio.open(damaged), Slo(0.05))


@pytest.mark.parametrize("wrong", [{"servers": 0}, {"dwell": -1.0}, {"ahead_bytes": -1}])
def test_settings_out_of_range_are_refused(portfolio: Portfolio, wrong: dict[str, int]) -> None:
    with pytest.raises(EngineError):
        initialise(portfolio, Slo(0.05), **wrong)
