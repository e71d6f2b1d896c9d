"""A real browser, without a window: one of this machine's, driven by playwright."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

NAMES = ("chromium-headless-shell", "chrome-headless-shell", "chromium", "chromium-browser", "google-chrome")  # fmt: skip
KEPT = ("chromium*/chrome-*/headless_shell", "chromium*/chrome-*/chrome", "chromium*/chrome-*/chrome-headless-shell")  # fmt: skip


def executable() -> str | None:
    """A Chromium on the PATH, or that playwright has installed."""
    found = [path for name in NAMES if (path := shutil.which(name))]
    cache = Path.home() / ".cache" / "ms-playwright"
    return next(iter([*found, *(str(path) for kind in KEPT for path in cache.glob(kind))]), None)


@contextmanager
def chromium() -> Iterator["Browser"]:
    """One, for as long as the context is open; the test is skipped where there is none."""
    driver = pytest.importorskip("playwright.sync_api")
    path = executable()
    if path is None:
        pytest.skip("no Chromium is installed here")
    with driver.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield Browser(browser)
        browser.close()


class Browser:
    """Opens pages, and knows what they complained of."""

    def __init__(self, browser):
        self._browser = browser

    @contextmanager
    def open(self, address: str, width: int = 1280, scheme: str = "light") -> Iterator:
        """A page that must have no complaint in its console, and load nothing but itself."""
        page = self._browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        complaints, loaded = [], []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: loaded.append(request.url))
        page.goto(address)
        page.wait_for_selector("h1")
        yield page
        assert not complaints, complaints
        assert {url for url in loaded if not url.startswith("data:")} <= {
            url for url in loaded if url.startswith(address.rpartition("/")[0])
        }
        page.close()
