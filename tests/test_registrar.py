"""daemon/registrar.py: shots stay what they were, and a damaged file costs itself only."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from config.errors import PictureError
from config.schema import RecipeConfig, Region
from daemon.ledger import Ledger
from daemon.presets import load_preset
from daemon.registrar import Registrar, pixel_hash
from daemon.station import Taught, Untaught
from model.detector import Detector
from model.features import create_extractor
from tests.parts import draw_part, write_parts

RECIPE = RecipeConfig(name="disc", object="disc")


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector(create_extractor(load_preset("efficientnet-lite0", Path()), runtime="torch"))


@pytest.fixture
def registrar(tmp_path: Path, detector: Detector) -> Iterator[Registrar]:
    ledger = Ledger(tmp_path / "state")
    yield Registrar(tmp_path / "state", ledger, detector)
    ledger.close()


def quiet(what: str, done: int, total: int) -> None:
    """No progress shown."""


def teach(registrar: Registrar) -> Taught:
    taught = registrar.teach(RECIPE, quiet)
    assert isinstance(taught, Taught)
    return taught


def test_the_same_pixels_twice_are_one_shot_and_the_original_file_is_kept(tmp_path: Path, registrar: Registrar) -> None:
    [picture] = write_parts(tmp_path / "in", range(1))
    again = tmp_path / "again.png"
    again.write_bytes(picture.read_bytes())
    first, second = registrar.register(RECIPE, picture), registrar.register(RECIPE, again)
    assert (first.new, second.new) == (True, False)
    assert first.shot == second.shot == pixel_hash(draw_part(0))
    [stored] = (tmp_path / "state" / "recipes" / "disc" / "shots").iterdir()
    assert stored.read_bytes() == picture.read_bytes()


def test_a_stored_shot_that_vanished_is_stored_again(tmp_path: Path, registrar: Registrar) -> None:
    [picture] = write_parts(tmp_path / "in", range(1))
    registrar.register(RECIPE, picture)
    [stored] = (tmp_path / "state" / "recipes" / "disc" / "shots").iterdir()
    stored.unlink()
    assert not registrar.register(RECIPE, picture).new
    assert stored.read_bytes() == picture.read_bytes()
    assert len(registrar.shots("disc")) == 1


def test_a_damaged_stored_shot_is_left_out_and_the_others_make_the_bank(tmp_path: Path, registrar: Registrar) -> None:
    for picture in write_parts(tmp_path / "in", range(5)):
        registrar.register(RECIPE, picture)
    damaged = registrar.shots("disc")[2]
    (tmp_path / "state" / "recipes" / "disc" / "shots" / damaged.file).write_bytes(b"")
    taught = teach(registrar)
    assert taught.calibration.shots == 4
    assert damaged.shot not in taught.bank.manifest.shots


def test_a_damaged_bank_that_no_row_knows_is_replaced(tmp_path: Path, registrar: Registrar) -> None:
    for picture in write_parts(tmp_path / "in", range(3)):
        registrar.register(RECIPE, picture)
    folder = tmp_path / "state" / "recipes" / "disc" / "banks" / teach(registrar).bank.name
    registrar._ledger.call(lambda connection: connection.execute("DELETE FROM banks")).result()
    (folder / "bank.safetensors").write_bytes(b"half")
    first = teach(registrar)
    assert len((folder / "bank.safetensors").read_bytes()) > 1_000
    assert teach(registrar).calibration == first.calibration


def test_a_picture_that_does_not_hold_the_region_is_refused(tmp_path: Path, registrar: Registrar) -> None:
    [picture] = write_parts(tmp_path / "in", range(1))
    recipe = RecipeConfig(name="disc", object="disc", region=Region(x=200, y=0, width=100, height=100))
    with pytest.raises(PictureError, match=r"256 x 256 pixels do not hold the region x=200 y=0 100 x 100"):
        registrar.register(recipe, picture)


def test_without_shots_there_is_no_bank(registrar: Registrar) -> None:
    assert isinstance(registrar.teach(RECIPE, quiet), Untaught)
