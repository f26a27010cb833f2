"""Debian's Chromium, or the one that `CHROMIUM` names, driven by Playwright."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Response, sync_playwright

OPTIONS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
WIDTHS = (1280, 390)


def chromium() -> str:
    """The path of Chromium. Without one the test is skipped, but not in continuous integration."""
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None and "CI" not in os.environ:
        pytest.skip("there is no Chromium here; on Debian: apt-get install chromium")
    assert path is not None, "there is no Chromium here; on Debian: apt-get install chromium"
    return path


@contextmanager
def browsing() -> Iterator[Browser]:
    """A browser that asks no other machine for anything."""
    path = chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(OPTIONS))
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Visit:
    """What a browser did on a page."""

    page: Page
    response: Response
    requests: list[str] = field(default_factory=list)  # the addresses that it asked for
    complaints: list[str] = field(default_factory=list)  # of its console, and dialogs

    def evaluate(self, code: str) -> Any:
        return self.page.evaluate(code)


@contextmanager
def visiting(browser: Browser, address: str, width: int = 1280, **context: Any) -> Iterator[Visit]:
    """Open a page in a window of its own."""
    window = browser.new_context(viewport={"width": width, "height": 800}, **context)
    try:
        page, requests, complaints = window.new_page(), [], []
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))

        def dismiss(dialog: Any) -> None:
            complaints.append(dialog.message)
            dialog.dismiss()

        page.on("dialog", dismiss)
        response = page.goto(address)
        assert response is not None
        yield Visit(page, response, requests, complaints)
    finally:
        window.close()
