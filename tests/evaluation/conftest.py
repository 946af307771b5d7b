"""A real browser for the page."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session")
def start_chromium() -> Callable[[], Any]:
    """Starts headless Chromium with a clean profile; skips where it is not installed."""
    selenium = pytest.importorskip("selenium.webdriver", reason="needs selenium (the `dev` extra)")
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("needs a browser: apt-get install chromium chromium-driver")

    def start() -> Any:
        options = selenium.ChromeOptions()
        options.binary_location = browser
        # Containers have neither the kernel's sandbox nor a large /dev/shm.
        for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "disable-extensions"):
            options.add_argument(f"--{argument}")
        options.add_argument("--disable-background-networking")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        return selenium.Chrome(options=options, service=selenium.ChromeService(driver))

    return start


@pytest.fixture(scope="module")
def chromium(start_chromium: Callable[[], Any]) -> Iterator[Any]:
    """One browser for the tests of a module."""
    browser = start_chromium()
    try:
        yield browser
    finally:
        browser.quit()
