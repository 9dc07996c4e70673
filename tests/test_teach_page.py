"""daemon/web/teach.py: a real server, a real client, a real plant that builds."""

import re
import struct
import time
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from config.schema import HttpConfig
from daemon.frame import Frame
from daemon.overview import Overview
from daemon.web.access import Access
from daemon.web.api import Api
from daemon.web.page import Page
from tests.plant import TestPlant, picture
from tests.wall import Serving, write_users


class Teaching(Serving):
    """The page and the API of a plant."""

    def __init__(self, plant: TestPlant, folder: Path, **http: Any) -> None:
        config = HttpConfig(port=0, **http)
        access = Access(config, folder / "x.toml")
        self.plant = plant
        page = Page(list, plant.ledger, plant.frames, plant.commands, access, lambda _: None, Overview, ())
        page.teach.open(plant.shots, plant.builder.pending)
        super().__init__(page, access, config, Api(plant.commands, access, dict).mount())


@pytest.fixture
def teaching(plant: TestPlant, tmp_path: Path) -> Iterator[Teaching]:
    teaching = Teaching(plant, tmp_path)
    yield teaching
    teaching.close()


def shots_of(html: str) -> list[tuple[str, str]]:
    """(shot, score) in the page's order."""
    return re.findall(r'data-shot="(\w+)" data-score="([\d.]*)"', html)


def test_shots_are_shown_worst_first_with_the_scores_that_the_command_tells(teaching: Teaching) -> None:
    teaching.plant.teach("disc", 1, 2, 3)
    told = {row["shot"]: row["score"] for row in teaching.plant.run("shots", {"recipe": "disc"})["shots"]}
    html = teaching.http.get("/teach/disc").text
    shown = shots_of(html)
    assert {shot: float(score) for shot, score in shown} == told
    assert [float(score) for _, score in shown] == sorted(told.values(), reverse=True)
    taught = teaching.plant.builder.taught("disc")
    assert taught is not None
    assert taught.bank is not None
    assert told == dict(zip(taught.bank.manifest.shots, taught.calibration.shot_scores, strict=True))
    # One that the bank that judges does not hold has none, and stands first.
    teaching.plant.builder.stop()
    [late] = teaching.plant.run("register", {"recipe": "disc", "force": True}, picture(4))["shots"]
    assert shots_of(teaching.http.get("/teach/disc").text)[0] == (late["shot"], "")


def test_the_list_names_every_recipe_and_an_unknown_one_is_not_found(teaching: Teaching) -> None:
    html = teaching.http.get("/teach").text
    assert re.findall(r'data-recipe="(\w+)"', html) == ["disc", "ring"]
    assert teaching.http.get("/teach/cog").status_code == 404
    assert teaching.http.get("/teach/ring").status_code == 200


def test_pictures_of_shots_are_small_and_of_that_recipe_only(teaching: Teaching) -> None:
    large = np.zeros((900, 1_800, 3), np.uint8)
    large[:, :900] = 200
    [shot] = teaching.plant.run("register", {"recipe": "disc"}, cv2.imencode(".png", large)[1].tobytes())["shots"]
    for path, width in ((f"/shots/disc/{shot['shot']}.jpg", 640), (f"/shots/disc/{shot['shot']}.jpg?large=1", 1_280)):
        answer = teaching.http.get(path)
        decoded = cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_COLOR)
        assert decoded is not None
        assert decoded.shape == (width // 2, width, 3)
        assert "unsafe" not in answer.headers["content-security-policy"]
    for path in (f"/shots/ring/{shot['shot']}.jpg", "/shots/disc/x.jpg", f"/shots/disc/{shot['shot'][:16]}.jpg"):
        assert teaching.http.get(path).status_code == 404
    assert teaching.plant.run("forget", {"recipe": "disc", "shot": shot["shot"]})["shot"] == shot["shot"]
    assert teaching.http.get(f"/shots/disc/{shot['shot']}.jpg").status_code == 404  # although its picture was small already


def test_a_picture_that_was_held_back_is_seen_and_taken_all_the_same(teaching: Teaching) -> None:
    teaching.plant.teach("disc", 1, 2, 3)
    bad = picture(9, scratched=True)
    token = re.findall(r'data-csrf="(.*?)"', teaching.http.get("/teach/disc").text)[0]

    def register(**fields: str) -> dict[str, Any]:
        headers = {"Content-Type": "application/octet-stream", "X-CSRF-Token": token}
        return dict(teaching.http.post("/api/commands/register", params=fields, content=bad, headers=headers).json()["shots"][0])

    shot = register(recipe="disc", name="a.png")
    assert shot["held"]["score"] > shot["held"]["limit"]
    path = f"/held/disc/{shot['shot']}"
    assert cv2.imdecode(np.frombuffer(teaching.http.get(f"{path}.jpg").content, np.uint8), cv2.IMREAD_COLOR) is not None
    assert teaching.http.get(path).content == bad
    assert teaching.http.get("/held/disc/" + "*" * 16).status_code == 404
    assert teaching.http.get(f"/held/ring/{shot['shot']}").status_code == 404
    taken = register(recipe="disc", name="a.png", force="true")
    assert taken["new"]
    assert teaching.http.get(path).status_code == 404
    teaching.plant.built(taken["build"])
    assert shots_of(teaching.http.get("/teach/disc").text)[0][0] == shot["shot"]


def test_a_bomb_and_a_torn_file_are_refused_by_name(teaching: Teaching) -> None:
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"\0\0\0\x0d" + header + struct.pack(">I", zlib.crc32(header)) + b"\0\0\0\0IDAT\x35\xaf\x06\x1e"
    for name, content, why in (
        ("bomb.png", b"\x89PNG\r\n\x1a\n" + chunk, "bomb.png: too large"),
        ("torn.png", picture(1)[:200], "torn.png: "),
    ):
        answer = teaching.http.post("/api/commands/register", params={"recipe": "disc", "name": name}, content=content)
        assert answer.status_code == 409
        assert answer.json()["error"]["message"].startswith(why)


def test_the_page_hears_how_a_build_goes_on_and_ends(teaching: Teaching) -> None:
    heard: list[str] = []
    tell = teaching.page.teach.told(lambda _recipe, kind, _detail: heard.append(kind))

    def state() -> dict[str, Any]:
        return dict(teaching.http.get("/teach/disc/state").json())

    assert state() == {"building": False, "doing": None, "share": 0.0, "failed": None, "ended": 0}
    tell("disc", "build_started", {"build": "b"})
    tell("disc", "build_progress", {"build": "b", "doing": "calibrating", "share": 0.5})
    assert (state()["doing"], state()["share"]) == ("calibrating", 0.5)
    tell("disc", "build_failed", {"build": "b", "reason": "no space"})
    assert (state()["failed"], state()["ended"]) == ("no space", 1)
    tell("disc", "bank_built", {"build": "c"})
    assert (state()["failed"], state()["ended"]) == (None, 2)
    assert heard == ["build_started", "build_progress", "build_failed", "bank_built"]
    assert teaching.http.get("/teach/ring/state").json()["ended"] == 0


def test_banks_and_what_the_calibration_expects_are_those_of_the_commands(teaching: Teaching) -> None:
    teaching.plant.teach("disc", 1, 2)
    teaching.plant.teach("disc", 3)
    html = teaching.http.get("/teach/disc").text
    banks = teaching.plant.run("banks", {"recipe": "disc"})["banks"]
    assert re.findall(r'data-bank="(\w+)" data-current="(\w+)"', html) == [
        (bank["bank"], "yes" if bank["current"] else "no") for bank in banks
    ]
    current = next(bank for bank in banks if bank["current"])
    assert current["advice"] in html
    moment = datetime.fromisoformat(current["built_at"])
    assert f'title="{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC">{moment.astimezone():%Y-%m-%d %H:%M:%S}<' in html


def test_the_picture_to_draw_on_tells_its_true_size(teaching: Teaching) -> None:
    assert "no picture yet to draw on" in teaching.http.get("/teach/disc").text
    pixels = np.zeros((1_000, 2_000), np.uint8)
    frame = Frame("cam", 1, 1, "host", "free_run", datetime.now(UTC), time.monotonic(), 0.0, pixels, None, True)
    teaching.plant.frames.see("press", frame, 8)
    html = teaching.http.get("/teach/disc").text
    assert re.findall(r'id="drawing" data-width="(\d+)" data-height="(\d+)" data-region="(\w+)"', html) == [
        ("2000", "1000", "null")
    ]
    picture_ = teaching.http.get("/teach/disc/frame/press.jpg")
    decoded = cv2.imdecode(np.frombuffer(picture_.content, np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    assert decoded.shape[:2] == (640, 1_280)
    assert teaching.http.get("/teach/disc/frame/oven.jpg").status_code == 404


def test_a_viewer_sees_the_shots_and_finds_nothing_to_press(plant: TestPlant, tmp_path: Path) -> None:
    plant.teach("disc", 1, 2)
    teaching = Teaching(plant, tmp_path, users_file=write_users(tmp_path))
    try:
        teaching.log_in("viewer")
        html = teaching.http.get("/teach/disc").text
        assert len(shots_of(html)) == 2
        assert "data-forget" not in html
        assert "region-form" not in html
        [token] = re.findall(r'data-csrf="(.*?)"', html)
        answer = teaching.http.post("/api/commands/rebuild", json={"recipe": "disc"}, headers={"X-CSRF-Token": token})
        assert answer.status_code == 403
    finally:
        teaching.close()


def test_a_lone_shot_has_no_score_and_after_a_rollback_the_older_bank_scores(teaching: Teaching) -> None:
    plant = teaching.plant

    def scores() -> list[float | None]:
        return [row["score"] for row in plant.run("shots", {"recipe": "disc"})["shots"]]

    plant.teach("disc", 1)
    assert scores() == [None]
    plant.teach("disc", 2)
    of_two = scores()
    plant.teach("disc", 3)
    assert all(score is not None for score in scores())
    plant.run("rollback", {"recipe": "disc"})
    assert scores() == [*of_two, None]
