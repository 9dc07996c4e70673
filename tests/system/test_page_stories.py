"""What people come to the operator page for, from beginning to end, in a real browser on a whole daemon.

With APRILCAM_PAGE_PICTURES=FOLDER its pictures are kept there (`make page-pictures`)."""

import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import cv2
import pytest
from playwright.sync_api import Browser, FilePayload, Page, expect

from tests.broker import wait_for
from tests.browser import DESKTOP, GONE_BY_NOW, SIZES, window
from tests.parts import draw_part, png, write_parts
from tests.system.daemon import Line, folder_station

STATION = "press-left"
EVERY = 3
"""One part in so many has a scratch."""


class Keep(Protocol):
    """Takes a page's picture at each size, under a name; `at`: what is to be seen of it."""

    def __call__(self, page: Page, name: str, at: str = "body") -> None: ...


@pytest.fixture(scope="module")
def line() -> Iterator[Line]:
    """Two stations of one recipe; at the left one parts are scratched."""
    with tempfile.TemporaryDirectory(prefix="aprilcam-") as folder:  # a short path: pages show it
        yield from started(Path(folder))


def started(folder: Path) -> Iterator[Line]:
    """A daemon with its broker."""
    write_parts(folder / "left", range(EVERY - 1))
    write_parts(folder / "left", range(7, 8), scratched=True, start=EVERY - 1)
    write_parts(folder / "right", range(20, 30))
    line = Line(folder, folder_station(STATION, folder / "left") + folder_station("press-right", folder / "right"))
    config = line.daemon.config
    # Builds have what inspection leaves, and people need a moment to see a verdict.
    config.write_text(config.read_text().replace("rate_hz = 20.0", "rate_hz = 2.0"))
    try:
        line.daemon.start()
        line.wait_results(STATION, 2 * EVERY)
        yield line
    finally:
        line.close()


@pytest.fixture(scope="module")
def keep(tmp_path_factory: pytest.TempPathFactory) -> Keep:
    folder = Path(os.environ.get("APRILCAM_PAGE_PICTURES") or tmp_path_factory.mktemp("pictures"))

    def take(page: Page, name: str, at: str = "body") -> None:
        for size in SIZES.values():
            page.set_viewport_size({"width": size.width, "height": size.height})
            page.locator(at).evaluate("(own) => own.scrollIntoView({block: 'start'})")
            path = folder / f"page-{name}{'-phone' if size.phone else ''}.png"
            page.screenshot(path=path)
            picture = cv2.imread(str(path))
            assert picture is not None
            assert picture.shape == (size.height, size.width, 3)
        page.set_viewport_size({"width": DESKTOP.width, "height": DESKTOP.height})

    return take


def judged(line: Line, *, scratched: bool | None = None) -> list[dict[str, Any]]:
    """The left station's results, of scratched or of good parts alone where that is asked for."""
    results = line.results(STATION)
    first = results[0]["frame"]["number"]
    return [own for own in results if scratched is None or ((own["frame"]["number"] - first) % EVERY == EVERY - 1) == scratched]


def recipe(line: Line) -> dict[str, Any]:
    [told] = json.loads(line.daemon.get("/api/recipes")[1])["recipes"]
    assert isinstance(told, dict)
    return told


def pictured(page: Page, selector: str) -> None:
    """Every such image in the window has been loaded."""
    script = """selector => [...document.querySelectorAll(selector)].every((one) => one.complete && one.naturalWidth > 0
        || one.getBoundingClientRect().top > innerHeight)"""
    wait_for(lambda: page.locator(selector).count() > 0 and page.evaluate(script, selector), f"the pictures {selector}")


def test_a_part_fails_is_opened_marked_good_and_promoted_the_next_one_passes_and_the_bank_is_rolled_back(
    line: Line, chromium: Browser, keep: Keep
) -> None:
    expected = [GONE_BY_NOW, r"409 .*/api/commands/promote"]
    with window(chromium, line.daemon.home, expected=expected) as page:
        first = judged(line)[0]["bank"]
        assert [own["verdict"] for own in judged(line, scratched=True)[:2]] == ["fail", "fail"]

        # Watch a part fail.
        page.goto("/")
        tile = page.locator(f"[data-station={STATION}]")

        def shown() -> tuple[str | None, str]:
            return tile.get_attribute("data-verdict"), tile.locator("figcaption").inner_text()[:15]

        for verdict, caption in (("pass", "picture: ✔ PASS"), ("fail", "picture: ✘ FAIL")):  # half a second long: look often
            wait_for(lambda: shown() == (verdict, caption), f"a {verdict}")  # noqa: B023
        keep(page, "wall")

        # Open it.
        tile.get_by_role("link", name=STATION).click()
        expect(page).to_have_url(f"/station/{STATION}")
        page.get_by_label("Heat map").check()
        page.get_by_label("Mask").check()
        failed = page.locator("#film .tile[data-verdict=fail]:has(img)").first
        result_id = failed.get_attribute("data-result")
        failed.click()
        expect(page.locator("#part")).to_have_attribute("data-following", "no")
        expect(page.locator("#layers")).to_have_attribute("data-result", str(result_id))
        for layer in (".heat", ".mask"):
            pictured(page, f"#layers {layer}")
        pictured(page, "#film img")
        keep(page, "station")

        # Mark it good, promote it.
        acts = page.locator("#acts")
        acts.get_by_role("button", name="Mark good").click()
        expect(acts.locator(".mark")).to_have_text("marked good")
        page.goto("/rejects")
        page.get_by_label("heat map").check()
        part = page.locator(f".part[data-result='{result_id}']")
        expect(part.locator(".mark")).to_have_text("marked good")
        pictured(page, ".part img:not(.heat)")
        pictured(page, ".part .heat")
        keep(page, "rejects")
        promote, note = part.get_by_role("button", name="Promote"), part.locator(".note")
        promote.click()
        expect(note).to_contain_text("Held back")  # a scratch is far over the threshold
        part.get_by_role("button", name="Take it all the same").click()
        expect(note).to_contain_text("It is a reference shot")

        # See the next one pass.
        page.goto(f"/station/{STATION}")
        wait_for(lambda: judged(line)[-1]["bank"] != first, "the bank that knows it", 60)
        second = judged(line)[-1]["bank"]
        wait_for(lambda: judged(line, scratched=True)[-1]["bank"] == second, "the next scratched part")
        passed = judged(line, scratched=True)[-1]
        assert passed["verdict"] == "pass"
        expect(page.locator(f"#film .tile[data-result='{passed['result_id']}']")).to_have_attribute("data-verdict", "pass")

        # Roll back.
        page.goto("/teach")
        page.get_by_role("link", name="disc").click()
        expect(page.locator(".shot")).to_have_count(11)
        pictured(page, ".shot img")
        keep(page, "teach")
        current = page.locator(".bank[data-current=yes]")
        expect(current).to_have_attribute("data-bank", re.compile(second))
        before = page.locator(f".bank[data-bank^='{first}']").get_by_role("button")
        before.click()
        expect(before).to_have_text("Sure? Press again")
        before.click()  # as a double click does: nothing
        page.wait_for_timeout(700)
        assert recipe(line)["bank"] == second
        expect(before).to_have_text("Sure? Press again")
        before.click()
        expect(page.locator("#history-note")).to_contain_text("This bank judges now")
        expect(current).to_have_attribute("data-bank", re.compile(first))
        wait_for(lambda: judged(line)[-1]["bank"] == first, "a verdict by the first bank")


def test_the_threshold_is_dragged_and_changes_nothing_until_it_is_set(line: Line, chromium: Browser, keep: Keep) -> None:
    with window(chromium, line.daemon.home, expected=[GONE_BY_NOW]) as page:
        before = recipe(line)["threshold"]
        page.goto(f"/station/{STATION}")
        slider = page.get_by_role("slider")
        slider.scroll_into_view_if_needed()
        at = slider.locator(".grip").bounding_box()
        assert at is not None
        left = page.locator("#histogram").bounding_box()
        assert left is not None
        page.mouse.move(at["x"] + at["width"] / 2, at["y"] + at["height"] / 2)
        page.mouse.down()
        page.mouse.move((at["x"] + left["x"]) / 2, at["y"] + at["height"] / 2, steps=5)
        page.mouse.up()
        chosen = float(str(slider.get_attribute("aria-valuenow")))
        assert 0 < chosen < 0.8 * before
        expect(page.locator("#threshold-source")).to_have_text("(not set yet)")
        assert recipe(line)["threshold"] == before
        keep(page, "threshold", "#scores-title")
        page.get_by_role("button", name="Set threshold").click()
        expect(page.locator("#threshold-note")).to_contain_text(f"{chosen:.3f}")
        expect(page.locator("#threshold-source")).to_have_text("(set by hand)")
        assert recipe(line)["threshold"] == pytest.approx(chosen, rel=0.01)
        wait_for(lambda: judged(line)[-1]["threshold"] == pytest.approx(chosen, rel=0.01), "a verdict by it")
        page.locator("#calibrated-back").click()
        expect(page.locator("#threshold-source")).to_have_text("(calibrated)")
        wait_for(lambda: judged(line)[-1]["threshold"] == before, "a verdict by the calibrated one")


def test_a_corrupt_file_is_refused_by_name_and_the_others_are_shots(line: Line, chromium: Browser) -> None:
    with window(chromium, line.daemon.home, expected=[GONE_BY_NOW, r"409 .*/api/commands/register"]) as page:
        page.goto("/teach/disc")
        before = page.locator(".shot").count()
        files = [("torn.png", png(draw_part(300))[:2_000]), ("good.png", png(draw_part(301)))]
        page.locator("#files").set_input_files(
            [FilePayload(name=name, mimeType="image/png", buffer=content) for name, content in files]
        )
        refused = page.locator("#answers [data-outcome=refused]")
        expect(refused).to_have_count(1)
        expect(refused).to_contain_text("torn.png")
        expect(page.locator("#answers [data-outcome=added]")).to_contain_text("good.png")
        expect(page.locator(".shot")).to_have_count(before + 1)
        expect(page.locator("#build .doing")).to_have_text("The bank is built.")


def test_a_region_is_drawn_and_frames_are_judged_by_it_once_its_bank_is_built(line: Line, chromium: Browser, keep: Keep) -> None:
    with window(chromium, line.daemon.home, expected=[GONE_BY_NOW]) as page:
        wait_for(lambda: not json.loads(line.daemon.get("/teach/disc/state")[1])["building"], "the end of builds before")
        before = recipe(line)["bank"]
        page.goto("/teach/disc")
        drawing = page.locator("#drawing svg")
        drawing.scroll_into_view_if_needed()
        box = drawing.bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + 2, box["y"] + 2)
        page.mouse.down()
        page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.9 * box["height"], steps=5)
        page.mouse.up()
        assert recipe(line)["region"] is None
        keep(page, "region", "#region")
        page.get_by_role("button", name="Set region").click()
        expect(page.locator("#region-note")).to_contain_text("The region is set")
        region = recipe(line)["region"]
        assert region["width"] == pytest.approx(0.3 * 256, abs=4)
        assert region["height"] == pytest.approx(0.9 * 256, abs=4)
        wait_for(lambda: judged(line)[-1]["bank"] not in before, "a verdict by the region's bank", 60)
        second = judged(line)[-1]["bank"]
        wait_for(lambda: judged(line, scratched=True)[-1]["bank"] == second, "a scratched part by it")
        assert judged(line, scratched=True)[-1]["verdict"] == "pass"  # the scratch is outside
        page.get_by_role("button", name="Back to the recipe's own region").click()
        wait_for(lambda: recipe(line)["region"] is None, "the whole frame")


def test_rejects_are_filtered_and_one_that_is_marked_bad_is_promoted_by_nobody(line: Line, chromium: Browser) -> None:
    with window(chromium, line.daemon.home, expected=[r"409 .*/api/commands/promote"]) as page:
        for query, some in (("since=2020-01-01T00:00&recipe=disc&station=press-left", True), ("until=2020-01-01T00:00", False)):
            page.goto(f"/rejects?{query}")
            assert (page.locator(".part").count() > 0) == some
        page.goto("/rejects?station=press-left")
        part = page.locator(".part").last
        result_id = part.get_attribute("data-result")
        good, bad, back, promote = (
            part.get_by_role("button", name=name) for name in ("Mark good", "Mark bad", "Take the mark back", "Promote")
        )

        def kept() -> str | None:
            rows = json.loads(line.daemon.get("/api/results?verdict=fail&limit=500")[1])["results"]
            [mark] = [row["mark"] for row in rows if row["result_id"] == result_id]
            assert mark is None or isinstance(mark, str)
            return mark

        expect(back).to_be_hidden()
        for button, mark in ((good, "good"), (bad, "bad")):
            button.click()
            expect(part.locator(".mark")).to_have_text(f"marked {mark}")
            assert kept() == mark
        promote.click()
        expect(part.locator(".note")).to_contain_text("marked bad")
        back.click()
        expect(part.locator(".mark")).to_have_text("not marked")
        assert kept() is None


def test_the_system_page_tells_how_every_part_is_and_runs_the_doctor(line: Line, chromium: Browser, keep: Keep) -> None:
    with window(chromium, line.daemon.home) as page:
        page.goto("/system")
        for title in (STATION, "press-right"):
            facts = page.locator(f"[data-part=cameras][data-title='{title}']")
            expect(facts.locator("[data-fact=connected]")).to_have_text("✔ yes")
        keep(page, "system")
        page.locator("#system-run-doctor").click()
        expect(page.locator(".examination")).to_have_attribute("data-status", "done", timeout=60_000)
        expect(page.locator("#system-doctor li[data-check=broker]")).to_have_attribute("data-level", "ok")
