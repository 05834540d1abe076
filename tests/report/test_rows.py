"""The words and figures of the report."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shifter.report.rows import flatten, milliseconds, quantity, rows, share
from shifter.values import Discarded

UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}


@given(st.integers(0, 10**11))
def test_a_quantity_reads_back_within_its_three_figures(number: int) -> None:
    figure, _, unit = quantity(number).partition(" ")
    assert float(figure) * UNITS[unit] == pytest.approx(number, rel=0.005)
    assert "e" not in figure
    assert float(figure) < 1000 or unit == "G"


@given(st.floats(0.001, 1e5))
def test_milliseconds_are_plain_decimals(value: float) -> None:
    text = milliseconds(value)
    assert re.fullmatch(r"\d+(\.\d+)?", text)
    assert float(text) == pytest.approx(value, rel=0.005, abs=0.0005)


@pytest.mark.parametrize(
    ("fraction", "text"),
    [(0.0, "0.0 %"), (1.0, "100.0 %"), (0.0156, "1.6 %"), (0.00391, "0.39 %"), (0.00996, "1.0 %")],
)
def test_a_share_keeps_its_figures_when_it_is_small(fraction: float, text: str) -> None:
    assert share(fraction) == text


def test_nested_settings_become_dotted_paths_in_their_order() -> None:
    tree = {"seed": 1, "model": {"name": "vgg", "stages": [[8], [16]]}, "commit": None}
    assert flatten(tree) == [
        ("seed", "1"),
        ("model.name", "vgg"),
        ("model.stages", "[[8], [16]]"),
        ("commit", "–"),
    ]


@pytest.mark.parametrize(
    ("kept", "discarded"),
    [
        (["1x"], []),  # 2x has no fate
        (["1x", "2x"], ["2x"]),  # 2x has two
        (["1x", "2x", "4x"], []),  # 4x was never profiled
    ],
)
def test_every_variant_has_exactly_one_fate(kept, discarded, make_profile) -> None:
    variants = [("1x", make_profile(1)), ("2x", make_profile(2))]
    with pytest.raises(AssertionError, match="kept or discarded, once"):
        rows(variants, kept, [Discarded(name, "1x", "it is worse") for name in discarded])
