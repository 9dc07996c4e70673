"""`python -m tests.page_pictures docs`: the operator page of a real daemon, with drawn parts, as pictures for the documents."""

import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.broker import wait_for
from tests.browser import GONE_BY_NOW, SIZES, chromium, window
from tests.parts import write_parts
from tests.system.daemon import Line, folder_station

RATE_HZ = 2.0


def take(folder: Path, docs: Path) -> None:
    """A picture of each page at each size. folder: for the daemon."""
    write_parts(folder / "left", range(5))
    write_parts(folder / "left", range(5, 6), scratched=True, start=5)
    write_parts(folder / "right", range(20, 30))
    line = Line(folder, folder_station("press-left", folder / "left") + folder_station("press-right", folder / "right"))
    config = line.daemon.config
    config.write_text(config.read_text().replace("rate_hz = 20.0", f"rate_hz = {RATE_HZ}"))
    try:
        line.daemon.start()
        line.wait_results("press-left", 30)
        with chromium() as browser:
            for size in SIZES.values():
                suffix = "-phone" if size.phone else ""
                with window(browser, line.daemon.home, size, expected=[GONE_BY_NOW]) as page:
                    _wall(page)
                    page.screenshot(path=docs / f"page-wall{suffix}.png")
                    _rejects(page)
                    page.screenshot(path=docs / f"page-rejects{suffix}.png")
    finally:
        line.close()


def _wall(page: Page) -> None:
    """At a moment at which the first station has just failed a part, which it shows."""
    page.goto("/")
    _expect_pictures(page, ".station img")
    left = page.locator("[data-station=press-left]")

    def shown() -> tuple[str | None, str]:
        return left.get_attribute("data-verdict"), left.locator("figcaption").inner_text()[:15]

    for verdict, caption in (("pass", "picture: ✔ PASS"), ("fail", "picture: ✘ FAIL")):  # half a second long: look often
        wait_for(lambda: shown() == (verdict, caption), f"a {verdict}")  # noqa: B023


def _rejects(page: Page) -> None:
    page.goto("/rejects")
    page.get_by_label("heat map").check()
    _expect_pictures(page, ".station img:not(.heat)")
    _expect_pictures(page, ".station .heat")


def _expect_pictures(page: Page, selector: str) -> None:
    """The first two of them to be there."""
    for one in page.locator(selector).all()[:2]:
        expect(one).not_to_have_js_property("naturalWidth", 0)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        take(Path(folder), Path(sys.argv[1]))
