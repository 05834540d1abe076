"""Requests that wait: several by one call, each in time or refused, no neighbour's fault shared."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from itertools import count, pairwise

import numpy as np
import pytest

from shifter.errors import EngineError, OverloadError
from shifter.portfolio import Portfolio
from shifter.switching.engine import OnnxEngine
from shifter.switching.host import Answer, Host
from shifter.switching.initialise import initialise
from shifter.switching.policies import Fixed, Slo
from shifter.switching.switcher import Observation, Switcher
from shifter.values import Variant

from .test_host import IMAGES, Gated, same, submit
from .test_refresh import wait_until

MANY = np.random.default_rng(5).standard_normal((20, 1, 6, 6)).astype(np.float32)
POISON = np.full((1, 1, 6, 6), 13.0, np.float32)


class Calls(Gated):
    """Also notes how many images each call had, and fails on those with `POISON`."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __call__(self, variant: Variant) -> CallsEngine:
        return CallsEngine(variant, self)


class CallsEngine:
    def __init__(self, variant: Variant, calls: Calls) -> None:
        self._engine, self._calls = OnnxEngine(variant.graph, variant.tensors), calls

    def run(self, images: np.ndarray) -> np.ndarray:
        if images.any():  # which no warm-up is
            self._calls.sizes.append(len(images))
            if len(images) == 2 and not self._calls.gate.is_set():
                self._calls.entered.set()
                assert self._calls.gate.wait(60)
            if (images == 13.0).any():
                raise EngineError("poison")
        return self._engine.run(images)


def logits(variants: dict[str, Variant], name: str, images: np.ndarray) -> np.ndarray:
    return OnnxEngine(variants[name].graph, variants[name].tensors).run(images)


def held(host: Host, calls: Calls) -> Future[Answer]:
    """A request that is on the engine until the gate opens."""
    computing = submit(host, IMAGES[:2])
    assert calls.entered.wait(60)
    return computing


def fixed(portfolio: Portfolio, name: str = "v2") -> Switcher:
    return Switcher(portfolio.profiles, Fixed(name))


def test_what_waits_is_computed_by_one_call_and_each_gets_its_own_answer(
    portfolio: Portfolio, variants: dict[str, Variant]
) -> None:
    calls = Calls()
    with Host(portfolio, fixed(portfolio), calls, max_batch=8) as host:
        computing = held(host, calls)
        sizes = (1, 3, 1, 2, 1, 1)
        starts = np.cumsum([0, *sizes])
        waiting = [submit(host, MANY[a:b]) for a, b in pairwise(starts)]
        calls.gate.set()
        answers = [future.result() for future in waiting]
        assert computing.result().batch == 2
    assert calls.sizes == [2, 8, 1]
    assert [answer.batch for answer in answers] == [8] * 5 + [1]
    assert {answer.variant for answer in answers} == {"v2"}
    for answer, (a, b) in zip(answers, pairwise(starts), strict=True):
        assert same(answer.logits, logits(variants, "v2", MANY[a:b]))


def test_nobody_waits_for_others_to_come(portfolio: Portfolio) -> None:
    with Host(portfolio, fixed(portfolio), Calls()) as host:
        assert [submit(host, MANY[i : i + 1]).result().batch for i in range(5)] == [1] * 5
        assert submit(host, MANY).result().batch == 20


def test_one_whose_images_fail_fails_alone(portfolio: Portfolio, variants: dict[str, Variant]) -> None:
    calls = Calls()
    with Host(portfolio, fixed(portfolio), calls) as host:
        held(host, calls)
        good = [submit(host, MANY[i : i + 1]) for i in range(2)]
        bad = submit(host, POISON)
        good += [submit(host, MANY[i : i + 1]) for i in range(2, 4)]
        narrow = submit(host, MANY[:1, :, :, :4])
        good += [submit(host, MANY[4:5])]
        calls.gate.set()
        for i, future in enumerate(good):
            assert same(future.result().logits, logits(variants, "v2", MANY[i : i + 1]))
        with pytest.raises(EngineError, match="poison"):
            bad.result()
        with pytest.raises(EngineError):
            narrow.result()
        assert calls.sizes == [2, 5, 1, 1, 1, 1, 1, 1, 1]
        assert host.queue == 0


def test_an_answer_for_other_images_is_none(portfolio: Portfolio) -> None:
    class Short(OnnxEngine):
        def run(self, images: np.ndarray) -> np.ndarray:
            return super().run(images)[: 2 if len(images) > 2 else None]

    def build(variant: Variant) -> Short:
        return Short(variant.graph, variant.tensors)

    with Host(portfolio, fixed(portfolio), build) as host, pytest.raises(EngineError, match="with 2 rows"):
        submit(host, IMAGES).result()


def test_want_of_memory_is_overload(portfolio: Portfolio) -> None:
    class Full(OnnxEngine):
        def run(self, images: np.ndarray) -> np.ndarray:
            if images.any():
                raise MemoryError("for a moment")
            return super().run(images)

    def build(variant: Variant) -> Full:
        return Full(variant.graph, variant.tensors)

    with Host(portfolio, fixed(portfolio), build) as host:
        with pytest.raises(OverloadError, match="for a moment"):
            submit(host, IMAGES).result()
        assert host.status().usable == tuple(portfolio.names)


def test_the_switcher_is_told_of_calls_and_of_how_many_requests_each_answered(portfolio: Portfolio) -> None:
    calls, seen = Calls(), list[Observation]()
    switcher = fixed(portfolio)
    with Host(portfolio, switcher, calls) as host:
        observe = switcher.observe
        switcher.observe = lambda one: seen.append(one) or observe(one)  # type: ignore[func-returns-value,method-assign]
        held(host, calls)
        waiting = [submit(host, MANY[:2], overhead=1.0), submit(host, MANY[:3], overhead=3.0)]
        host.tick()
        status = host.status()
        assert (status.queue, status.waiting, status.computing) == (3, 2, 1)
        calls.gate.set()
        [future.result() for future in waiting]
        wait_until(lambda: host.queue == 0)
        host.tick()
    assert [one.queue for one in seen] == [3, 0]
    assert [(s.images, s.requests, s.overhead) for s in seen[1].services] == [(2, 1, 0.0), (5, 2, 2.0)]


def test_several_on_one_call_do_not_wait(portfolio: Portfolio) -> None:
    """To the policies they are as one, so that a batch that is computed is no queue."""

    class Held(Calls):
        pass

    calls, seen = Held(), list[Observation]()
    switcher = fixed(portfolio)
    with Host(portfolio, switcher, calls) as host:
        observe = switcher.observe
        switcher.observe = lambda one: seen.append(one) or observe(one)  # type: ignore[func-returns-value,method-assign]
        block = threading.Event()
        line = host._line

        class Blocked:
            def run(self, images: np.ndarray) -> np.ndarray:
                assert block.wait(60)
                return np.zeros((len(images), 3), np.float32)

        held(host, calls)
        waiting = [submit(host, MANY[i : i + 1]) for i in range(4)]
        host._resident.active = host._resident.active._replace(engine=Blocked())
        calls.gate.set()
        wait_until(lambda: line.counts == (0, 4, 1))
        host.tick()
        block.set()
        [future.result() for future in waiting]
    assert [one.queue for one in seen] == [1]


def test_what_cannot_be_answered_in_time_is_refused_at_once_and_counts_as_load(portfolio: Portfolio) -> None:
    """v2 takes 4 ms for one image, by profile."""
    calls, now, seen = Calls(), [0.0], list[Observation]()
    switcher = fixed(portfolio)
    with Host(portfolio, switcher, calls, clock=lambda: now[0]) as host:
        observe = switcher.observe
        switcher.observe = lambda one: seen.append(one) or observe(one)  # type: ignore[func-returns-value,method-assign]
        assert host.wait_s() == pytest.approx(0.004)
        assert host.wait_s(8) == pytest.approx(0.018)
        held(host, calls)
        last = host.wait_s()
        for i in range(4):
            submit(host, MANY[i : i + 1])
            assert host.wait_s() > last
            last = host.wait_s()
        with host.request(deadline_s=0.01) as request, pytest.raises(OverloadError) as refused:
            request.submit(MANY[:1])
        assert refused.value.retry_after_s == 1
        with host.request(deadline_s=1.0) as request:
            taken = request.submit(MANY[:1])
        assert host.queue == 6
        calls.gate.set()
        assert taken.result().batch == 5
        host.tick()
        assert sum(one.requests for one in seen) == 7


@pytest.mark.parametrize("later", [0.2, 0.0965])
def test_one_that_is_too_late_at_its_turn_is_not_computed(portfolio: Portfolio, later: float) -> None:
    """Its deadline has passed, or will have when it is computed."""
    calls, now = Calls(), [0.0]
    with Host(portfolio, fixed(portfolio), calls, clock=lambda: now[0]) as host:
        held(host, calls)
        with host.request(deadline_s=0.1) as request:
            late = request.submit(MANY[:1])
        with host.request(deadline_s=10.0) as request:
            patient = request.submit(MANY[:3])
        now[0] = later
        calls.gate.set()
        assert patient.result().batch == 3
        with pytest.raises(OverloadError, match="in time"):
            late.result()
        assert calls.sizes == [2, 3]
        assert host.queue == 0


class Timed:
    """Engines on a clock of their own: a call `takes` seconds by its images, and more comes `meanwhile`."""

    def __init__(self, takes: Callable[[int], float]) -> None:
        self.now, self.takes = 0.0, takes
        self.meanwhile: Callable[[float], None] = lambda until: None

    def __call__(self, variant: Variant) -> TimedEngine:
        return TimedEngine(self)


class TimedEngine:
    def __init__(self, timed: Timed) -> None:
        self._timed = timed

    def run(self, images: np.ndarray) -> np.ndarray:
        if threading.current_thread().name.startswith("server"):
            until = self._timed.now + self._timed.takes(len(images))
            self._timed.meanwhile(until)
            self._timed.now = until
        return np.zeros((len(images), 3), np.float32)


@pytest.mark.parametrize("load", [0.5, 2.0, 4.0])
@pytest.mark.parametrize("slower", [1.0, 3.0])
def test_under_any_load_what_is_answered_is_in_time_and_as_much_as_can_be(
    portfolio: Portfolio, load: float, slower: float
) -> None:
    """On exact times: arrivals come while the engine computes, whatever it takes beside the profile."""
    curve = {1: 0.004, 8: 0.018}

    def takes(images: int) -> float:
        return slower * (curve[1] + (images - 1) * (curve[8] - curve[1]) / 7)

    timed, objective, seconds = Timed(takes), 0.15, 10.0
    random = np.random.default_rng(3)
    arrivals = iter(np.cumsum(random.exponential(takes(1) / load, 20_000)).tolist())
    coming = [next(arrivals)]
    latencies, refused, dropped = list[float](), count(), list[Future[Answer]]()
    ended = threading.Event()
    with Host(portfolio, fixed(portfolio), timed, clock=lambda: timed.now) as host:
        for _ in range(8):  # so that it knows how fast the node is
            submit(host, MANY[:1]).result()
        start = timed.now

        def arrive(at: float) -> None:
            timed.now = at
            with host.request(deadline_s=objective) as request:
                try:
                    answer = request.submit(MANY[:1])
                except OverloadError:
                    next(refused)
                    return

            def done(future: Future[Answer]) -> None:
                if future.exception() is None:
                    latencies.append(timed.now - at)
                else:
                    dropped.append(future)

            answer.add_done_callback(done)

        def meanwhile(until: float) -> None:
            while coming[0] + start <= until and coming[0] < seconds:
                at, coming[0] = coming[0] + start, next(arrivals)
                arrive(max(at, timed.now))
            if coming[0] >= seconds:
                ended.set()
            elif host._line.counts[0] == 0:  # else it would be idle, and time stand still
                at, coming[0] = until, next(arrivals)
                arrive(at)

        timed.meanwhile = meanwhile
        arrive(timed.now)
        assert ended.wait(60)
        wait_until(lambda: host.queue == 0)
        timed.meanwhile = lambda until: None
        assert max(latencies) <= objective * (1 + 1e-9)
        offered = len(latencies) + len(dropped) + next(refused)
        assert len(dropped) <= 0.01 * offered
        best = seconds / (takes(8) / 8)
        assert len(latencies) >= 0.9 * min(best, offered)
        with host.request(deadline_s=objective) as request:  # and afterwards as before
            assert request.submit(MANY[:1]).result().batch == 1


def test_predictions_that_refuse_everything_are_tried_again(portfolio: Portfolio) -> None:
    """No call corrects them, since every request is refused; so some are made to see."""
    timed = Timed(lambda images: 1.0)
    with Host(portfolio, fixed(portfolio), timed, clock=lambda: timed.now) as host:
        for _ in range(8):
            submit(host, MANY[:1]).result()
        timed.takes = lambda images: 0.001

        def ask() -> bool:
            timed.now += 0.1
            try:
                with host.request(deadline_s=0.1) as request:
                    return request.submit(MANY[:1]).result().batch == 1
            except OverloadError:
                time.sleep(0.01)
                return False

        began = timed.now
        assert not ask()
        wait_until(ask)
        assert timed.now - began < 2


def test_a_closed_host_refuses(portfolio: Portfolio) -> None:
    with Host(portfolio, Switcher(portfolio.profiles, Slo(0.05)), Calls()) as host:
        assert submit(host, IMAGES).result().batch == 3
    with pytest.raises(OverloadError), host.request() as request:
        request.submit(IMAGES)
    assert host.queue == 0


def test_what_nobody_foresaw_ends_its_requests_and_no_thread(
    portfolio: Portfolio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that ended would never be replaced, and nothing be answered any more."""
    with initialise(portfolio, Slo(0.05)) as host:
        line, honest = host._line, host._line._compute

        def broken(*_: object) -> list[object]:
            raise MemoryError("planted")

        monkeypatch.setattr(line, "_compute", broken)
        with pytest.raises(MemoryError, match="planted"):
            submit(host, IMAGES).result(60)
        monkeypatch.setattr(line, "_compute", honest)
        assert len(submit(host, IMAGES).result(60).logits) == len(IMAGES)
        assert host.queue == 0
