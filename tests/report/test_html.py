"""The page: complete, self-contained, and safe whatever it is given."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shifter.report import render
from shifter.report.plot import KEPT, script_json
from shifter.values import Discarded, Search

HOSTILE = """</script><img src=x onerror="alert('x')">&amp;\u2028"""


class Page(HTMLParser):
    """Elements in order, the text of table cells, and the scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.cells: list[str] = []
        self.scripts: list[str] = []
        self._into: list[str] | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag in ("td", "th", "script"):
            self._into = self.scripts if tag == "script" else self.cells
            self._into.append("")

    def handle_endtag(self, tag) -> None:
        if tag in ("td", "th", "script"):
            self._into = None

    def handle_data(self, data) -> None:
        if self._into is not None:
            self._into[-1] += data


@pytest.fixture(scope="module")
def variants(make_profile):
    return [
        ("1x", make_profile(1, accuracy=0.981, p50=0.6, structural=150_000)),
        ("8x", make_profile(8, accuracy=0.96, p50=0.62, structural=125_000)),
        ("64x", make_profile(64, accuracy=0.9, p50=0.1234, structural=9_876)),
    ]


DISCARDED = [Discarded("8x", "1x", "1x is no slower and more accurate")]


@pytest.fixture(scope="module")
def text(variants) -> str:
    recipe = {"name": "digits", "training": {"epochs": 4}}
    return render("digits-0a1b2c3d", recipe, {"torch": "2.15.0"}, variants, ["1x", "64x"], DISCARDED)


def figure(page: Page) -> dict:
    return json.loads(re.search(r"const figure = (\{.*\});\n", page.scripts[-1])[1])


def test_the_table_says_it_all_without_javascript(text: str) -> None:
    cells = Page(text).cells
    start = cells.index("64x")
    row = " ".join(cells[start : start + 18])
    for figure_ in ("kept", "64", "2.34 k", "9.88 k", "39.5 k", "90.0 %", "88.8 %", "0.123", "2.1e-15"):
        assert figure_ in row
    # Multiply-accumulates, the interval of p99, alternating, all cores.
    for figure_ in ("644 k", "0.210 – 0.296", "0.8641.11", "0.0490.1114 cores"):
        assert figure_ in row
    assert "discarded for 1x: 1x is no slower and more accurate" in cells
    for value in ("training.epochs", "4", "torch", "2.15.0"):
        assert value in cells


def test_each_layer_of_each_variant_is_told(text: str) -> None:
    cells = Page(text).cells
    start = [index for index, cell in enumerate(cells) if cell == "stages.0.conv"]
    assert len(start) == 3
    assert cells[start[0] : start[0] + 5] == ["stages.0.conv", "Conv", "9.60 M", "600 k", "4.10 k"]
    assert cells[start[0] + 5 : start[0] + 10] == ["scores", "MatMul", "12.0 k", "0", "–"]


def test_the_search_is_told_as_the_paper_does(text: str, variants) -> None:
    assert "search efficiency" not in Page(text).cells
    search = Search(4, ("64x", "1x"), 2_344, 6e4, 150_000, 600_000, 0.93, 0.0125)
    page = Page(render("digits", {}, {}, variants, ["1x", "64x"], DISCARDED, search))
    start = page.cells.index("search efficiency") + 1
    assert page.cells[start : start + 6] == [
        *("4", "2.34 k / 60.0 k / 150 k", "600 k", "93.0 % ± 1.25", "264x, 1x", "50.0 %")
    ]


def test_a_profile_of_the_first_version_has_dashes(variants) -> None:
    old = [
        (n, replace(p, alternating_latency=None, all_cores_latency=None, cores=None, layers=()))
        for n, p in variants
    ]
    page = Page(render("old", {}, {}, old, ["1x", "64x"], DISCARDED))
    assert "stages.0.conv" not in page.cells
    assert " ".join(page.cells).count("–") > 3


def test_one_that_is_discarded_for_none_says_why(variants) -> None:
    gone = [Discarded("8x", None, "it is not exact")]
    assert "discarded: it is not exact" in Page(render("r", {}, {}, variants, ["1x", "64x"], gone)).cells


def test_nothing_is_fetched(text: str) -> None:
    page = Page(text)
    assert "link" not in page.tags
    assert not {name for name, _ in page.attributes} & {"src", "href"}
    assert dict(page.attributes)["content"].startswith("default-src 'none'")
    assert any(len(script) > 1_000_000 for script in page.scripts), "plotly.js is not in the page"


def test_the_plot_shows_every_variant_against_latency_and_size(text: str, variants) -> None:
    traces = figure(Page(text))["data"]
    for axis, value in (
        ("x", lambda p: p.latency.p50_ms),
        ("x2", lambda p: p.structural_parameters),
    ):
        points = {
            (name, x, y)
            for trace in traces
            if trace.get("xaxis") == axis
            for name, x, y in zip(trace["text"], trace["x"], trace["y"], strict=True)
        }
        assert points == {(name, value(p), 100 * p.validation_accuracy) for name, p in variants}


def test_discarded_variants_are_grey(text: str) -> None:
    coloured = {(n, t["marker"]["color"] == KEPT) for t in figure(Page(text))["data"] for n in t["text"]}
    assert coloured == {("1x", True), ("64x", True), ("8x", False)}


def test_what_users_wrote_stays_text(text: str, variants) -> None:
    discarded = [Discarded("8x", HOSTILE, HOSTILE)]
    hostile = render(HOSTILE, {HOSTILE: HOSTILE}, {"commit": HOSTILE}, variants, ["1x", "64x"], discarded)
    page, tame = Page(hostile), Page(text)
    assert "img" not in page.tags
    assert page.tags.count("script") == tame.tags.count("script")
    assert page.cells.count(HOSTILE) == 3
    assert not any("<img" in str(hover) for t in figure(page)["data"] for hover in t["hovertext"])


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    st.recursive(st.text() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))
)
def test_script_json_is_the_value_and_cannot_end_the_script(value) -> None:
    text = script_json(value)
    assert json.loads(text) == value
    assert not set("<>&\u2028\u2029") & set(text)


def test_the_same_run_gives_the_same_page(text: str, variants) -> None:
    recipe = {"name": "digits", "training": {"epochs": 4}}
    again = render("digits-0a1b2c3d", recipe, {"torch": "2.15.0"}, variants, ["1x", "64x"], DISCARDED)
    assert again == text


def test_a_run_without_variants_has_a_page_without_a_plot() -> None:
    page = Page(render("empty", {}, {}, [], [], []))
    assert page.scripts == []
