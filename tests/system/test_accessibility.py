"""Every page of a whole daemon, at both sizes, can be read and used by whoever comes: axe-core's rules for WCAG AA."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from daemon.web.users import hash_password
from tests.accessibility import axe_findings
from tests.browser import GONE_BY_NOW, SIZES, window
from tests.parts import write_parts
from tests.system.daemon import Line, folder_station

PAGES = (
    "/",
    *(f"/station/{name}" for name in ("good", "scratched", "dark", "gone")),
    "/rejects",
    "/rejects?verdict=unknown",
    "/rejects?until=2020-01-01T00:00",
    "/teach",
    "/teach/disc",
    "/system",
)
"""All that an engineer is shown, who has all the buttons; a page that is added belongs here."""
VERDICTS = {"good": "pass", "scratched": "fail", "dark": "unknown"}


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory, axe: str) -> Iterator[Line]:
    """A station of each verdict, and one whose camera is not there; whoever looks must log in."""
    folder = tmp_path_factory.mktemp("pages")
    write_parts(folder / "good", range(1))
    write_parts(folder / "scratched", range(1), scratched=True)
    (folder / "dark").mkdir()
    (folder / "dark" / "0000.png").write_bytes(b"no picture")
    stations = "".join(folder_station(name, folder / name) for name in (*VERDICTS, "gone"))
    line = Line(folder, stations.replace("rate_hz = 20.0", "rate_hz = 1.0"))
    (folder / "users").write_text(f"emil:engineer:{hash_password('secret')}\n")
    (folder / "users").chmod(0o600)
    config = line.daemon.config
    config.write_text(config.read_text().replace("[http]", '[http]\nusers_file = "users"'))
    try:
        line.daemon.start()
        for name, verdict in VERDICTS.items():
            assert line.wait_results(name, 1)[0]["verdict"] == verdict
        yield line
    finally:
        line.close()


@pytest.mark.parametrize("size", SIZES)
def test_every_page_can_be_read_and_used_by_whoever_comes(line: Line, chromium: Browser, size: str) -> None:
    found: list[str] = []
    with window(chromium, line.daemon.home, SIZES[size], expected=[GONE_BY_NOW, "ERR_FAILED .*/live"]) as page:

        def look(name: str) -> None:
            found.extend(f"{name}: {finding}" for finding in axe_findings(page))
            # WCAG's rule 1.4.10, which axe-core leaves to others.
            wide = page.evaluate("document.documentElement.scrollWidth")
            if wide > SIZES[size].width:
                found.append(f"{name}: scrolls sideways, it is {wide} pixels wide")

        page.goto("/login")
        look("/login")
        page.get_by_label("Name").fill("emil")
        page.get_by_label("Password").fill("secret")
        page.get_by_role("button", name="Log in").click()
        expect(page).to_have_url("/")
        for path in PAGES:
            page.goto(path)
            expect(page.locator(".who")).to_contain_text("emil")
            look(path)
        page.route("**/live", lambda route: route.abort())
        page.goto("/")
        expect(page.locator("#lost")).to_contain_text("Connection lost")
        look("the wall without a connection")
    assert not found, "\n".join(found)
