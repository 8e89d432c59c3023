"""A real headless Chromium with the network off."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.reporting.conftest import Made, hostile, made  # noqa: F401 - fixtures

ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A running browser; skips with the reason where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@dataclass
class Seen:
    """A page in a tab, with everything it complained about or asked for."""

    tab: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def draw_all(self) -> None:
        """Open every part and draw every chart, as printing does."""
        self.tab.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        self.until("[...document.querySelectorAll('figure.chart')].every((f) => f.dataset.drawn)")

    def until(self, expression: str, seconds: float = 20) -> None:
        """Wait for a condition; the driver's own way needs eval, which the page forbids."""
        end = time.monotonic() + seconds
        while not self.tab.evaluate(expression):
            assert time.monotonic() < end, f"never became true: {expression}"
            self.tab.wait_for_timeout(50)

    def drawn(self, kind: str) -> Any:
        """Scroll to the first chart of a kind and wait until it is drawn; return its figure."""
        name = f"figure[data-kind={kind}]"
        figure = self.tab.locator(name).first
        figure.scroll_into_view_if_needed()
        self.until(f"document.querySelector('{name}').dataset.drawn === 'yes'")
        return figure


@pytest.fixture
def look(chromium: Any) -> Iterator[Any]:
    """Return a function that opens a file: ``look(path, width=…, scheme=…)``."""
    contexts = []

    def open_page(path: Path, width: int = 1280, scheme: str = "light") -> Seen:
        context = chromium.new_context(
            offline=True, viewport={"width": width, "height": 900}, color_scheme=scheme
        )
        contexts.append(context)
        seen = Seen(context.new_page())
        seen.tab.on("console", lambda message: seen.complaints.append(message.text))
        seen.tab.on("pageerror", lambda error: seen.complaints.append(str(error)))
        seen.tab.on("dialog", lambda dialog: (seen.complaints.append("a dialog"), dialog.dismiss()))
        seen.tab.on("request", lambda request: seen.requests.append(request.url))
        seen.tab.goto(path.as_uri())
        return seen

    yield open_page
    for context in contexts:
        context.close()


@contextmanager
def no_complaints(seen: Seen) -> Iterator[None]:
    """Fail if the page writes to the console, throws, or asks for anything but itself."""
    yield
    assert seen.complaints == []
    asked = [url for url in seen.requests if not url.startswith("data:")]
    assert len(asked) == 1, asked
