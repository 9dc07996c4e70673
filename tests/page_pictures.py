"""`python -m tests.page_pictures docs`: the operator page of a real daemon, with drawn parts, as pictures for the documents."""

import sys
import tempfile
from pathlib import Path

from tests.broker import wait_for
from tests.browser import Browser
from tests.parts import write_parts
from tests.system.daemon import Line, folder_station

RATE_HZ = 2.0
SHOWN = {"page-wall": "/", "page-rejects": "/rejects"}
SIZES = {"": (1280, 800), "-phone": (390, 844)}


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
        for size, (width, height) in SIZES.items():
            (folder / f"browser{size}").mkdir()
            browser = Browser(folder / f"browser{size}", width=width, height=height)
            for name, path in SHOWN.items():
                browser.open(f"http://127.0.0.1:{line.daemon.http_port}{path}")
                images = "[...document.images].slice(0, 2).every((one) => one.naturalWidth)"
                wait_for(lambda: bool(browser.run(f"document.images.length && {images}")), "the pictures")  # noqa: B023
                if path == "/rejects":
                    browser.click("#heat")
                    wait_for(lambda: bool(browser.run("document.querySelector('.heat').naturalWidth")), "the heat map")  # noqa: B023
                if path == "/":
                    left = "document.querySelector('[data-station=press-left]').dataset.verdict"
                    wait_for(lambda: browser.run(left) == "pass", "a pass")  # noqa: B023
                    wait_for(lambda: browser.run(left) == "fail", "a fail")  # noqa: B023
                    browser.run("new Promise((done) => setTimeout(done, 200))")
                (docs / f"{name}{size}.png").write_bytes(browser.picture())
            browser.close()
    finally:
        line.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        take(Path(folder), Path(sys.argv[1]))
