"""`make node-red-picture`: docs/node-red.png, the dashboard of the shipped flow over a real daemon with drawn parts."""

import tempfile
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.broker import wait_for
from tests.browser import Size, chromium, window
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
        try:
            line.daemon.start()
            node_red.start()
            with chromium() as browser, window(browser, node_red.home, Size(1280, 900)) as page:
                _draw(line, node_red, page)
        finally:
            node_red.close()
            line.close()


def _draw(line: Line, node_red: NodeRed, page: Page) -> None:
    wait_for(lambda: line.daemon.get("/readyz")[0] == 200, "readiness", 60)
    page.goto(f"{node_red.path}?station=press-left")
    expect(page.locator("[data-show=state]")).to_be_visible()
    commands = page.locator(".ac-commands")
    for number in range(1, PARTS + 1):
        commands.get_by_role("textbox").first.fill(f"A-{400 + number}")
        commands.get_by_role("button", name="Trigger").click()
        line.wait_results("press-left", number)
    expect(page.locator("[data-show=part]")).to_contain_text(f"A-{400 + PARTS}")
    page.evaluate("document.activeElement.blur()")
    page.wait_for_timeout(1500)  # Vuetify's transitions
    page.screenshot(path=TARGET)
    print(f"picture: {TARGET}, {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
