"""What the tests share."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from playwright.sync_api import Browser

from daemon.presets import load_preset
from daemon.station import Taught
from model.bank import build_bank
from model.calibration import Calibration
from model.detector import Detector, Reference
from model.features import PatchFeatures, create_extractor
from tests import accessibility
from tests.broker import Broker
from tests.browser import chromium as started_chromium
from tests.plant import MakePlant, TestPlant
from tests.school import PixelExtractor

# cameras

# Read by pylon once, when devices are first enumerated.
os.environ["PYLON_CAMEMU"] = "2"

COLOURS = ((200, 100, 30), (10, 20, 240), (90, 250, 60))  # RGB; each channel differs, so that swapped ones are seen
DrawPictures = Callable[..., Path]


@pytest.fixture
def draw_pictures(tmp_path: Path) -> DrawPictures:
    """A function that makes a folder of flat pictures, `00.png` ... in the COLOURS, one after the other."""

    def draw(count: int = 3, *, width: int = 64, height: int = 48, folder: str = "pictures") -> Path:
        target = tmp_path / folder
        target.mkdir(exist_ok=True)
        for index in range(count):
            picture = np.full((height, width, 3), COLOURS[index % 3][::-1], np.uint8)
            cv2.imwrite(str(target / f"{index:02}.png"), picture)
        return target

    return draw


# model


@pytest.fixture(scope="session")
def taught() -> Taught:
    """A small real bank, and a threshold of 0.5."""
    bank = build_bank(
        PatchFeatures((torch.ones(2, 1, 1),), ((1, 1),)),
        fingerprint={"made_by": "the tests"},
        shots=("a" * 64, "b" * 64),
    )
    return Taught(Reference(bank), Calibration(0.5, 0.5, (0.1, 0.1), (0.0, 0.0), True, "register 6 more"))


@pytest.fixture(scope="session")
def shipped_detector() -> Detector:
    """The default preset, run by torch."""
    return Detector(create_extractor(load_preset("efficientnet-lite0", Path()), runtime="torch"))


@pytest.fixture
def plant(tmp_path: Path, shipped_detector: Detector) -> Iterator[TestPlant]:
    """Commands with the real parts behind them."""
    plant = TestPlant(tmp_path, shipped_detector)
    yield plant
    plant.close()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[MakePlant]:
    """Plants of one folder, one after the other, with a model that costs next to nothing."""
    plants: list[TestPlant] = []

    def make(**options: Any) -> TestPlant:
        plants.append(TestPlant(tmp_path, Detector(PixelExtractor()), **options))
        return plants[-1]

    yield make
    for plant in plants:
        if plant.ledger._thread.is_alive():
            plant.close()


# mqtt


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    """A mosquitto of the test's own."""
    broker = Broker(tmp_path)
    broker.start()
    yield broker
    broker.kill()


# browser


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """One for all tests of a worker; `tests.browser.window` gives each a page of its own."""
    with started_chromium() as browser:
        yield browser


@pytest.fixture(scope="session")
def axe() -> str:
    """The source of axe-core, for tests of which it is all that they do."""
    try:
        return accessibility.axe()
    except OSError as error:
        pytest.skip(f"axe-core cannot be installed: {error}")
