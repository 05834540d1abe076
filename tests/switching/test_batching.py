"""Which requests one call answers: whatever waits, in order, in time, and only where it helps."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shifter.switching.batching import form, useful, work_s


@dataclass(frozen=True)
class Piece:
    count: int = 1
    deadline: float = math.inf
    patience: float = math.inf
    joins: bool = True


def affine(first: float, each: float):
    return lambda images: first + each * images


HALF = affine(1.0, 1.0)  # eight images take 9 s together, 16 one by one

pieces = st.lists(
    st.builds(
        Piece,
        st.integers(1, 12),
        st.sampled_from([math.inf, 0.5, 3.0, 9.0, 30.0]),
        st.sampled_from([math.inf, 6.0, 30.0]),
        st.booleans(),
    ),
    max_size=12,
)
curves = st.builds(affine, st.floats(0, 3), st.floats(0.01, 2))


@given(pieces, st.integers(1, 16), curves)
def test_a_call_is_the_first_that_can_be_in_time_and_all_of_it_is(
    waiting: list[Piece], most: int, seconds
) -> None:
    taken, late = form(waiting, 0.0, most, seconds)
    images = sum(piece.count for piece in taken)
    able = [piece for piece in waiting if seconds(piece.count) <= piece.deadline]
    assert taken == able[: len(taken)]
    assert bool(taken) == bool(able)
    assert all(seconds(piece.count) > piece.deadline for piece in late)
    assert all(seconds(images) <= piece.deadline for piece in taken)
    if len(taken) > 1:
        assert images <= most
        assert all(piece.joins for piece in taken)
        assert all(seconds(images) <= piece.patience / 3 for piece in taken)
        assert seconds(images) < sum(seconds(piece.count) for piece in taken)


def test_one_that_waits_alone_is_computed_alone_and_all_that_wait_together() -> None:
    assert form([Piece()], 0.0, 8, HALF) == ([Piece()], [])
    assert form([Piece()] * 20, 0.0, 8, HALF) == ([Piece()] * 8, [])
    assert form([Piece(20), Piece()], 0.0, 8, HALF) == ([Piece(20)], [])
    assert form([Piece(7), Piece(2), Piece()], 0.0, 8, HALF) == ([Piece(7)], [])


def test_where_a_batch_saves_nothing_each_is_answered_as_soon_as_it_can_be() -> None:
    assert form([Piece()] * 8, 0.0, 8, affine(0.0, 1.0)) == ([Piece()], [])
    assert useful(8, math.inf, affine(0.0, 1.0)) == 1
    assert work_s(20, 8, lambda n: float(n * n)) == 20


@pytest.mark.parametrize(("patience", "images"), [(math.inf, 8), (27.0, 8), (26.9, 7), (6.0, 1), (1.0, 1)])
def test_no_call_takes_more_than_a_third_of_the_time_that_a_request_has(patience: float, images: int) -> None:
    assert useful(8, patience, HALF) == images
    taken, _ = form([Piece(patience=patience)] * 20, 0.0, 8, HALF)
    assert len(taken) == images


@given(st.integers(0, 100), st.integers(1, 16), curves)
def test_work_is_never_more_than_one_by_one_nor_less_than_all_in_one(images: int, most: int, seconds) -> None:
    work = work_s(images, most, seconds)
    assert work <= images * seconds(1) * (1 + 1e-9)
    assert not images or work * (1 + 1e-9) >= seconds(images)
