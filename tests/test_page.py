"""daemon/web/{page,live,previews}.py: a real server, a real client, a real ledger."""

import json
import re
import threading
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from daemon.web import page
from daemon.web.live import MOST_VIEWERS
from daemon.web.pictures import thumbnail
from daemon.web.previews import FETCHED_HZ, SIDE, Previews
from tests.broker import wait_for
from tests.frames import frame
from tests.parts import draw_part
from tests.wall import Wall, view, write_users


@pytest.fixture
def wall(tmp_path: Path) -> Iterator[Wall]:
    wall = Wall(tmp_path)
    yield wall
    wall.close()


class Viewer:
    """A browser that listens: (event, document, when it came, monotonic)."""

    def __init__(self, wall: Wall, query: str = "") -> None:
        self.heard: list[tuple[str, dict[str, Any], float]] = []
        self.ended = False
        self._wall, self._query = wall, query
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()
        wait_for(lambda: bool(self.of("alive")), "the stream")

    def _listen(self) -> None:
        kind = ""
        with httpx.stream("GET", f"{self._wall.http.base_url}/live{self._query}", trust_env=False, timeout=20) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            for line in answer.iter_lines():
                if line.startswith("event: "):
                    kind = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    self.heard.append((kind, json.loads(line.removeprefix("data: ")), time.monotonic()))
        self.ended = True

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [document for event, document, _ in self.heard if event == kind]

    def join(self) -> None:
        self._thread.join(10)


def test_the_wall_shows_each_station_with_its_newest_result_and_escapes_names(wall: Wall) -> None:
    for number in range(3):
        wall.judge("press", number, failed=number == 2)
    html = wall.http.get("/").text
    assert "✘ FAIL" in html
    assert "camera lost" in html
    assert "<b>oven" not in html
    assert "&lt;b&gt;oven" in html
    [rows] = re.findall(r'data-station="press".*?data-rows="(.*?)"', html)
    assert [row["sequence"] for row in json.loads(rows.replace("&#34;", '"').replace("&amp;", "&"))] == [1, 2, 3]
    wall.views.clear()
    assert "No station yet" in wall.http.get("/").text


def test_who_looks_hears_a_verdict_within_200_ms_and_a_changed_state(wall: Wall) -> None:
    viewers = [Viewer(wall) for _ in range(3)]
    assert [document["station"] for document in viewers[0].of("state")] == ["press", "<b>oven"]
    began_s = time.monotonic()
    wall.judge("press", 7, failed=True)
    for viewer in viewers:
        wait_for(lambda viewer=viewer: bool(viewer.of("result")), "the verdict")  # type: ignore[misc]
        [(document, came_s)] = [(own, at) for kind, own, at in viewer.heard if kind == "result"]
        assert (document["verdict"], document["score"], document["threshold"]) == ("fail", 0.1, 0.5)
        assert came_s - began_s < 0.2
    wall.views[1] = view("<b>oven")
    wait_for(lambda: any(own["inspects"] for own in viewers[0].of("state") if own["station"] == "<b>oven"), "the state")
    wall.views.pop()
    wait_for(lambda: viewers[0].of("stations") == [{"stations": ["press"]}], "the station that is gone")
    wall.page.live.close()
    for viewer in viewers:
        viewer.join()
        assert viewer.ended


def test_states_are_asked_for_once_a_second_however_many_look(wall: Wall) -> None:
    viewers = [Viewer(wall) for _ in range(6)]
    asked: list[None] = []
    states = wall.page.live._states
    wall.page.live._states = lambda: asked.append(None) or states()  # type: ignore[func-returns-value]
    there = len(viewers[0].of("alive"))
    wait_for(lambda: all(len(viewer.of("alive")) >= there + 2 for viewer in viewers), "two seconds")
    assert 2 <= len(asked) <= 4
    wall.page.live.close()
    for viewer in viewers:
        viewer.join()
        assert len(viewer.of("state")) == 2  # unchanged, so told once


def test_the_more_would_fetch_a_picture_the_fewer_there_are_and_passes_hide_no_reject() -> None:
    part, previews = draw_part(1), Previews()
    previews.look(round(FETCHED_HZ * 60))  # each fetches one a minute
    for number in range(5):
        previews.hold(f"pass{number}", "press", "pass", part)
    for number in range(5):
        previews.hold(f"fail{number}", "press", "fail", part)
    previews.hold("other", "oven", "pass", part)
    assert list(previews._held) == ["pass0", "fail0", "other"]


def test_pictures_are_copied_only_while_somebody_looks_and_a_reject_whatever_passed_before(wall: Wall) -> None:
    previews, part = wall.page.previews, draw_part(1)
    nothing = wall.http.get("/preview/press.jpg")
    assert (nothing.status_code, nothing.headers["content-type"]) == (200, "image/svg+xml")
    assert wall.http.get("/preview/gone.jpg").status_code == 404
    previews._looks_until_s = 0.0
    previews.hold("a", "press", "fail", part)
    assert previews._held == {}
    wall.http.get("/preview/press.jpg")
    large = np.zeros((1_000, 2_000, 3), np.uint8)
    large[:, :, 0] = 200  # red
    previews.hold("b", "press", "pass", large)
    previews._due_s["press", False] += 60  # however slow this machine is just now
    previews.hold("c", "press", "pass", part)
    previews.hold("d", "press", "fail", part)
    assert list(previews._held) == ["b", "d"]
    previews.hold("e", "oven", "fail", np.zeros((2_000, 0), np.uint8))  # cannot be made small: costs no verdict
    assert list(previews._held) == ["b", "d"]
    previews.release("d")
    wall.judge("press", 1)
    assert wall.http.get("/preview/press.jpg").headers["content-type"] == "image/svg+xml"  # nothing of it was committed
    previews.committed([wall.results[0].model_copy(update={"result_id": "b"})])
    picture = cv2.imdecode(np.frombuffer(wall.http.get("/preview/press.jpg").content, np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    assert picture.shape == (SIDE // 2, SIDE, 3)
    assert picture[:, :, 2].mean() == pytest.approx(200, abs=3)
    assert picture[:, :, 0].mean() < 5
    # Each is to be had by the part it is of: a picture never goes with another part's verdict.
    assert wall.http.get("/preview/press.jpg?result=b").status_code == 200
    assert wall.http.get("/preview/press.jpg?result=a").status_code == 404


def test_who_comes_hears_the_newest_result_of_each_station_which_the_page_may_not_have(wall: Wall) -> None:
    for number in (1, 2):
        wall.judge("press", number)
    viewer = Viewer(wall)
    wait_for(lambda: bool(viewer.of("result")), "the newest")
    assert [(own["station"], own["sequence"], own["picture"]) for own in viewer.of("result")] == [("press", 2, False)]
    wall.page.live.close()
    viewer.join()


def test_who_wants_no_results_hears_that_the_daemon_lives_and_makes_nobody_copy_pictures(wall: Wall) -> None:
    viewer = Viewer(wall, "?quiet")
    wall.judge("press", 1)
    wall.page.previews.hold("a", "press", "fail", draw_part(1))
    assert wall.page.previews._held == {}
    wait_for(lambda: len(viewer.of("alive")) > 1, "another sign of life")
    assert [document["station"] for document in viewer.of("state")] == ["press", "<b>oven"]
    assert viewer.of("result") == []
    wall.page.live.close()
    viewer.join()


def test_however_many_want_a_picture_one_is_drawn_for_all_and_probes_are_answered(
    wall: Wall, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, go_on = [], threading.Event()

    def slowly(pixels: NDArray[np.uint8], most: int) -> bytes:
        drawn.append(most)
        assert go_on.wait(20)
        return thumbnail(pixels, most)

    monkeypatch.setattr(page, "thumbnail", slowly)
    monkeypatch.setattr(page, "KEPT_S", 60.0)
    wall.page._frames.see("press", frame(draw_part(1)), 16)
    many = 60  # more than the server has threads for all

    def fetch() -> int:
        with httpx.Client(base_url=wall.http.base_url, trust_env=False, timeout=20) as browser:
            return browser.get("/preview/press.jpg").status_code

    with ThreadPoolExecutor(many) as pool:
        fetching = [pool.submit(fetch) for _ in range(many)]
        wait_for(lambda: bool(drawn), "the first of them")
        time.sleep(0.5)
        assert wall.http.get("/healthz", timeout=5).status_code == 200
        assert wall.http.get("/", timeout=5).status_code == 200
        go_on.set()
        assert [one.result() for one in fetching] == [200] * many
    assert drawn == [SIDE]


def test_one_browser_too_many_is_told_to_come_back(wall: Wall) -> None:
    wall.page.live._viewers |= {object() for _ in range(MOST_VIEWERS)}  # type: ignore[misc]
    answer = wall.http.get("/live")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    wall.page.live._viewers.clear()


@pytest.mark.parametrize(
    "path", ["/", "/static/page.css", "/static/wall.js", "/preview/press.jpg", "/preview/x.jpg", "/static/x"]
)
def test_every_answer_carries_the_policy_and_a_foreign_page_gets_none(wall: Wall, path: str) -> None:
    answer = wall.http.get(path)
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self';")
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    for foreign in ({"Host": "evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        assert wall.http.get(path, headers=foreign).status_code == (200 if path == "/static/page.css" else 403)


def test_nobody_sees_any_route_before_a_login_and_a_viewer_all_but_two(tmp_path: Path) -> None:
    wall = Wall(tmp_path / "state", users_file=write_users(tmp_path))
    try:
        paths = {route.path for route in wall.page.routes()} - {"/static/page.css"}
        paths = {path.format(station="press", result_id="x", name="wall.js", recipe="gear", shot="x") for path in paths}
        assert paths >= {"/", "/rejects", "/teach/gear", "/live", "/preview/press.jpg", "/station/press", "/station/press/now"}
        assert paths >= {f"/result/x{kind}" for kind in (".jpg", ".heat.png", ".mask.png")}
        for path in paths:
            assert wall.http.get(path).status_code == 401
            asked = wall.http.get(path, headers={"Accept": "text/html"})
            assert (asked.status_code, asked.headers["location"]) == (303, "/login")
        for name in ("viewer", "engineer"):
            wall.log_in(name)
            for path in paths - {"/live"}:
                forbidden = name == "viewer" and path in ("/system/doctor", "/held/gear/x")
                assert wall.http.get(path).status_code in ((403,) if forbidden else (200, 404, 503)), path
    finally:
        wall.close()


def test_no_text_has_a_name_that_templates_take_for_a_method_of_the_table() -> None:
    texts = tomllib.loads((files("daemon.web") / "texts.toml").read_text(encoding="utf-8"))
    assert [key for table in texts.values() for key in (*texts, *table) if hasattr(dict, key)] == []


def test_the_page_names_no_address_elsewhere() -> None:
    here = files("daemon.web")
    for folder in ("static", "templates"):
        for file in (here / folder).iterdir():
            found = set(re.findall(r"https?://[^\"'\s]+", file.read_text(encoding="utf-8")))
            assert found <= {"http://www.w3.org/2000/svg"}, file
