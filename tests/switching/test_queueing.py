import math
from bisect import bisect_right

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shifter.switching.queueing import Queue

SECOND = 10**9


def one_by_one(
    arrivals: list[int], takes: list[int], servers: int, room: int
) -> list[tuple[int, int] | None]:
    """(begin, finish) of each, None for the refused: the queue as one would write it down."""
    free = [0] * servers
    finishes: list[int] = []
    found: list[tuple[int, int] | None] = []
    for arrival, takes_ in zip(arrivals, takes, strict=True):
        if sum(finish > arrival for finish in finishes) >= room:
            found.append(None)
            continue
        server = free.index(min(free))
        begin = max(arrival, free[server])
        free[server] = begin + takes_
        finishes.append(free[server])
        found.append((begin, free[server]))
    return found


def outcome(queue: Queue) -> list[tuple[int, int] | None]:
    return [
        None if refused else (begin, finish)
        for begin, finish, refused in zip(
            queue.begin.tolist(), queue.finish.tolist(), queue.refused.tolist(), strict=True
        )
    ]


requests = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 60)), max_size=60)
servers_and_room = st.sampled_from([(1, 1), (1, 2), (1, 5), (1, 1000), (2, 2), (2, 4), (3, 7), (3, 1000)])


@given(requests, servers_and_room, st.lists(st.integers(1, 400), max_size=8))
def test_blocks_of_any_length_are_the_queue_one_by_one(
    some: list[tuple[int, int]], shape: tuple[int, int], lengths: list[int]
) -> None:
    arrivals = np.cumsum([gap for gap, _ in some], dtype=np.int64)
    takes = np.array([one for _, one in some], np.int64)
    queue = Queue(arrivals, *shape)
    now, begun = 0, []
    for length in [*lengths, 10**6]:
        # Tried further than it is kept.
        candidates = queue.candidates(now + 2 * length)
        queue.serve(candidates, takes[candidates])
        now += length
        begun += queue.keep(now).tolist()
    assert outcome(queue) == one_by_one(arrivals.tolist(), takes.tolist(), *shape)
    assert begun == np.flatnonzero(~queue.refused).tolist(), "first come, first served; each once"


@given(requests, servers_and_room)
def test_never_more_inside_than_there_is_room(some: list[tuple[int, int]], shape: tuple[int, int]) -> None:
    arrivals = np.cumsum([gap for gap, _ in some], dtype=np.int64)
    queue = Queue(arrivals, *shape)
    queue.serve(queue.candidates(10**6), np.array([one for _, one in some], np.int64))
    entered = arrivals[~queue.refused]
    finish = np.sort(queue.finish[~queue.refused]).tolist()
    for place, arrival in enumerate(entered.tolist()):
        assert place + 1 - bisect_right(finish, arrival) <= shape[1]
    begin = queue.begin[~queue.refused]
    assert np.all(np.diff(begin) >= 0), "first come, first served"
    assert np.all(begin >= entered)


def test_a_service_time_is_settled_when_the_request_begins() -> None:
    queue = Queue(np.array([0, 10, 20, 30]), 1, 10)
    queue.serve(queue.candidates(100), np.full(4, 15))
    assert queue.keep(16).tolist() == [0, 1]  # the second began at 15
    candidates = queue.candidates(100)
    assert candidates.tolist() == [2, 3]
    queue.serve(candidates, np.full(2, 1))
    assert queue.keep(100).tolist() == [2, 3]
    assert queue.finish.tolist() == [15, 30, 31, 32]


def poisson(rate: float, seconds: int, seed: int) -> tuple[np.ndarray, np.random.Generator]:
    random = np.random.default_rng(seed)
    return np.sort(random.integers(0, seconds * SECOND, random.poisson(rate * seconds))), random


def run(arrivals: np.ndarray, takes: np.ndarray, servers: int = 1, room: int = 10**9) -> Queue:
    queue = Queue(arrivals, servers, room)
    queue.serve(queue.candidates(2**62), takes)
    queue.keep(2**62)
    return queue


def within(found: list[float], expected: float) -> None:
    """Four standard errors of the mean of independent runs; the seeds being fixed, it never changes."""
    error = np.std(found, ddof=1) / math.sqrt(len(found))
    assert error < 0.05 * expected, "too few runs to tell"
    assert np.mean(found) == pytest.approx(expected, abs=4 * error)


@pytest.mark.parametrize("busy", [0.2, 0.5, 0.8, 0.9])
@pytest.mark.parametrize("spread", [0.0, 0.7])
def test_the_mean_wait_is_pollaczek_and_khinchines(busy: float, spread: float) -> None:
    """Random arrivals, one server, any service: wait = busy * s * (1 + cv²) / (2 * (1 - busy))."""
    mean = 0.01
    found = []
    for seed in range(10):
        arrivals, random = poisson(busy / mean, 1000, seed)
        takes = mean * (1 + spread * random.choice([-1, 1], arrivals.size))
        queue = run(arrivals, np.rint(takes * SECOND).astype(np.int64))
        found.append(float(np.mean(queue.begin - arrivals)) / SECOND)
    within(found, busy * mean * (1 + spread**2) / (2 * (1 - busy)))


@pytest.mark.parametrize(("servers", "busy"), [(2, 0.7), (4, 0.8)])
def test_the_mean_wait_at_several_servers_is_erlangs(servers: int, busy: float) -> None:
    mean, load = 0.01, servers * busy
    terms = [load**n / math.factorial(n) for n in range(servers + 1)]
    waits = terms[-1] / (1 - busy) / (sum(terms[:-1]) + terms[-1] / (1 - busy))
    found = []
    for seed in range(10):
        arrivals, random = poisson(load / mean, 100, seed)
        takes = np.maximum(1, random.exponential(mean * SECOND, arrivals.size)).astype(np.int64)
        queue = run(arrivals, takes, servers)
        found.append(float(np.mean(queue.begin - arrivals)) / SECOND)
    within(found, waits * mean / (servers * (1 - busy)))


@pytest.mark.parametrize(("room", "busy"), [(1, 0.5), (4, 0.9), (4, 2.0), (64, 1.5)])
def test_as_many_are_refused_as_the_bounded_queue_of_theory_refuses(room: int, busy: float) -> None:
    mean = 0.01
    found = []
    for seed in range(10):
        arrivals, random = poisson(busy / mean, 200, seed)
        takes = np.maximum(1, random.exponential(mean * SECOND, arrivals.size)).astype(np.int64)
        found.append(float(np.mean(run(arrivals, takes, room=room).refused)))
    within(found, (1 - busy) * busy**room / (1 - busy ** (room + 1)))
