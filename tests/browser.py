"""A headless Chromium for tests, driven by Playwright: real input, real layout, no network."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The browser $FACEREC_BROWSER, else the first installed one; skips where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    names = [os.environ.get("FACEREC_BROWSER", ""), *NAMES]
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium is installed (apt-get install chromium, or set FACEREC_BROWSER)")
    with playwright.sync_playwright() as driver:
        yield driver.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])


@contextmanager
def opened(browser: Any, path: Path, width: int = 1280, **options: Any) -> Iterator[tuple[Any, list[str]]]:
    """A page, and what goes wrong on it: console errors and warnings, exceptions, requests that leave it.

    Below 600 pixels it is a phone.
    """
    phone = width < 600
    context = browser.new_context(
        viewport={"width": width, "height": 900}, offline=True, is_mobile=phone, has_touch=phone, **options
    )
    complaints: list[str] = []
    page = context.new_page()
    page.on("console", lambda said: said.type in ("error", "warning") and complaints.append(said.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "request",
        lambda asked: asked.url.startswith(("data:", "file:")) or complaints.append(f"asked for {asked.url}"),
    )
    page.goto(path.as_uri())
    yield page, complaints
    context.close()
