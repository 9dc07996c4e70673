"""daemon/web/{page,live,previews}.py: a real server, a real client, a real ledger."""

import json
import re
import threading
import time
import tomllib
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest

from config.schema import HttpConfig
from connectors.contract import ResultOut
from daemon.commands import Commands
from daemon.frames import NewestFrames
from daemon.ledger import Ledger
from daemon.line import StationView
from daemon.recipe_store import RecipeStore
from daemon.web.access import Access
from daemon.web.app import HttpServer, create_app
from daemon.web.live import MOST_VIEWERS
from daemon.web.page import Page
from daemon.web.previews import SIDE
from daemon.web.users import hash_password
from tests.broker import wait_for
from tests.parts import draw_part
from tests.records import entry


def view(station: str, **changed: Any) -> StationView:
    told: dict[str, Any] = {
        "camera": "cam", "device": None, "recipe": "gear", "state": "ContinuousExecution", "reason": None, "bank": "abc",
        "mode": "few_shot", "threshold": 0.5, "threshold_stale": False, "shots": 8, "advice": None,
    }  # fmt: skip
    return StationView(station=station, **(told | changed))


class Wall:
    """A page of two stations on a free port."""

    def __init__(self, folder: Path, **http: Any) -> None:
        self.views = [view("press"), view("<b>oven", state="Preoperational", reason="camera lost")]
        self.results: list[ResultOut] = []
        self.ledger = Ledger(folder, self._committed)
        config = HttpConfig(port=0, **http)
        access = Access(config, folder / "x.toml")
        frames = NewestFrames()
        commands = Commands(RecipeStore(folder, self.ledger, [], {}), frames, lambda *_: None)
        self.page = Page(lambda: self.views, self.ledger, frames, commands, access)
        routes = [*access.routes(), *self.page.routes()]
        self._server = HttpServer(config, create_app(lambda: b"", lambda: (True, {}), lambda: (True, {}), routes))
        self._server.start()
        self.http = httpx.Client(base_url=self._server.url, trust_env=False, timeout=20)
        wait_for(self._serves, "the server")

    def _serves(self) -> bool:
        try:
            return self.http.get("/healthz").status_code == 200
        except httpx.ConnectError:
            return False

    def _committed(self, results: list[ResultOut]) -> None:
        self.page.live.committed(results)
        self.results += results

    def judge(self, station: str, number: int, *, failed: bool = False) -> None:
        """A result in the ledger."""
        there = len(self.results)
        self.ledger.submit([entry(station, number, mask=b"png" if failed else None)])
        wait_for(lambda: len(self.results) > there, "the commit")

    def close(self) -> None:
        self.page.live.close()
        self.http.close()
        self._server.stop()
        self.ledger.close()


@pytest.fixture
def wall(tmp_path: Path) -> Iterator[Wall]:
    wall = Wall(tmp_path)
    yield wall
    wall.close()


class Viewer:
    """A browser that listens: (event, document, when it came, monotonic)."""

    def __init__(self, wall: Wall) -> None:
        self.heard: list[tuple[str, dict[str, Any], float]] = []
        self.ended = False
        self._wall = wall
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()
        wait_for(lambda: bool(self.of("alive")), "the stream")

    def _listen(self) -> None:
        kind = ""
        with httpx.stream("GET", f"{self._wall.http.base_url}/live", trust_env=False, timeout=20) as answer:
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


def test_pictures_are_copied_only_while_somebody_looks_and_rejects_always(wall: Wall) -> None:
    previews, part = wall.page.previews, draw_part(1)
    previews.hold("a", "press", "fail", part)
    assert previews._held == {}
    wall.http.get("/preview/press.jpg")
    large = np.zeros((1_000, 2_000, 3), np.uint8)
    large[:, :, 0] = 200  # red
    previews.hold("b", "press", "pass", large)
    previews._due_s["press"] += 60  # however slow this machine is just now
    previews.hold("c", "press", "pass", part)
    previews.hold("d", "press", "fail", part)
    assert list(previews._held) == ["b", "d"]
    previews.hold("e", "press", "fail", np.zeros((2_000, 0), np.uint8))  # cannot be made small: costs no verdict
    assert list(previews._held) == ["b", "d"]
    previews.release("d")
    wall.judge("press", 1)
    assert wall.http.get("/preview/press.jpg").status_code == 404  # nothing of it was committed
    previews.committed([wall.results[0].model_copy(update={"result_id": "b"})])
    picture = cv2.imdecode(np.frombuffer(wall.http.get("/preview/press.jpg").content, np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    assert picture.shape == (SIDE // 2, SIDE, 3)
    assert picture[:, :, 2].mean() == pytest.approx(200, abs=3)
    assert picture[:, :, 0].mean() < 5
    # Each is to be had by the part it is of: a picture never goes with another part's verdict.
    assert wall.http.get("/preview/press.jpg?result=b").status_code == 200
    assert wall.http.get("/preview/press.jpg?result=a").status_code == 404


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


def test_nobody_sees_any_route_before_a_login_and_a_viewer_sees_all_of_them(tmp_path: Path) -> None:
    lines = [f"{name}:{name}:{hash_password('secret of ' + name)}" for name in ("viewer", "engineer")]
    (tmp_path / "users").write_text("\n".join(lines) + "\n")
    wall = Wall(tmp_path / "state", users_file=tmp_path / "users")
    try:
        paths = {route.path for route in wall.page.routes()} - {"/static/page.css"}
        paths = {path.format(station="press", result_id="x", name="wall.js", recipe="gear", shot="x") for path in paths}
        assert paths >= {"/", "/rejects", "/live", "/archive/x.jpg", "/archive/x.heat.png", "/preview/press.jpg"}
        for path in paths:
            assert wall.http.get(path).status_code == 401
            asked = wall.http.get(path, headers={"Accept": "text/html"})
            assert (asked.status_code, asked.headers["location"]) == (303, "/login")
        for name in ("viewer", "engineer"):
            wall.http.cookies.clear()
            assert wall.http.post("/login", data={"name": name, "password": f"secret of {name}"}).status_code == 303
            for path in paths - {"/live"}:
                forbidden = name == "viewer" and path == "/held/gear/x"
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
