"""The operator page of a whole daemon, in a real browser."""

import json
import subprocess
import sys
from pathlib import Path

from tests.broker import wait_for
from tests.browser import Browser
from tests.parts import write_parts
from tests.system.daemon import Line, folder_station

TILE = "document.querySelector('.station')"


def test_a_part_fails_on_the_wall_and_a_lost_daemon_is_told_until_it_is_back(tmp_path: Path, lines: list[Line]) -> None:
    write_parts(tmp_path / "parts", range(4))
    write_parts(tmp_path / "parts", range(2), scratched=True, start=4)
    line = Line(tmp_path, folder_station("press", tmp_path / "parts"))
    lines.append(line)
    config = line.daemon.config
    config.write_text(config.read_text().replace("rate_hz = 20.0", "rate_hz = 2.0"))
    line.daemon.start()
    line.wait_results("press", 1)
    browser = Browser(tmp_path, width=390, height=844)
    try:
        browser.open(f"http://127.0.0.1:{line.daemon.http_port}/")
        wait_for(lambda: browser.run(f"{TILE}?.dataset.verdict") == "fail", "a fail")
        wait_for(lambda: browser.run(f"{TILE}.dataset.verdict") == "pass", "a pass")
        word, width = browser.run(f"[{TILE}.querySelector('.verdict').textContent, {TILE}.querySelector('img').naturalWidth]")
        assert word == "✔ PASS"
        assert width == 256
        seen = browser.run("tiles.get('press').rows.map((row) => [row.result_id, row.verdict])")
        assert {verdict for _, verdict in seen} == {"pass", "fail"}
        wait_for(lambda: {own["result_id"] for own in line.results("press")} >= {own for own, _ in seen}, "those results")
        caption = browser.run(f"{TILE}.querySelector('figcaption').textContent")
        assert caption.startswith(("picture: ✔ PASS", "picture: ✘ FAIL"))
        shown = browser.run("(({shown}) => [shown.result_id, shown.verdict])(tiles.get('press'))")
        assert shown in browser.run("tiles.get('press').rows.map((row) => [row.result_id, row.verdict])")
        judged = {own["result_id"]: own["verdict"] for own in line.results("press")}
        assert all(judged[result_id] == verdict for result_id, verdict in seen)
        # No sideways scrolling on a phone.
        assert browser.run("document.documentElement.scrollWidth") <= 390

        assert line.daemon.end() == 0
        wait_for(lambda: "Connection lost" in str(browser.run("document.getElementById('lost')?.textContent")), "the banner")
        line.daemon.start()
        before = len(seen)
        wait_for(lambda: browser.run("document.getElementById('lost')?.textContent") == "", "the page to recover", 60)
        # What came before the stop is there again, from the ledger.
        count = "typeof tiles === 'undefined' ? 0 : tiles.get('press')?.rows.length ?? 0"
        wait_for(lambda: browser.run(count) > before, "results after it", 30)
    finally:
        browser.close()


def test_a_rejected_part_is_marked_good_and_promoted_on_the_page(tmp_path: Path, lines: list[Line]) -> None:
    write_parts(tmp_path / "parts", range(2))
    write_parts(tmp_path / "parts", range(1), scratched=True, start=2)
    line = Line(tmp_path, folder_station("press", tmp_path / "parts", "loop = false"))
    lines.append(line)
    line.daemon.start()
    line.wait_results("press", 3)
    browser = Browser(tmp_path, width=1280, height=800)

    def marks() -> list[str | None]:
        return [own["mark"] for own in json.loads(line.daemon.get("/api/results?verdict=fail")[1])["results"]]

    def note() -> str:
        return str(browser.run("document.querySelector('.part .note').textContent"))

    def word() -> str:
        return str(browser.run("document.querySelector('.mark').textContent"))

    try:
        wait_for(lambda: marks() == [None], "the archive")
        browser.open(f"http://127.0.0.1:{line.daemon.http_port}/rejects")
        wait_for(lambda: browser.run("document.querySelector('.part img')?.naturalWidth") == 256, "the picture")
        count = "document.querySelectorAll('.part').length"
        for query, shown in (("since=2020-01-01T00:00&recipe=disc&station=press", 1), ("until=2020-01-01T00:00", 0), ("", 1)):
            address = f"http://127.0.0.1:{line.daemon.http_port}/rejects?{query}"
            browser.open(address)
            wait_for(lambda: browser.run(f"location.href === '{address}' && document.readyState") == "complete", "the page")  # noqa: B023
            assert browser.run(count) == shown
        browser.click("#heat")
        heat = "document.querySelector('.part .heat')"
        wait_for(lambda: browser.run(f"{heat}.naturalWidth") == 256, "the heat map")
        assert browser.run(f"getComputedStyle({heat}).visibility") == "visible"
        browser.click(".part button[data-mark=bad]")
        wait_for(lambda: word() == "marked bad", "the mark")
        assert marks() == ["bad"]
        browser.click(".part button[data-promote]")
        wait_for(lambda: "marked bad" in note(), "the refusal")
        browser.click(".part button[data-mark=good]")
        wait_for(lambda: word() == "marked good", "the other mark")
        assert marks() == ["good"]
        browser.click(".part button[data-promote]")
        wait_for(lambda: note().startswith("Held back"), "the gate")  # a scratch is far over the threshold
        before = len(json.loads(line.daemon.get("/api/recipes/disc/shots")[1])["shots"])
        browser.click(".part button[data-promote]")
        wait_for(lambda: note().startswith("It is a reference shot"), "the yes of a person")
        assert len(json.loads(line.daemon.get("/api/recipes/disc/shots")[1])["shots"]) == before + 1
    finally:
        browser.close()


def test_people_log_in_a_viewer_only_looks_and_an_engineer_marks(tmp_path: Path, lines: list[Line]) -> None:
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
    browser = Browser(tmp_path, width=1280, height=800)
    home = f"http://127.0.0.1:{line.daemon.http_port}"

    def at(path: str) -> None:
        wait_for(lambda: browser.run("[location.pathname, document.readyState]") == [path, "complete"], path)

    def log_in(name: str) -> None:
        for field, text in (("name", name), ("password", f"{name}-password")):
            browser.click(f"input[name={field}]")
            browser.type(text)
        browser.click("button")
        at("/")
        browser.open(f"{home}/rejects")
        at("/rejects")
        wait_for(lambda: browser.run("document.querySelector('.part img')?.naturalWidth") == 256, "the picture")

    try:
        browser.open(f"{home}/rejects")
        at("/login")
        log_in("viewer")
        assert browser.run("document.querySelectorAll('.part button').length") == 0
        browser.click(".who button")
        at("/login")
        log_in("engineer")
        browser.click(".part button[data-mark=bad]")
        wait_for(lambda: browser.run("document.querySelector('.mark').textContent") == "marked bad", "the mark")
        assert json.loads(line.daemon.get("/api/results?verdict=fail")[1])["results"][0]["mark"] == "bad"
    finally:
        browser.close()
    assert "password" not in line.daemon.said().replace("password_file", "")
