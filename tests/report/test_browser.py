"""``report.html`` in a real browser: no errors, no requests, nothing that runs, and no wider than a telephone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from optimizer.report import html, plots
from tests.report import pages
from tests.support import browser

pytestmark = pytest.mark.skipif(browser.found() is None, reason="no chromium is installed: apt-get install chromium")


@pytest.fixture(scope="module")
def chromium() -> Iterator[browser.Browser]:
    program = browser.found()
    assert program is not None
    opened = browser.Browser(program)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(html.page(pages.full(pages.HOSTILE + "/layer" * 60)), "utf-8")
    return path


OUTSIDE = """() => [...document.querySelectorAll('body *')]
    .filter(e => !e.closest('.scroll, svg') && e.getBoundingClientRect().right > innerWidth + 1)
    .map(e => e.outerHTML.slice(0, 80))"""
"""Elements that stick out on the right, besides those that scroll by themselves."""

TROUBLE = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")


@pytest.mark.parametrize("width", [390, 1100])
def test_it_opens_without_errors_or_requests_and_fits(chromium: browser.Browser, page: Path, width: int) -> None:
    chromium.open(page, width)
    chromium.value("document.querySelectorAll('details').forEach(d => { d.open = true })")
    assert chromium.value("document.documentElement.scrollWidth") <= width
    assert chromium.value(f"({OUTSIDE})()") == []
    assert chromium.told(*TROUBLE) == []
    requests = [r["request"]["url"] for r in chromium.told("Network.requestWillBeSent")]
    assert requests == [page.as_uri()]
    assert "layer: optimized" in chromium.value("document.title")
    assert chromium.value("document.querySelectorAll('script, img').length") == 0


def test_the_policy_lets_nothing_in(chromium: browser.Browser, page: Path, tmp_path: Path) -> None:
    """Were a name to become markup one day, the browser would still not run it."""
    text = page.read_text("utf-8").replace(
        "</main>", "</main><script>document.title='owned'</script><img src='https://example.invalid/x.png'>"
    )
    leaky = tmp_path / "leaky.html"
    leaky.write_text(text, "utf-8")
    chromium.open(leaky, 390)
    assert chromium.value("document.title") != "owned"
    assert len(chromium.told("Log.entryAdded")) == 2, "the browser tells of both"


def test_it_has_a_dark_face_and_prints(chromium: browser.Browser, page: Path) -> None:
    chromium.open(page, 1100)
    grounds = []
    for scheme in ("light", "dark"):
        chromium.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        grounds.append(chromium.value("getComputedStyle(document.body).backgroundColor"))
    assert grounds[0] != grounds[1]
    drawn = chromium.value(
        "[...document.querySelectorAll('figure svg [fill]')].map(p => getComputedStyle(p).fill).join()"
    )
    assert "rgb(240, 154, 86)" in drawn or not plots.installed(), "plots take the colours of the page"
    chromium.call("Emulation.setEmulatedMedia", media="print", features=[])
    assert chromium.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert chromium.value("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert len(chromium.call("Page.printToPDF")["data"]) > 10_000
    chromium.call("Emulation.setEmulatedMedia", media="", features=[])
