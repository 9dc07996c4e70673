"""daemon/registrar.py: shots stay what they were, and a damaged file costs itself only."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
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
from tests.tiny_clip import clip_state, linear_state, tiny_spec

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
    assert taught.bank is not None
    assert damaged.shot not in taught.bank.manifest.shots


def test_a_damaged_bank_that_no_row_knows_is_replaced(tmp_path: Path, registrar: Registrar) -> None:
    for picture in write_parts(tmp_path / "in", range(3)):
        registrar.register(RECIPE, picture)
    teach(registrar)
    [folder] = (tmp_path / "state" / "recipes" / "disc" / "banks").iterdir()
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


def test_a_bank_keeps_no_more_rows_than_configured_and_its_hash_says_so(tmp_path: Path, detector: Detector) -> None:
    told: list[tuple[str, int, int]] = []
    names = set()
    for rows in (500, 600):
        ledger = Ledger(tmp_path / "state")
        registrar = Registrar(tmp_path / "state", ledger, detector, bank_rows=rows)
        for picture in write_parts(tmp_path / "in", range(4)):
            registrar.register(RECIPE, picture)
        for _ in range(2):
            taught = registrar.teach(RECIPE, lambda *step: told.append(step))
            assert isinstance(taught, Taught)
            bank = taught.reference.bank
            assert bank is not None
            assert [len(layer) for layer in bank.layers] == [rows]
            names.add(bank.name)
        ledger.close()
    assert len(names) == 2
    choosing = [step for step in told if step[0] == "recipe disc: choosing rows" and step[1] == step[2]]
    assert choosing == [("recipe disc: choosing rows", rows, rows) for rows in (500, 600)]


def test_a_picture_smaller_than_a_patch_is_refused(tmp_path: Path, registrar: Registrar) -> None:
    assert cv2.imwrite(str(tmp_path / "dot.png"), np.zeros((40, 9), np.uint8))
    with pytest.raises(PictureError, match=r"dot\.png: 9 x 40 pixels, expected 16 x 16 or more"):
        registrar.register(RECIPE, tmp_path / "dot.png")


def test_without_shots_there_is_no_bank(registrar: Registrar) -> None:
    assert isinstance(registrar.teach(RECIPE, quiet), Untaught)


# modes of a CLIP


@pytest.fixture
def clip(tmp_path: Path) -> Iterator[Registrar]:
    ledger = Ledger(tmp_path / "state")
    spec = tiny_spec(tmp_path, clip_state(), linear_state())
    yield Registrar(tmp_path / "state", ledger, Detector(create_extractor(spec)))
    ledger.close()


def test_without_shots_words_judge_and_with_shots_both_unless_the_recipe_says(tmp_path: Path, clip: Registrar) -> None:
    words = clip.teach(RECIPE, quiet)
    assert isinstance(words, Taught)
    assert (words.mode, words.bank, words.calibration.shots) == ("zero_shot", None, 0)
    assert isinstance(clip.teach(RECIPE.model_copy(update={"mode": "both"}), quiet), Untaught)
    for picture in write_parts(tmp_path / "in", range(3)):
        clip.register(RECIPE, picture)
    thresholds = {}
    for mode, want in ((None, "both"), ("few_shot", "few_shot"), ("zero_shot", "zero_shot")):
        recipe = RECIPE.model_copy(update={"mode": mode})
        taught = clip.teach(recipe, quiet)
        assert isinstance(taught, Taught)
        assert (taught.mode, taught.calibration.shots) == (want, 3)
        assert (taught.bank is None) == (want == "zero_shot")
        assert taught.reference.image_weight == taught.calibration.image_weight
        thresholds[want] = taught.calibration.threshold
        again = clip.teach(recipe, fail_on_encoding)
        assert isinstance(again, Taught)
        assert (again.mode, again.calibration) == (want, taught.calibration)
    assert len(set(thresholds.values())) == 3


def fail_on_encoding(what: str, done: int, total: int) -> None:
    """Progress that must not be made."""
    assert "encoding reference shots" not in what


def test_another_name_is_calibrated_anew(tmp_path: Path, clip: Registrar) -> None:
    for picture in write_parts(tmp_path / "in", range(3)):
        clip.register(RECIPE, picture)
    one = clip.teach(RECIPE, quiet)
    two = clip.teach(RECIPE.model_copy(update={"object": "bottle"}), quiet)
    assert isinstance(one, Taught)
    assert isinstance(two, Taught)
    assert one.bank is not None
    assert two.bank is not None
    assert one.bank.hash == two.bank.hash
    assert one.calibration != two.calibration
