"""daemon/web/teach.py: a real server, a real client, a real plant that builds."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from config.schema import HttpConfig
from daemon.web.access import Access
from daemon.web.api import Api
from daemon.web.app import HttpServer, create_app
from daemon.web.page import Page
from tests.broker import wait_for
from tests.plant import TestPlant, picture


class Teaching:
    """The page and the API of a plant on a free port."""

    def __init__(self, plant: TestPlant, folder: Path, **http: Any) -> None:
        config = HttpConfig(port=0, **http)
        access = Access(config, folder / "x.toml")
        self.plant = plant
        self.page = Page(list, plant.ledger, plant.frames, plant.commands, access)
        self.page.teach.open(plant.shots, plant.builder.pending)
        routes = [Api(plant.commands, access, dict).mount(), *access.routes(), *self.page.routes()]
        self._server = HttpServer(config, create_app(lambda: b"", lambda: (True, {}), lambda: (True, {}), routes))
        self._server.start()
        self.http = httpx.Client(base_url=self._server.url, trust_env=False, timeout=20)
        wait_for(self._serves, "the server")

    def _serves(self) -> bool:
        try:
            return self.http.get("/healthz").status_code == 200
        except httpx.ConnectError:
            return False

    def close(self) -> None:
        self.page.live.close()
        self.http.close()
        self._server.stop()


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
