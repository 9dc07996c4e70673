"""daemon/overlays.py and overlay_picture.py: who is shown, how often, and what is to be seen."""

import time
import weakref
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from config.schema import RecipeConfig, Region, StationConfig
from daemon import overlays as overlays_module
from daemon.ledger import Record
from daemon.overlay_picture import DARK, OUTLINE, draw_overlay
from daemon.overlays import Overlays
from daemon.station import Taught
from model.regions import find_regions
from tests.bench import Bench, bench, defect_map
from tests.broker import wait_for
from tests.parts import draw_part

GOOD = np.full((64, 64), 0.1, np.float32)


class Panel:
    """An operator panel: what is published and what became of the pictures."""

    def __init__(self) -> None:
        self.shown: list[tuple[str, bytes]] = []
        self.outcomes: list[str] = []
        self.overlays = Overlays(
            lambda station, jpeg: self.shown.append((station, jpeg)), lambda _, outcome: self.outcomes.append(outcome)
        )

    def commit(self, *records: Record) -> None:
        self.overlays.committed([record.result for record in records])


def read(jpeg: bytes) -> NDArray[np.uint8]:
    picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    return picture.astype(np.uint8)


def panel_bench(taught: Taught, **options: Any) -> Any:
    panel = Panel()
    return panel, bench(taught, overlay=True, overlays=panel.overlays, **options)


def drawn(own: Bench, record: Record, mask: NDArray[np.uint8] | None) -> bytes:
    return draw_overlay(record.result, draw_part(1), mask, own.station.config.overlay_width)


def test_within_a_window_the_reject_is_shown_and_no_pass_takes_its_place(taught: Taught) -> None:
    panel, made = panel_bench(taught, overlay_max_hz=2.0)
    with made as own:
        started_s = time.monotonic()
        first = own.judge(GOOD)
        panel.commit(first)
        wait_for(lambda: len(panel.shown) == 1, "the first picture, at once")
        others = [own.judge(one) for one in (GOOD, defect_map(), GOOD)]
        panel.commit(*others)
        later = own.judge(GOOD)  # after the reject waits: not even copied
        panel.commit(later)
        wait_for(lambda: len(panel.shown) == 2, "the second picture")
        waited_s = time.monotonic() - started_s
        mask, _ = find_regions(defect_map(), 256, 256, 0.5)
        assert panel.shown == [("press", drawn(own, first, None)), ("press", drawn(own, others[1], mask))]
        assert waited_s >= 0.5
        # A line that stands still ends with its newest part.
        panel.commit(last := own.judge(GOOD))
        wait_for(lambda: len(panel.shown) == 3, "the newest part")
        assert panel.shown[2] == ("press", drawn(own, last, None))
    assert sorted(panel.outcomes) == ["published"] * 3 + ["replaced"] * 3
    panel.overlays.close()


def test_a_newer_reject_takes_an_older_ones_place_and_the_stop_shows_what_waits(taught: Taught) -> None:
    panel, made = panel_bench(taught, overlay_max_hz=0.01)
    with made as own:
        panel.commit(own.judge(GOOD))
        wait_for(lambda: len(panel.shown) == 1, "the first picture")
        panel.commit(own.judge(defect_map()), unknown := own.unknown("deadline", draw_part(1)))
        panel.overlays.close()
        assert panel.shown[1:] == [("press", drawn(own, unknown, None))]


def test_a_station_without_overlays_costs_nothing(taught: Taught) -> None:
    panel = Panel()
    with bench(taught, overlays=panel.overlays) as own:
        panel.commit(own.judge(defect_map()))
    panel.overlays.close()
    assert (panel.shown, panel.outcomes) == ([], [])


def test_the_camera_gets_its_pixels_back_while_a_picture_waits() -> None:
    panel = Panel()
    pixels = draw_part(1)
    alive = weakref.ref(pixels)
    config = StationConfig(name="press", camera="cam", recipe="disc", overlay=True)
    panel.overlays.hold("id", config, "fail", pixels, None, None)
    del pixels
    assert alive() is None
    panel.overlays.close()


def test_pictures_that_find_no_room_are_dropped_and_counted_and_what_is_released_makes_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(overlays_module, "HELD_BYTES", 2 * 256 * 256)
    panel = Panel()
    config = StationConfig(name="press", camera="cam", recipe="disc", overlay=True)
    for name in ("a", "b", "c"):
        panel.overlays.hold(name, config, "fail", draw_part(1), None, None)
    assert panel.outcomes == ["dropped"]
    panel.overlays.release("a")
    panel.overlays.hold("d", config, "fail", draw_part(1), None, None)
    assert panel.outcomes == ["dropped"]
    panel.overlays.close()


def test_a_picture_that_cannot_be_drawn_is_counted_and_the_next_one_comes(taught: Taught) -> None:
    panel, made = panel_bench(taught, overlay_max_hz=25.0)
    with made as own:
        panel.commit(own.unknown("unreadable", np.zeros((0, 0), np.uint8)))
        wait_for(lambda: panel.outcomes == ["failed"], "the failure")
        panel.commit(own.judge(GOOD))
        wait_for(lambda: panel.outcomes == ["failed", "published"], "the next picture")
    panel.overlays.close()


def test_the_outline_runs_around_the_mask_in_two_tones(taught: Taught) -> None:
    mask, _ = find_regions(defect_map(), 512, 512, 0.5)
    part = np.full((512, 512), 128, np.uint8)
    with bench(taught) as own:
        record = own.judge(defect_map(), part)
    picture = read(draw_overlay(record.result, part, mask, 512))[-512:].astype(int)
    framed = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)  # one defect is at the picture's border
    edge = cv2.morphologyEx(framed, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))[1:-1, 1:-1] != 0
    near = cv2.dilate(edge.astype(np.uint8), np.ones((41, 41), np.uint8)) != 0  # JPEG keeps colour in blocks of 16
    near[:16] = True  # the banner's colour
    light = np.abs(picture - OUTLINE).max(axis=2) < 90
    dark = np.abs(picture - DARK).max(axis=2) < 60
    assert np.count_nonzero(light & near) > 0.5 * np.count_nonzero(edge)
    assert np.count_nonzero(dark & near) > 0.5 * np.count_nonzero(edge)
    assert np.abs(picture - 128)[~near].max() < 10  # the rest of the part is left as it was


def test_verdicts_are_told_apart_without_colour(taught: Taught) -> None:
    with bench(taught) as own:
        records = [own.judge(GOOD), own.judge(defect_map()), own.unknown("no_frame")]
    words = [read(draw_overlay(record.result, None, None, 640))[:60, :200] for record in records]
    inks = [(word.max(axis=2) < 100) for word in words]
    assert all(np.count_nonzero(ink) > 500 for ink in inks)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert np.count_nonzero(inks[one] != inks[other]) > 300


@pytest.mark.parametrize("size", [(2000, 40), (40, 2000), (1, 1), (1536, 2048)])
@pytest.mark.parametrize("colour", [False, True])
def test_every_picture_is_as_wide_as_asked_for(taught: Taught, size: tuple[int, int], colour: bool) -> None:
    with bench(taught) as own:
        record = own.judge(GOOD)
    pixels = np.full((*size, 3) if colour else size, 90, np.uint8)
    height, width = read(draw_overlay(record.result, pixels, None, 400)).shape[:2]
    assert width == 400
    assert height <= 400 + 38


def test_colours_are_those_of_the_part(taught: Taught) -> None:
    with bench(taught) as own:
        record = own.judge(GOOD)
    red = np.zeros((300, 300, 3), np.uint8)
    red[:, :, 0] = 220  # RGB
    blue, green, seen = read(draw_overlay(record.result, red, None, 400))[250, 200]
    assert (int(seen) > 200, int(green) < 30, int(blue) < 30) == (True, True, True)


def test_what_is_inspected_is_shown(taught: Taught) -> None:
    recipe = RecipeConfig(name="disc", object="disc", region=Region(x=200, y=0, width=40, height=40))
    panel, made = panel_bench(replace(taught, region=recipe.region), recipe=recipe, overlay_width=320)
    pixels = np.zeros((256, 256), np.uint8)
    pixels[:40, 200:240] = 250
    with made as own:
        panel.commit(own.judge(GOOD, pixels))
        wait_for(lambda: len(panel.shown) == 1, "the picture")
    assert read(panel.shown[0][1])[-300:].min() > 240
    panel.overlays.close()
