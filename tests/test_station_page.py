"""daemon/web/{station,result_pictures,layers}.py: a station's page over a real server, ledger and archive."""

import json
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from config.schema import RecipeConfig, Region
from connectors.contract import ProcessingTimes, ResultOut
from daemon.ledger import Entry, Record
from daemon.marks import Marks
from daemon.station import Program, Taught
from daemon.threshold import ThresholdOverride
from daemon.web import station
from daemon.web.previews import SIDE
from daemon.web.result_pictures import KEPT_BYTES
from tests.archived import Kept, a_result, picture
from tests.broker import wait_for
from tests.wall import Wall, write_users


class Line:
    """A page whose daemon has an archive and marks."""

    def __init__(self, folder: Path) -> None:
        self.wall = Wall(folder)
        self.kept = Kept(folder, self.wall.ledger, pass_share=0.0)
        self.marks = Marks(self.wall.ledger, self.kept.archive)
        self.wall.page.opened(self.kept.archive)

    def commit(self, result: ResultOut) -> ResultOut:
        """A result in the ledger; as it has its sequence."""
        there = len(self.wall.results)

        def complete(sequence: int) -> Record:
            numbered = result.model_copy(update={"sequence": sequence})
            return Record(numbered, numbered.encode(), ())

        self.wall.ledger.submit([Entry(result.station, complete)])
        wait_for(lambda: len(self.wall.results) > there, "the commit")
        return self.wall.results[-1]

    def now(self, station: str = "press") -> dict[str, Any]:
        told: dict[str, Any] = self.wall.http.get(f"/station/{station}/now?fresh").json()
        return told

    def close(self) -> None:
        self.kept.close()
        self.wall.close()


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    line = Line(tmp_path)
    yield line
    line.close()


def decoded(answer: httpx.Response) -> NDArray[np.uint8]:
    """H x W x 3 or 4, BGR(A)."""
    assert answer.status_code == 200, answer.text
    pixels = cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_UNCHANGED)
    assert pixels is not None
    return np.asarray(pixels, np.uint8)


def hot_map(at: tuple[int, int] = (20, 30)) -> NDArray[np.float32]:
    """50 x 50, hot at (row, column) and 4 around it."""
    anomaly_map = np.full((50, 50), 0.1, np.float32)
    row, column = at
    anomaly_map[row - 4 : row + 5, column - 4 : column + 5] = 0.9
    return anomaly_map


def test_the_page_shows_a_stations_newest_results_and_which_of_them_are_archived_and_marked(line: Line) -> None:
    first, second, third = (line.commit(a_result(verdict)) for verdict in ("fail", "unknown", "pass"))
    line.commit(a_result("fail", station="<b>oven"))
    line.kept.put(first)
    line.marks.mark(first.result_id, "good", by="Ann")
    html = line.wall.http.get("/station/press").text
    assert "✔ PASS" in html
    assert 'id="acts"' in html
    [told] = re.findall(r'data-now="(.*?)"', html)
    rows = json.loads(unescape(told))["rows"]
    assert rows == line.now()["rows"]
    assert [(row["result_id"], row["archived"], row["mark"], row["reason"]) for row in rows] == [
        (third.result_id, False, "none", None),
        (second.result_id, False, "none", "stopped"),
        (first.result_id, True, "good", None),
    ]
    html = line.wall.http.get("/station/<b>oven").text
    assert "camera lost" in html
    assert "<b>oven" not in html


def test_a_station_that_is_not_there_says_so_and_one_that_starts_is_waited_for(line: Line) -> None:
    answer = line.wall.http.get("/station/nowhere")
    assert answer.status_code == 404
    assert "There is no station of that name." in answer.text
    assert '<a href="/">' in answer.text
    assert line.wall.http.get("/station/nowhere/now").status_code == 404
    line.wall.views.clear()
    answer = line.wall.http.get("/station/press")
    assert answer.status_code == 503
    assert "The daemon is starting." in answer.text
    assert "/static/station_gone.js" in answer.text


def test_who_asks_a_moment_later_is_told_the_same_and_who_has_changed_something_what_is_new(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(station, "KEPT_S", 60.0)  # however slow this machine is just now

    def count(query: str) -> int:
        return len(line.wall.http.get(f"/station/press/now{query}").json()["rows"])

    assert count("") == 0
    line.commit(a_result("pass"))
    assert (count(""), count("?fresh"), count("")) == (0, 1, 1)


def test_the_wall_leads_to_the_station(line: Line) -> None:
    assert '<a href="/station/press">press</a>' in line.wall.http.get("/").text


def test_scores_are_those_by_the_present_recipe_and_latency_is_told_of_all(line: Line) -> None:
    for number in range(1, 101):
        times = ProcessingTimes(acquire_s=0.0, queue_s=0.001, inference_s=number / 1e3, finish_s=0.001)
        recipe = "gear" if number % 2 else "disc"
        line.commit(a_result("pass", recipe=recipe).model_copy(update={"score": number / 100, "processing_times": times}))
    line.commit(a_result("unknown"))
    told = line.now()
    assert told["scores"] == [number / 100 for number in range(99, 0, -2)]
    assert len(told["rows"]) == 100
    # The unknown took no time; the oldest is no longer among the newest 100.
    latency = told["latency"]
    assert latency["newest_ms"] == [0.0, *(number + 2.0 for number in range(100, 1, -1))]
    assert (latency["half_ms"], latency["most_ms"], latency["slowest_ms"]) == (52.0, 101.0, 102.0)
    assert line.now("<b>oven")["latency"] is None


def test_the_calibration_is_told_with_whether_another_threshold_was_set(line: Line, taught: Taught) -> None:
    assert line.now()["calibration"] is None
    program = Program(RecipeConfig(name="gear", object="gear"), taught)
    line.wall.programs["press"] = program
    told = line.now()["calibration"]
    assert told == {"threshold": 0.5, "shot_scores": [0.1, 0.1], "advice": "register 6 more", "by_hand": False}
    line.wall.programs["press"] = Program(program.recipe, taught, ThresholdOverride(threshold=0.7))
    assert line.now()["calibration"]["by_hand"] is True


def test_a_just_judged_part_has_its_overlays_while_somebody_looks_at_its_stations_page(line: Line) -> None:
    previews, http = line.wall.page.previews, line.wall.http
    frame, region = picture(1, (400, 800)), Region(x=400, y=0, width=400, height=400)
    previews.look()
    unseen, seen, passed = a_result("fail"), a_result("fail"), a_result("pass")
    previews.hold(unseen.result_id, "press", "fail", frame, hot_map(), region)
    line.now()
    anomaly_map = hot_map()
    previews._due_s.clear()  # parts come faster here than pictures are wanted
    previews.hold(seen.result_id, "press", "fail", frame, anomaly_map, region)
    previews._due_s.clear()
    previews.hold(passed.result_id, "press", "pass", frame, anomaly_map, region)
    anomaly_map[:] = 0  # the batch's memory is used again
    assert previews._held[unseen.result_id].layers is None
    assert http.get(f"/result/{seen.result_id}.heat.png").status_code == 404  # no verdict is committed yet
    previews.committed([unseen, seen, passed])
    part = decoded(http.get(f"/result/{seen.result_id}.jpg"))
    assert part.shape[:2] == (SIDE // 2, SIDE)
    heat = decoded(http.get(f"/result/{seen.result_id}.heat.png"))
    assert heat.shape == (SIDE // 2, SIDE, 4)
    # Row 20, column 30 of 50 of the right half.
    hottest = np.argwhere(heat[:, :, 3] == heat[:, :, 3].max()).mean(axis=0)
    np.testing.assert_allclose(hottest, [320 * 20.5 / 50, 320 + 320 * 30.5 / 50], atol=6)
    outline = decoded(http.get(f"/result/{seen.result_id}.mask.png"))
    drawn = np.argwhere(outline[:, :, 3])
    np.testing.assert_allclose(drawn.mean(axis=0), hottest, atol=6)
    assert outline[round(hottest[0]), round(hottest[1]), 3] == 0  # of the outline alone
    assert http.get(f"/result/{passed.result_id}.heat.png").status_code == 200
    assert http.get(f"/result/{passed.result_id}.mask.png").status_code == 404
    assert http.get(f"/result/{unseen.result_id}.heat.png").status_code == 404


class Unwilling(np.ndarray[Any, np.dtype[np.float32]]):
    """A map for whose copy there is no memory."""

    def copy(self, *_: Any, **__: Any) -> Any:
        raise MemoryError("no memory")


def test_a_map_that_cannot_be_kept_costs_no_verdict(line: Line, caplog: pytest.LogCaptureFixture) -> None:
    line.now()
    line.wall.page.previews.hold("x", "press", "fail", picture(), hot_map().view(Unwilling), None)
    assert "no preview of result x: no memory" in caplog.text
    assert line.wall.page.previews._held == {}


def test_an_archived_part_has_its_picture_in_three_sizes_and_its_overlays(line: Line) -> None:
    http, frame = line.wall.http, picture(2, (500, 1_000))
    failed = line.kept.put(a_result("fail"), frame, hot_map(), Region(x=0, y=0, width=500, height=500))
    for size, longer in (("?size=small", 160), ("", SIDE), ("?size=large", 1_000)):
        assert decoded(http.get(f"/result/{failed.result_id}.jpg{size}")).shape[:2] == (longer // 2, longer)
    assert http.get(f"/result/{failed.result_id}.jpg?size=huge").status_code == 400
    outline = decoded(http.get(f"/result/{failed.result_id}.mask.png"))
    heat = decoded(http.get(f"/result/{failed.result_id}.heat.png"))
    assert outline.shape == heat.shape == (SIDE // 2, SIDE, 4)
    drawn = np.argwhere(outline[:, :, 3])
    np.testing.assert_allclose(drawn.mean(axis=0), [320 * 20.5 / 50, 320 * 30.5 / 50], atol=6)
    assert not heat[:, SIDE // 2 + 2 :, 3].any()  # beside the region
    unknown = line.kept.put(a_result("unknown"), frame)
    assert http.get(f"/result/{unknown.result_id}.jpg").status_code == 200
    for name in ("heat.png", "mask.png"):
        answer = http.get(f"/result/{unknown.result_id}.{name}")
        assert (answer.status_code, answer.text) == (404, "nothing of that kind is kept of it\n")
    assert http.get("/result/x.jpg").status_code == 404


def test_drawn_pictures_are_kept_for_the_next_who_looks_in_bounded_memory(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    http, pictures = line.wall.http, line.wall.page.pictures
    result = line.kept.put(a_result("fail"))
    first = http.get(f"/result/{result.result_id}.jpg?size=small").content
    for path in line.kept.root.rglob("*.png"):
        path.unlink()
    assert http.get(f"/result/{result.result_id}.jpg?size=small").content == first
    assert http.get(f"/result/{result.result_id}.jpg").status_code == 404
    assert pictures._kept_bytes == len(first) < KEPT_BYTES
    monkeypatch.setattr("daemon.web.result_pictures.KEPT_BYTES", len(first))
    other = line.kept.put(a_result("fail"))
    assert http.get(f"/result/{other.result_id}.jpg?size=small").status_code == 200
    assert [result_id for result_id, _ in pictures._kept] == [other.result_id]
    assert http.get(f"/result/{result.result_id}.jpg?size=small").status_code == 404


def test_before_the_archive_is_there_pictures_say_that_the_daemon_starts(tmp_path: Path) -> None:
    wall = Wall(tmp_path)
    try:
        wall.judge("press", 1)
        for name in ("jpg", "heat.png", "mask.png"):
            assert wall.http.get(f"/result/{wall.results[0].result_id}.{name}").status_code == 503
        [row] = wall.http.get("/station/press/now").json()["rows"]
        assert (row["archived"], row["mark"]) == (False, "none")
    finally:
        wall.close()


def test_a_viewer_sees_no_buttons_that_change_something(tmp_path: Path) -> None:
    wall = Wall(tmp_path / "state", users_file=write_users(tmp_path))
    try:
        for name in ("viewer", "engineer"):
            wall.log_in(name)
            html = wall.http.get("/station/press").text
            there = [mark in html for mark in ('id="acts"', 'id="set-threshold"', 'role="slider"', 'data-acts="yes"')]
            assert there == [name == "engineer"] * 4
            assert 'id="histogram"' in html
    finally:
        wall.close()
