"""Tabs in a browser, and what the page in them asked for."""

from __future__ import annotations

from typing import Any

from playwright.sync_api import Browser, Page

CHROMIUM = "/usr/bin/chromium"  # Debian's


class Tabs:
    """Tabs in a browser. Of each it is known what it asked for, and what failed in it."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._contexts: list[Any] = []
        self.elsewhere: list[str] = []
        self.errors: list[str] = []

    def open(self, url: str, locale: str = "en-US", **context: Any) -> Page:
        """A tab of a person who was never here before."""
        opened = self._browser.new_context(
            locale=locale, viewport={"width": 1280, "height": 900}, **context
        )
        self._contexts.append(opened)
        page = opened.new_page()
        page.set_default_timeout(30_000)
        page.on("request", lambda request: self._requested(request.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto(url)
        return page

    def close(self) -> None:
        for context in self._contexts:
            context.close()

    def _requested(self, url: str) -> None:
        if not url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            self.elsewhere.append(url)
