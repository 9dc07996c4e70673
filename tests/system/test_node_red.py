"""Whole-daemon story of a real client: Node-RED with the shipped flow, looked at and clicked in a real browser."""

import base64
import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.node_red_flow import FOLDER, assemble
from tests.broker import wait_for
from tests.browser import Browser
from tests.node_red import NodeRed, install, missing
from tests.parts import write_parts
from tests.system.daemon import Line
from tests.system.test_recipes import CORNER, events
from tests.system.test_triggers import TRIGGERED


@pytest.fixture
def node_red(tmp_path: Path, lines: list[Line]) -> Iterator[NodeRed]:
    """Beside a daemon whose camera sees a scratched part, a file that is no picture, and a good part, over and over."""
    reason = missing() or (None if shutil.which("chromium") else "chromium is not installed (Debian: apt-get install chromium)")
    if reason is not None:
        pytest.skip(reason)
    try:
        install()
    except OSError as error:
        pytest.skip(f"Node-RED cannot be installed: {error}")
    write_parts(tmp_path / "parts", range(1), scratched=True)
    (tmp_path / "parts" / "0001.png").write_bytes(b"no picture")
    write_parts(tmp_path / "parts", range(1), start=2)
    write_parts(tmp_path / "corner-shots", range(200, 204))
    line = Line(tmp_path, TRIGGERED.format(extra=""), CORNER)
    lines.append(line)
    line.daemon.start()
    node_red = NodeRed(tmp_path, line.broker.port, "plant")
    node_red.start()
    yield node_red
    node_red.close()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    browser = Browser(tmp_path)
    yield browser
    browser.close()


class Page:
    """What somebody who looks at the dashboard sees and does."""

    def __init__(self, browser: Browser) -> None:
        self.browser = browser

    def shows(self, what: str) -> str:
        """The text of the part of the page with that name; empty where there is none."""
        text = self.browser.run(f"document.querySelector('[data-show={what}]')?.innerText ?? ''")
        return " ".join(str(text).split())

    def wait(self, what: str, text: str, timeout_s: float = 20.0) -> None:
        """Until it shows the text."""
        try:
            wait_for(lambda: self.shows(what) == text, f"{what} to show {text}", timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}; the page: {self.browser.run('document.body.innerText')}") from None

    def trigger(self, part: str) -> None:
        self.browser.click(".ac-commands input")
        self.browser.type(part)
        self.press("Trigger")

    def press(self, button: str) -> None:
        self.browser.run(f"[...document.querySelectorAll('button')].find((one) => one.textContent.trim() === '{button}').click()")

    def select(self, recipe: str) -> None:
        """With the list that the daemon answers when the choice is opened."""
        self.browser.click(".ac-commands .v-select .v-field")
        row = f"[...document.querySelectorAll('.v-overlay .v-list-item')].find((one) => one.textContent.trim() === '{recipe}')"
        wait_for(lambda: bool(self.browser.run(f"{row} !== undefined")), f"{recipe} in the list")
        self.browser.run(f"{row}.click()")
        self.press("Select recipe")


def test_the_shipped_flow_is_made_of_its_sources() -> None:
    assert (FOLDER / "flows.json").read_text() == assemble(), "run `make docs`"


def test_node_red_shows_verdicts_trend_and_mask_and_sends_trigger_and_select_recipe(
    node_red: NodeRed, browser: Browser, lines: list[Line]
) -> None:
    [line] = lines
    page = Page(browser)
    browser.open(node_red.page)
    page.wait("state", "ContinuousExecution", 60)
    assert page.shows("verdict") == "NO PART YET"

    def judged(part: str, count: int) -> dict[str, Any]:
        """The result of a part that was triggered on the page, which shows just that."""
        page.trigger(part)
        result = line.wait_results("press", count)[-1]
        assert result["part_id"] == part
        page.wait("verdict", result["verdict"].upper())
        assert page.shows("part").startswith(part)
        return result

    failed = judged("A-1", 1)
    assert failed["verdict"] == "fail"
    assert line.listener is not None
    page.wait("defect", "A-1")
    [mask] = line.listener.of(f"press/mask/{failed['result_id']}")
    drawn = browser.run("document.querySelector('[data-show=png]').getAttribute('href')")
    assert drawn == "data:image/png;base64," + base64.b64encode(mask).decode()
    assert browser.run("document.querySelector('.ac-defect svg').viewBox.baseVal.width") == failed["mask"]["width"]
    unknown = judged("A-2", 2)
    assert unknown["verdict"] == "unknown"
    assert page.shows("why") == f"{unknown['reason']}: nobody judged this part, treat it as a fail"
    passed = judged("A-3", 3)
    assert passed["verdict"] == "pass"
    assert f"score {passed['score']:.3g}, threshold {passed['threshold']:.3g}" == page.shows("why")
    page.wait("pass", "1")
    assert page.shows("defect") == "A-1"  # the newest mask stays
    dots = browser.run("[...document.querySelectorAll('[data-show=dot]')].map((dot) => dot.getAttribute('class'))")
    assert dots == ["ac-fail", "ac-unknown", "ac-pass"]
    counts = {name: page.shows(name) for name in ("pass", "fail", "unknown", "missed")}
    assert counts == {"pass": "1", "fail": "1", "unknown": "1", "missed": "0"}

    # A Node-RED that was not there when the mask came draws the polygons of the retained result.
    failed = judged("A-4", 4)
    node_red.close()
    node_red.start()
    browser.open(node_red.page)
    page.wait("verdict", "FAIL")
    page.wait("defect", "A-4")
    drawn = browser.run("[...document.querySelectorAll('[data-show=polygon]')].map((one) => one.getAttribute('points'))")
    assert drawn == [" ".join(f"{x},{y}" for x, y in region["polygon"]) for region in failed["regions"]]
    assert drawn

    wait_for(lambda: ("corner", "bank_built") in events(line), "the bank of the other recipe", 60)
    page.select("corner")
    page.wait("recipe", "corner")
    state = line.retained("press/state", "state")
    assert state is not None
    assert state["recipe"] == "corner"
    wait_for(lambda: page.shows("answer").endswith("press select_recipe corner ok"), "the answer")
    requests = [json.loads(payload) for payload in line.listener.of("command/select_recipe")]
    replies = [json.loads(payload) for payload in line.listener.of("press/reply")]
    assert [request["request_id"] for request in requests] == [replies[-1]["request_id"]]
    assert "[error]" not in node_red.log.read_text()

    # What nobody judges any more is not shown as a verdict.
    assert line.daemon.end(signal.SIGTERM) == 0
    page.wait("verdict", "STOPPED")
    line.broker.kill()
    page.wait("verdict", "NO BROKER")
