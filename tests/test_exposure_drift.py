"""daemon/exposure_drift.py: what a light meter says of frames against shots, and that nobody waits for it."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from config.schema import RecipeConfig, Region, StationConfig
from daemon.exposure_drift import ENOUGH, WAITING, ExposureDrift, measure, sample
from daemon.ledger import Ledger
from daemon.shots import Shots, pixel_hash
from daemon.station import Program, Station, Taught
from tests.bench import bench_frame
from tests.broker import wait_for
from tests.parts import draw_part

Pixels = NDArray[np.uint8]


def brighter(pixels: Pixels, by: int) -> Pixels:
    return np.clip(pixels.astype(np.int16) + by, 0, 255).astype(np.uint8)


def blurred(pixels: Pixels) -> Pixels:
    return np.asarray(cv2.GaussianBlur(pixels, (0, 0), 2.0), np.uint8)


class Meter:
    """A station, its recipe's shots on the disk, and the drift of its frames."""

    def __init__(self, folder: Path, taught: Taught, shots: int = 6, region: Region | None = None) -> None:
        self.ledger = Ledger(folder)
        self.shots = Shots(folder, self.ledger)
        for seed in range(100, 100 + shots):
            pixels = draw_part(seed)
            data = cv2.imencode(".png", pixels)[1].tobytes()
            self.shots.add("disc", pixel_hash(pixels), data, pixels.shape[1], pixels.shape[0])
        self.skipped = 0
        recipe = RecipeConfig(name="disc", object="disc", region=region)
        config = StationConfig(name="press", camera="cam", recipe="disc")
        self.station = Station(config, Program(recipe, replace(taught, region=region)), True, lambda _: None)
        self.stations = {"press": self.station}
        self.drift = ExposureDrift(self.stations, self.shots, self._skip, every_s=0.0)
        self._number = 0

    def _skip(self) -> None:
        self.skipped += 1

    def see(self, pixels: Pixels) -> None:
        self._number += 1
        self.drift.see("press", replace(bench_frame(self._number, pixels), arrived_s=time.monotonic()))

    def told(self) -> dict[str, float]:
        assert all(labels[0] == "press" for _, labels, _ in self.drift.readings())
        return {labels[1]: value for _, labels, value in self.drift.readings()}

    def measured(self, pixels: list[Pixels]) -> dict[str, float]:
        """What is told once all of these were measured."""
        wanted = self._count() + len(pixels)
        for own in pixels:
            self.see(own)
        wait_for(lambda: self._count() == wanted, "all measures")
        return self.told()

    def _count(self) -> int:
        seen = self.drift._seen.get("press")
        return len(seen.recent) if seen is not None else 0

    def close(self) -> None:
        self.drift.close()
        self.ledger.close()


@pytest.fixture
def meter(tmp_path: Path, taught: Taught) -> Iterator[Meter]:
    meter = Meter(tmp_path, taught)
    yield meter
    meter.close()


def test_frames_like_the_shots_are_near_zero_and_nothing_is_told_before_there_are_enough(meter: Meter) -> None:
    assert meter.measured([draw_part(seed) for seed in range(ENOUGH - 1)]) == {}
    told = meter.measured([draw_part(50)])
    assert set(told) == {"mean", "saturation", "focus"}
    assert all(abs(value) < 2 for value in told.values()), told


def test_darker_overexposed_and_blurred_frames_are_told_apart(tmp_path: Path, taught: Taught) -> None:
    told = {}
    for name, change in {
        "dark": lambda own: brighter(own, -30),
        "over": lambda own: brighter(own, 120),
        "blur": blurred,
    }.items():
        meter = Meter(tmp_path / name, taught)
        told[name] = meter.measured([change(draw_part(seed)) for seed in range(ENOUGH)])
        meter.close()
    assert told["dark"]["mean"] < -6
    assert abs(told["dark"]["saturation"]) < 1
    assert told["over"]["mean"] > 6
    assert told["over"]["saturation"] > 6
    assert told["blur"]["focus"] < -6
    assert abs(told["blur"]["mean"]) < 2


def test_one_odd_frame_moves_nothing(meter: Meter) -> None:
    before = meter.measured([draw_part(seed) for seed in range(ENOUGH + 5)])
    after = meter.measured([np.zeros_like(draw_part(1))])
    assert after == pytest.approx(before, abs=0.5)


def test_another_bank_starts_anew(meter: Meter, taught: Taught) -> None:
    assert meter.measured([draw_part(seed) for seed in range(ENOUGH)])
    other = RecipeConfig(name="ring", object="ring")
    meter.station.program = Program(other, taught)  # without shots
    meter.see(draw_part(1))
    wait_for(lambda: meter.told() == {}, "the other recipe")


def test_a_station_that_is_gone_is_not_told(meter: Meter) -> None:
    assert meter.measured([draw_part(seed) for seed in range(ENOUGH)])
    del meter.stations["press"]
    assert list(meter.drift.readings()) == []


def test_a_damaged_shot_is_left_out(tmp_path: Path, taught: Taught) -> None:
    meter = Meter(tmp_path, taught)
    first, *_ = sorted(meter.shots.folder("disc").iterdir())
    first.write_bytes(b"no picture")
    assert meter.measured([draw_part(seed) for seed in range(ENOUGH)])
    meter.close()


def test_a_camera_never_waits_and_no_frame_is_kept(meter: Meter, taught: Taught) -> None:
    held = meter.ledger
    with meter.shots.storing:
        pass
    blocker = held.call(lambda _: time.sleep(1.5))  # reading the shots waits for the ledger's thread
    pixels = np.random.default_rng(1).integers(0, 256, (1200, 1600, 3), np.uint8)
    started_s = time.monotonic()
    for _ in range(WAITING + 20):
        meter.see(pixels)
    assert time.monotonic() - started_s < 1.0
    assert not blocker.done()
    assert meter.skipped >= 15
    taken = sample(pixels, None)
    assert taken is not None
    assert not any(np.shares_memory(own, pixels) for own in (taken.coarse, *taken.tiles))
    assert taken.coarse.nbytes + sum(own.nbytes for own in taken.tiles) < 600_000


def test_only_the_region_counts_and_one_outside_the_frame_is_passed_over() -> None:
    pixels = np.zeros((200, 300, 3), np.uint8)
    pixels[50:100, 100:200] = 255
    inside = sample(pixels, Region(x=100, y=50, width=100, height=50))
    assert inside is not None
    assert measure(inside)[:2] == pytest.approx((255.0, 1.0), abs=1e-3)
    assert sample(pixels, Region(x=250, y=50, width=100, height=50)) is None
    assert sample(pixels[:2], None) is None


@pytest.mark.parametrize("shape", [(64, 48), (1000, 1300), (3000, 100), (5, 5, 3), (480, 640, 3)])
def test_measures_of_a_known_picture(shape: tuple[int, ...]) -> None:
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    board = np.where((rows + columns) % 2 == 0, 255, 0).astype(np.uint8)
    pixels = np.repeat(board[:, :, None], 3, 2) if len(shape) == 3 else board
    taken = sample(pixels, None)
    assert taken is not None
    _, _, focus = measure(taken)
    # A chessboard's Laplacian is 4 * 255 or -4 * 255 everywhere: the largest variance there is.
    assert focus == pytest.approx(2 * np.log(4 * 255), abs=0.05)
    flat = sample(np.full(shape, 77, np.uint8), None)
    assert flat is not None
    assert measure(flat) == pytest.approx((77.0, 0.0, np.log(0.01)), abs=1e-3)
