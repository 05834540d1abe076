"""The live page in Chromium: what it shows is what the service says, and it needs nothing else."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from jobs.protocols import encode
from serve_app.live import _FOLDER
from serve_app.service import EdgeService
from serve_app.settings import Settings
from shifter.portfolio import Portfolio
from shifter.switching.switcher import Decision

from .browser import Look, chromium, executable
from .in_thread import serving

pytestmark = pytest.mark.skipif(executable() is None, reason="no Chromium here (apt-get install chromium)")

PIXELS = np.random.default_rng(0).integers(0, 17, (40, 1, 8, 8))
PATIENCE_MS = 30_000
expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def make(portfolio_bytes: bytes) -> Callable[..., EdgeService]:
    def service(**settings: Any) -> EdgeService:
        given = {"portfolio": "x.zip", "policy": "fixed", "variant": "4x", **settings}
        return EdgeService(Portfolio.open(portfolio_bytes), Settings.model_validate(given))

    return service


@contextmanager
def looking(browser: Browser, url: str, *, expected: str = "^$", **context: Any) -> Iterator[Page]:
    """The page, which may complain of nothing but what is ``expected``, and may ask nobody else."""
    opened = browser.new_context(viewport={"width": 1280, "height": 900}, **context)
    look = Look(opened, url)
    try:
        expect(look.page.locator("#state")).to_have_text("live")
        yield look.page
        assert look.strayed == []
        assert [said for said in look.complaints if not re.search(expected, said)] == []
    finally:
        opened.close()


_ANSWERED_BY_4X = """
[...document.querySelectorAll("#seconds tbody tr")]
    .map((row) => [...row.cells].map((cell) => cell.innerText))
    .filter((cells) => cells[7] === "4x")
    .reduce((sum, cells) => sum + Number(cells[2]), 0)
"""


def png(seed: int = 1) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8), np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def ask(url: str, times: int) -> None:
    for i in range(times):
        body, headers = encode(PIXELS[i % 40 : i % 40 + 1]), {"content-type": "application/json"}
        httpx.post(f"{url}predict", content=body, headers=headers, timeout=30).raise_for_status()


def force(service: EdgeService, name: str, reason: str) -> None:
    with service._host._switching:
        service._host._switcher.current = name
        service._host._decision = service._host._switch(Decision(name, reason, 0.0))


def quantity(text: str) -> float:
    """The first number in a text."""
    found = re.search(r"[\d,.]*\d", text)
    assert found, text
    return float(found[0].replace(",", ""))


def test_what_it_shows_is_what_the_service_says(browser: Browser, make: Callable[..., EdgeService]) -> None:
    service = make(policy="slo", variant=None, max_queue=1, decide_every_s=0.05, memory_bytes="64MiB")
    with serving(service) as url, looking(browser, url) as page:
        ask(url, 30)
        with service._host.request():
            refused = httpx.post(f"{url}predict", content=encode(PIXELS[:1]), headers={"content-type": "x"})
            assert refused.status_code == 503
            expect(page.locator("#queue-now")).to_have_text("1")
            expect(page.locator("#queue-more")).to_have_text("of 1 at most")
        expect(page.locator("#queue-now")).to_have_text("0")
        expect(page.locator("#total")).to_have_text("30 requests answered, 1 refused since the start.")

        state = httpx.get(f"{url}status").json()
        assert page.title() == "tiny – shifter"
        assert page.locator("h1").inner_text() == state["model"]
        assert page.locator("#active-now").inner_text() == state["active"]
        assert quantity(page.locator("#latency-now").inner_text()) == pytest.approx(
            state["latency_ms"]["p99"], rel=0.01
        )
        assert quantity(page.locator("#latency-more").inner_text().removeprefix("p50")) == pytest.approx(
            state["latency_ms"]["p50"], rel=0.01
        )
        assert "objective 100 ms" in page.locator("#latency-more").inner_text()
        kib = state["memory"]["taken_bytes"] / 1024
        assert quantity(page.locator("#memory-now").inner_text()) == pytest.approx(kib, rel=0.01)
        assert page.locator("#memory-more").inner_text() == "of 64.0 MiB budget"
        words = page.locator("#words").inner_text()
        for said in ("ONNX Runtime on the CPU, one thread", "(slo)", f"{state['active']} serves: "):
            assert said in words

        page.get_by_text("The last minute as a table").click()
        rows = [row.split("\t") for row in page.locator("#seconds tbody tr").all_inner_texts()]
        assert [sum(int(row[i]) for row in rows) for i in (2, 3)] == [30, 1]
        # The one that was held and never answered is known only if it was seen inside.
        assert sum(int(row[1]) for row in rows) in (31, 32)
        assert {row[7] for row in rows} <= {v["name"] for v in state["variants"]}

        page.get_by_text("The variants as a table").click()
        rows = [row.split("\t") for row in page.locator("#variants tbody tr").all_inner_texts()]
        assert [row[0] for row in rows] == [v["name"] for v in state["variants"]]
        assert [quantity(row[1]) for row in rows] == [90, 95, 97]
        assert [row[0] for row in rows if row[5] == "serves"] == [state["active"]]
        assert page.locator("#pareto circle").count() == 3
        assert page.locator("#pareto circle.active title").text_content().startswith(state["active"])  # type: ignore[union-attr]


def test_each_switch_is_listed_with_its_reason_the_last_one_first(
    browser: Browser, make: Callable[..., EdgeService]
) -> None:
    service = make(policy="slo", variant=None, decide_every_s=10)
    first = service._host.active
    with serving(service) as url, looking(browser, url) as page:
        expect(page.locator("#switches")).to_have_text("none yet")
        names = [name for name in ("1x", "16x", "4x") if name != first] + [first]
        for name in names:
            force(service, name, f"the test wants <b>{name}</b>")
        expect(page.locator("#switches li")).to_have_count(3)
        listed = page.locator("#switches li").all_inner_texts()
        switches = httpx.get(f"{url}status").json()["switches"]
        assert [s["to"] for s in switches] == names
        for text, switch in zip(listed, reversed(switches), strict=True):
            at = datetime.fromisoformat(switch["at"]).astimezone()
            assert at.strftime("%H:%M:%S") in text
            assert f"{switch['from']} → {switch['to']}" in text
            assert switch["reason"] in text
        expect(page.locator("#active-now")).to_have_text(first)


def test_the_band_tells_when_which_variant_served(browser: Browser, make: Callable[..., EdgeService]) -> None:
    # The trend climbs as long as it keeps up.
    with (
        serving(make(policy="trend", variant=None, decide_every_s=1.5)) as url,
        looking(browser, url) as page,
    ):
        chart = page.get_by_role("img", name=re.compile("^Variant that served"))
        expect(chart).to_have_attribute("aria-label", re.compile("4x until .*, 1x until"))
        assert chart.locator("rect.held").count() == 2
        assert chart.locator("text").all_text_contents() == ["1x", "4x", "16x"]


@pytest.mark.parametrize("way", ["choose", "drop", "paste"])
def test_an_image_gets_the_answer_that_predict_gives(
    browser: Browser, make: Callable[..., EdgeService], way: str
) -> None:
    with serving(make()) as url, looking(browser, url) as page:
        if way == "choose":
            file: Any = {"name": "digit.png", "mimeType": "image/png", "buffer": png()}
            page.set_input_files("#file", file)
        else:
            transfer = page.evaluate_handle(
                """bytes => {
                  const transfer = new DataTransfer();
                  transfer.items.add(new File([new Uint8Array(bytes)], "digit.png", { type: "image/png" }));
                  return transfer;
                }""",
                list(png()),
            )
            if way == "drop":
                page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})
            else:
                page.evaluate(
                    "data => dispatchEvent(new ClipboardEvent('paste', { clipboardData: data }))", transfer
                )
        expect(page.locator("#class")).to_be_visible()
        answer = httpx.post(f"{url}predict", content=png(), headers={"content-type": "image/png"}).json()
        (want,) = answer["predictions"]
        assert page.locator("#class").inner_text() == want["class"]
        assert f"by variant {answer['variant']}, " in page.locator("#answer").inner_text()
        rows = [row.split("\t") for row in page.locator("#answer tr").all_inner_texts()]
        powers = np.exp(np.array(want["logits"]) - max(want["logits"]))
        shares = dict(zip(("zero", "one", "two"), 100 * powers / powers.sum(), strict=True))
        assert [row[0] for row in rows] == sorted(shares, key=lambda name: -shares[name])
        for row in rows:
            assert quantity(row[-1]) == pytest.approx(shares[row[0]], abs=0.06)
        expect(page.get_by_alt_text("the image that was asked about, digit.png")).to_be_visible()


def test_what_the_service_refuses_is_told_as_it_says(
    browser: Browser, make: Callable[..., EdgeService]
) -> None:
    with serving(make()) as url, looking(browser, url, expected="status of 4") as page:
        for kind, says in (
            ("image/png", "the body is not a PNG or JPEG image"),
            ("text/plain", "send one of"),
        ):
            page.set_input_files("#file", {"name": "x", "mimeType": kind, "buffer": b"no image"})
            expect(page.locator("#answer .error")).to_contain_text(says)
        page.set_input_files("#file", {"name": "x.png", "mimeType": "image/png", "buffer": png()})
        expect(page.locator("#class")).to_be_visible()


def test_it_says_that_nobody_answers_and_goes_on_by_itself(
    browser: Browser, make: Callable[..., EdgeService]
) -> None:
    unreachable = "ERR_CONNECTION_REFUSED|ERR_CONNECTION_RESET|ERR_EMPTY_RESPONSE"
    with ExitStack() as first, ExitStack() as opened:
        url = first.enter_context(serving(make()))
        page = opened.enter_context(looking(browser, url, expected=unreachable))
        expect(page.locator("#active-now")).to_have_text("4x")
        ask(url, 5)
        expect(page.locator("#total")).to_contain_text("5 requests answered")
        page.get_by_text("The last minute as a table").click()
        end = time.monotonic() + 30
        while page.evaluate(_ANSWERED_BY_4X) != 5:  # Playwright's own waiting is against the page's CSP
            assert time.monotonic() < end, "the page does not tell of the requests"
            page.wait_for_timeout(50)
        first.close()
        state = page.locator("#state")
        expect(state).to_have_text(re.compile(r"^no answer since \d\d:\d\d:\d\d; asking again …$"))
        assert page.locator("#active-now").inner_text() == "4x"
        with serving(make(variant="1x"), port=urlsplit(url).port or 0):
            expect(state).to_have_text("live")
            expect(page.locator("#active-now")).to_have_text("1x")
            expect(page.locator("#total")).to_contain_text("0 requests answered")
            # What was seen before is still known.
            assert page.evaluate(_ANSWERED_BY_4X) == 5
            opened.close()


@pytest.mark.parametrize("slash", ["", "/"])
def test_it_works_below_a_route_prefix(
    browser: Browser, make: Callable[..., EdgeService], slash: str
) -> None:
    with serving(make(), prefix="/site-a") as url, looking(browser, url.rstrip("/") + slash) as page:
        assert urlsplit(page.url).path == "/site-a/"
        page.set_input_files("#file", {"name": "x.png", "mimeType": "image/png", "buffer": png()})
        expect(page.locator("#class")).to_be_visible()
        page.get_by_role("link", name="docs").click()
        expect(page.locator("h1")).to_contain_text("shifter")


def test_light_and_dark_differ(browser: Browser, make: Callable[..., EdgeService]) -> None:
    seen = []
    with serving(make()) as url:
        for scheme in ("light", "dark"):
            with looking(browser, url, color_scheme=scheme) as page:
                expect(page.locator(".held")).to_have_count(1)
                seen.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
                seen.append(page.evaluate("getComputedStyle(document.querySelector('h1')).color"))
                seen.append(page.evaluate("getComputedStyle(document.querySelector('.held')).fill"))
    assert seen == [
        *("rgb(255, 255, 255)", "rgb(27, 27, 27)", "rgb(47, 125, 209)"),
        *("rgb(23, 24, 27)", "rgb(232, 232, 232)", "rgb(106, 174, 245)"),
    ]


def test_text_stands_out_and_so_do_lines() -> None:
    """WCAG 2.1: 4.5 for text, 3 for what is drawn; in both schemes."""
    css = (_FOLDER / "live.css").read_text()
    light, dark = (
        dict(re.findall(r"--(\w+): (#\w{3,6});", block))
        for block in re.findall(r":root \{(.*?)\}", css, re.S)
    )
    assert light.keys() == dark.keys()
    for colours in (light, dark):
        for ground in ("page", "band"):
            for ink in ("ink", "soft", "link", "bad"):
                assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
            for drawn in ("main", "faint", "good"):
                assert contrast(colours[drawn], colours[ground]) >= 3, (drawn, ground)


def contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
        parts = (int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4))
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def test_on_a_phone_nothing_is_wider_than_the_screen(
    browser: Browser, make: Callable[..., EdgeService]
) -> None:
    service = make(policy="slo", variant=None, decide_every_s=10)
    with serving(service) as url, looking(browser, url) as page:
        page.set_viewport_size({"width": 360, "height": 740})
        other = next(name for name in ("1x", "16x") if name != service._host.active)
        force(service, other, "a_reason_without_any_place_to_break_it_" * 4)
        expect(page.locator("#switches li b")).to_have_count(1)
        page.set_input_files("#file", {"name": "x.png", "mimeType": "image/png", "buffer": png()})
        expect(page.locator("#class")).to_be_visible()
        for summary in page.locator("summary").all():
            summary.click()
        expect(page.locator("#seconds tbody tr").first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert all(
            box["x"] >= 0 and box["x"] + box["width"] <= 360
            for each in page.locator("section, dl > div, figure, .choice, #drop").all()
            if (box := each.bounding_box())
        )


def test_it_is_usable_by_keyboard_and_told_to_those_who_do_not_see_it(
    browser: Browser, make: Callable[..., EdgeService]
) -> None:
    with serving(make()) as url, looking(browser, url, reduced_motion="reduce") as page:
        ask(url, 3)
        for name in (
            "Requests per second: between",
            "Latency: between",
            "Requests inside",
            "Accuracy against",
        ):
            expect(page.get_by_role("img", name=re.compile(f"^{name}"))).to_be_visible()
        moment = page.get_by_role("slider", name=re.compile("^Moment"))
        expect(moment).to_have_attribute("aria-valuetext", re.compile(r"arrived.*p99.*queue \d+, 4x$"))
        moment.focus()
        before = moment.get_attribute("aria-valuenow")
        page.keyboard.press("ArrowLeft")
        expect(page.locator("#load line.cursor")).to_have_count(3 + 1)
        assert int(moment.get_attribute("aria-valuenow") or 0) < int(before or 0) + 2
        page.keyboard.press("Escape")
        expect(page.locator("#load line.cursor")).to_have_count(0)

        page.get_by_label("5 min", exact=True).focus()
        page.keyboard.press("ArrowRight")
        assert page.get_by_label("15 min").is_checked()
        page.get_by_label("latency", exact=True).focus()
        page.keyboard.press("ArrowRight")
        expect(page.get_by_role("img", name="Accuracy against structural parameters")).to_be_visible()

        reached = set()
        page.locator("body").focus()
        for _ in range(20):
            page.keyboard.press("Tab")
            reached.add(page.evaluate("document.activeElement.id || document.activeElement.name"))
        assert {"span", "moment", "file", "against", "switches"} <= reached
        assert page.evaluate("getComputedStyle(document.querySelector('#drop')).transitionProperty") == "none"
        unnamed = "[...document.querySelectorAll('svg:not([aria-label]):not([aria-hidden])')].length"
        assert page.evaluate(unnamed) == 0


def test_nobody_is_asked_while_nobody_looks(browser: Browser, make: Callable[..., EdgeService]) -> None:
    with serving(make()) as url, looking(browser, url) as page:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        hide = "get => void Object.defineProperty(document, 'hidden', { get: () => get, configurable: true })"
        page.evaluate(hide, True)
        page.wait_for_timeout(1500)
        asked.clear()
        page.wait_for_timeout(2500)
        assert asked == []
        page.evaluate(hide, False)
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        with page.expect_request("**/live.json?since=*"):
            pass


def test_a_page_that_strays_is_seen(browser: Browser, make: Callable[..., EdgeService]) -> None:
    """What the other tests rely on: the policy holds, and the watch sees."""
    with serving(make()) as url:
        context = browser.new_context()
        look = Look(context, url)
        stray = "() => fetch('http://elsewhere.invalid/').catch(() => null)"
        look.page.evaluate(stray)
        assert look.strayed == []
        assert any("Content Security Policy" in said for said in look.complaints)
        look.page.goto(f"{url}docs")  # which has no policy
        look.page.evaluate(stray)
        assert look.strayed == ["http://elsewhere.invalid/"]
        context.close()
