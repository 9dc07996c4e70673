"""`make node-red-picture`: docs/node-red.png, the dashboard of the shipped flow over a real daemon with drawn parts."""

import tempfile
from pathlib import Path

from tests.broker import wait_for
from tests.browser import Browser
from tests.node_red import NodeRed
from tests.parts import write_parts
from tests.system.daemon import Line, folder_station
from tests.system.test_triggers import TRIGGERED

TARGET = Path(__file__).parent.parent / "docs" / "node-red.png"
PARTS = 42
SCRATCHED = (9, 23, 24, 42)
NO_PICTURE = 33


def main() -> None:
    """Two stations, so many parts, and what somebody sees then."""
    with tempfile.TemporaryDirectory(prefix="node-red-picture-") as name:
        folder = Path(name)
        for number in range(1, PARTS + 1):
            write_parts(folder / "parts", range(number, number + 1), scratched=number in SCRATCHED, start=number)
        (folder / "parts" / f"{NO_PICTURE:04d}.png").write_bytes(b"no picture")
        write_parts(folder / "others", range(60, 64))
        others = folder_station("press-right", folder / "others").replace("rate_hz = 20.0", "rate_hz = 1.0")
        line = Line(folder, TRIGGERED.format(extra="").replace('"press"', '"press-left"') + others)
        node_red = NodeRed(folder, line.broker.port, "plant")
        browser = Browser(folder, width=1280, height=900)
        try:
            _draw(line, node_red, browser)
        finally:
            browser.close()
            node_red.close()
            line.close()


def _draw(line: Line, node_red: NodeRed, browser: Browser) -> None:
    line.daemon.start()
    node_red.start()
    browser.open(f"{node_red.page}?station=press-left")
    wait_for(lambda: line.daemon.get("/readyz")[0] == 200, "readiness", 60)
    wait_for(lambda: bool(browser.run("document.querySelector('[data-show=state]') !== null")), "the station")
    for number in range(1, PARTS + 1):
        browser.click(".ac-commands input")
        browser.type(f"A-{400 + number}")
        browser.run("document.querySelector('.ac-commands .v-btn').click()")
        line.wait_results("press-left", number)
    newest = f"document.querySelector('[data-show=part]').textContent.includes('A-{400 + PARTS}')"
    wait_for(lambda: bool(browser.run(newest)), "the newest part")
    browser.run("document.activeElement.blur()")
    browser.run("new Promise((done) => setTimeout(done, 1500))")  # Vuetify's transitions
    TARGET.write_bytes(browser.picture())
    print(f"picture: {TARGET}, {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
