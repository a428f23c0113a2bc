"""The installed Chromium, if there is one, and a page opened in it without network."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

BROWSERS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
BROWSER_FLAGS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
                 "--disable-component-update", "--disable-sync")  # fmt: skip
DRAWN = "document.documentElement.dataset.figures === 'done'"


def find_browser() -> str | None:
    """Return the path of an installed Chromium, or None."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


@contextlib.contextmanager
def window(browser: str, width: int = 1280, height: int = 900) -> Iterator:
    """A window of the browser with a profile of its own, which can open tabs."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as profile, sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=browser, headless=True, args=list(BROWSER_FLAGS),
            viewport={"width": width, "height": height},
        )  # fmt: skip
        with contextlib.closing(context):
            yield context


def open_page(context, page: Path, tell: Callable[[str], None] = lambda problem: None):
    """Open a page in a tab, wait until its figures are drawn, and return the tab; `tell` hears of what goes wrong.

    That is: requests to the network, which are refused, errors on the console, figures that are not drawn.
    """
    tab = context.new_page()

    def answer(route) -> None:
        if urlsplit(route.request.url).scheme in ("file", "data", "blob"):
            route.continue_()
        else:
            tell(f"asked the network for {route.request.url}")
            route.abort()

    tab.route("**/*", answer)
    tab.on("console", lambda message: tell(f"console: {message.text}") if message.type == "error" else None)
    tab.on("pageerror", lambda error: tell(f"script error: {error}"))
    tab.goto(page.resolve().as_uri())
    if tab.locator(".muse-figure").count():
        try:
            tab.wait_for_function(DRAWN, timeout=30_000)
        except Exception as error:  # playwright's own TimeoutError
            tell(f"figures were not drawn: {str(error).splitlines()[0]}")
    return tab
