"""The operator page of a whole daemon, in a real browser."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Browser, Error, Page, expect

from tests.broker import wait_for
from tests.browser import GONE_BY_NOW, PHONE, window
from tests.parts import SIZE, write_parts
from tests.system.daemon import Line, folder_station

ROWS = "() => typeof tiles === 'undefined' ? [] : (tiles.get('press')?.rows ?? []).map((row) => [row.result_id, row.verdict])"
"""[result_id, verdict] of each."""


def rows(page: Page) -> list[list[str]]:
    """Of the station's trend; none while the page is being loaded anew."""
    try:
        found: list[list[str]] = page.evaluate(ROWS)
    except Error as error:
        if "Execution context was destroyed" not in str(error):
            raise
        return []
    return found


def expect_picture(page: Page, selector: str) -> None:
    """The first such image to be there, with the whole of a drawn part."""
    expect(page.locator(selector).first).to_have_js_property("naturalWidth", SIZE)


def test_a_part_fails_on_the_wall_and_a_lost_daemon_is_told_until_it_is_back(
    tmp_path: Path, lines: list[Line], chromium: Browser
) -> None:
    write_parts(tmp_path / "parts", range(4))
    write_parts(tmp_path / "parts", range(2), scratched=True, start=4)
    line = Line(tmp_path, folder_station("press", tmp_path / "parts"))
    lines.append(line)
    config = line.daemon.config
    config.write_text(config.read_text().replace("rate_hz = 20.0", "rate_hz = 2.0"))
    line.daemon.start()
    line.wait_results("press", 1)
    gone = r"net::ERR_(CONNECTION_REFUSED|INCOMPLETE_CHUNKED_ENCODING|CONNECTION_RESET|EMPTY_RESPONSE)"
    with window(chromium, line.daemon.home, PHONE, expected=[GONE_BY_NOW, gone]) as page:
        page.goto("/")
        tile = page.locator(".station")
        for verdict, word in (("fail", "✘ FAIL"), ("pass", "✔ PASS")):  # each is there for a second or two, so look often
            wait_for(lambda: tile.get_attribute("data-verdict") == verdict, f"a {verdict}")  # noqa: B023
            assert tile.locator(".verdict").text_content() == word
        expect_picture(page, ".station img")
        seen = rows(page)
        assert {verdict for _, verdict in seen} == {"pass", "fail"}
        wait_for(lambda: {own["result_id"] for own in line.results("press")} >= {own for own, _ in seen}, "those results")
        expect(tile.locator("figcaption")).to_have_text(re.compile("^picture: (✔ PASS|✘ FAIL)"))
        shown = page.evaluate("(({shown}) => [shown.result_id, shown.verdict])(tiles.get('press'))")
        assert shown in rows(page)
        judged = {own["result_id"]: own["verdict"] for own in line.results("press")}
        assert all(judged[result_id] == verdict for result_id, verdict in seen)
        # No sideways scrolling on a phone.
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE.width

        # A silence that ends without a new connection, as a laptop's sleep does.
        lost = page.locator("#lost")
        assert line.daemon.process is not None
        line.daemon.process.send_signal(signal.SIGSTOP)
        expect(lost).to_contain_text("Connection lost")
        assert tile.locator(".verdict").text_content() == "◌ NO LINK"
        line.daemon.process.send_signal(signal.SIGCONT)
        expect(lost).to_have_text("")
        wait_for(lambda: tile.locator(".verdict").text_content() in ("✔ PASS", "✘ FAIL"), "a verdict")

        assert line.daemon.end() == 0
        expect(lost).to_contain_text("Connection lost")
        line.daemon.start()
        expect(lost).to_have_text("", timeout=60_000)
        # What came before the stop is there again, from the ledger.
        wait_for(lambda: len(rows(page)) > len(seen), "results after it", 30)


def test_people_log_in_a_viewer_only_looks_and_an_engineer_marks(tmp_path: Path, lines: list[Line], chromium: Browser) -> None:
    write_parts(tmp_path / "parts", range(1), scratched=True)
    line = Line(tmp_path, folder_station("press", tmp_path / "parts", "loop = false"))
    lines.append(line)
    users = [
        subprocess.run(
            [sys.executable, "-m", "daemon.cli", "user", name, "--role", name],
            input=f"{name}-password\n", text=True, capture_output=True, check=True,
        ).stdout
        for name in ("viewer", "engineer")
    ]  # fmt: skip
    (tmp_path / "users").write_text("".join(users))
    (tmp_path / "users").chmod(0o600)
    config = line.daemon.config
    config.write_text(config.read_text().replace("[http]", '[http]\nusers_file = "users"'))
    line.daemon.start()
    line.wait_results("press", 1)

    def log_in(page: Page, name: str) -> None:
        expect(page).to_have_url("/login")
        page.get_by_label("Name").fill(name)
        page.get_by_label("Password").fill(f"{name}-password")
        page.get_by_role("button", name="Log in").click()
        expect(page).to_have_url("/")
        page.goto("/rejects")
        expect_picture(page, ".part img")

    with window(chromium, line.daemon.home, expected=[GONE_BY_NOW]) as page:
        page.goto("/rejects")
        log_in(page, "viewer")
        expect(page.locator(".part button")).to_have_count(0)
        page.get_by_role("button", name="Log out").click()
        log_in(page, "engineer")
        page.get_by_role("button", name="Mark bad").click()
        expect(page.locator(".mark")).to_have_text("marked bad")
        assert json.loads(line.daemon.get("/api/results?verdict=fail")[1])["results"][0]["mark"] == "bad"
    assert "password" not in line.daemon.said().replace("password_file", "")
