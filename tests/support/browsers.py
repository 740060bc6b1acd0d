"""A real browser for tests of pages."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

# As Debian, Ubuntu and GitHub's runners name it; Playwright's own browser is not needed.
NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def chromium() -> Iterator[Any]:
    """Run the Chromium of the system, driven by Playwright; skip the tests if one is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, in [dev]")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("no browser, which is no Python package, is installed; apt install chromium")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
