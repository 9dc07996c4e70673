"""Whole-daemon story of a real client: Node-RED with the shipped flow, looked at and clicked in a real browser."""

import base64
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from demo.node_red_flow import FOLDER, assemble
from tests.broker import wait_for
from tests.browser import PROGRAM, window
from tests.node_red import NodeRed, install, missing
from tests.parts import write_parts
from tests.system.daemon import Line
from tests.system.test_recipes import CORNER, events
from tests.system.test_triggers import TRIGGERED


@pytest.fixture
def node_red(tmp_path: Path, lines: list[Line]) -> Iterator[NodeRed]:
    """Beside a daemon whose camera sees a scratched part, a file that is no picture, and a good part, over and over."""
    reason = missing() or (None if PROGRAM else "chromium is not installed (Debian: apt-get install chromium)")
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


class Dashboard:
    """What somebody who looks at it sees and does."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.commands = page.locator(".ac-commands")

    def part(self, name: str) -> Locator:
        """The part of the page with that name."""
        return self.page.locator(f"[data-show={name}]")

    def expect(self, name: str, text: str | re.Pattern[str], timeout_s: float = 20.0) -> None:
        """It to show the text; spaces do not count unless in a pattern."""
        expect(self.part(name)).to_have_text(text, use_inner_text=True, timeout=timeout_s * 1e3)

    def trigger(self, part: str) -> None:
        self.commands.get_by_role("textbox").first.fill(part)
        self.commands.get_by_role("button", name="Trigger").click()

    def select(self, recipe: str) -> None:
        """With the list that the daemon answers when the choice is opened."""
        self.commands.locator(".v-select .v-field").click()
        self.page.locator(".v-overlay .v-list-item").get_by_text(recipe, exact=True).click()
        self.commands.get_by_role("button", name="Select recipe").click()


def test_the_shipped_flow_is_made_of_its_sources() -> None:
    assert (FOLDER / "flows.json").read_text() == assemble(), "run `make docs`"


def test_node_red_shows_verdicts_trend_and_mask_and_sends_trigger_and_select_recipe(
    node_red: NodeRed, chromium: Browser, lines: list[Line]
) -> None:
    gone = ["net::ERR_CONNECTION_REFUSED", "SIO connect error"]
    with window(chromium, node_red.home, expected=gone) as page:
        look(node_red, Dashboard(page), *lines)


def look(node_red: NodeRed, seen: Dashboard, line: Line) -> None:
    page = seen.page
    page.goto(node_red.path)
    seen.expect("state", "ContinuousExecution", 60)
    seen.expect("verdict", "NO PART YET")

    def judged(part: str, count: int) -> dict[str, Any]:
        """The result of a part that was triggered on the page, which shows just that."""
        seen.trigger(part)
        result = line.wait_results("press", count)[-1]
        assert result["part_id"] == part
        seen.expect("verdict", result["verdict"].upper())
        seen.expect("part", re.compile(f"^{part}"))
        return result

    failed = judged("A-1", 1)
    assert failed["verdict"] == "fail"
    assert line.listener is not None
    seen.expect("defect", "A-1")
    [mask] = line.listener.of(f"press/mask/{failed['result_id']}")
    expect(seen.part("png")).to_have_attribute("href", "data:image/png;base64," + base64.b64encode(mask).decode())
    assert page.locator(".ac-defect svg").evaluate("svg => svg.viewBox.baseVal.width") == failed["mask"]["width"]
    unknown = judged("A-2", 2)
    assert unknown["verdict"] == "unknown"
    seen.expect("why", f"{unknown['reason']}: nobody judged this part, treat it as a fail")
    passed = judged("A-3", 3)
    assert passed["verdict"] == "pass"
    seen.expect("why", f"score {passed['score']:.3g}, threshold {passed['threshold']:.3g}")
    for name, count in {"pass": "1", "fail": "1", "unknown": "1", "missed": "0"}.items():
        seen.expect(name, count)
    seen.expect("defect", "A-1")  # the newest mask stays
    expect(seen.part("dot")).to_have_class(["ac-fail", "ac-unknown", "ac-pass"])

    # A Node-RED that was not there when the mask came draws the polygons of the retained result.
    failed = judged("A-4", 4)
    node_red.close()
    node_red.start()
    page.goto(node_red.path)
    seen.expect("verdict", "FAIL")
    seen.expect("defect", "A-4")
    polygons = [" ".join(f"{x},{y}" for x, y in region["polygon"]) for region in failed["regions"]]
    assert polygons
    expect(seen.part("polygon")).to_have_count(len(polygons))
    assert [one.get_attribute("points") for one in seen.part("polygon").all()] == polygons

    wait_for(lambda: ("corner", "bank_built") in events(line), "the bank of the other recipe", 60)
    seen.select("corner")
    seen.expect("recipe", "corner")
    state = line.retained("press/state", "state")
    assert state is not None
    assert state["recipe"] == "corner"
    seen.expect("answer", re.compile(r"press select_recipe corner\s+ok\s*$"))
    requests = [json.loads(payload) for payload in line.listener.of("command/select_recipe")]
    replies = [json.loads(payload) for payload in line.listener.of("press/reply")]
    assert [request["request_id"] for request in requests] == [replies[-1]["request_id"]]
    assert "[error]" not in node_red.log.read_text()

    # What nobody judges any more is not shown as a verdict.
    assert line.daemon.end(signal.SIGTERM) == 0
    seen.expect("verdict", "STOPPED")
    line.broker.kill()
    seen.expect("verdict", "NO BROKER")
