"""Chromium without a window, which reaches one origin and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from playwright.sync_api import Browser, BrowserContext, Page, Route, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")


def executable() -> str | None:
    """Where a Chromium is on this machine; None where there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


@contextmanager
def chromium() -> Iterator[Browser]:
    path = executable()
    assert path, f"no Chromium here: install one of {', '.join(NAMES)}"
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path)
        try:
            yield browser
        finally:
            browser.close()


class Look:
    """A page that was opened on ``url``, and what it did.

    Attributes:
        strayed: addresses outside the origin that it asked for, in vain. complaints: what its console
            said that is a warning or an error, and errors that nothing caught.
    """

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.origin = urlsplit(url)[:2]
        self.strayed: list[str] = []
        self.complaints: list[str] = []
        context.route("**/*", self._inside)
        self.page: Page = context.new_page()
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on(
            "console",
            lambda said: self.complaints.append(said.text) if said.type in ("warning", "error") else None,
        )
        self.page.goto(url)

    def _inside(self, route: Route) -> None:
        if urlsplit(route.request.url)[:2] == self.origin:
            route.continue_()
        else:
            self.strayed.append(route.request.url)
            route.abort()
