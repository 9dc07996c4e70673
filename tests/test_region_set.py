"""The command region_set: what judges before, meanwhile and after, what is refused, and what a restart keeps."""

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from config.errors import CommandError
from config.schema import RecipeConfig, Region
from daemon.marks import Scorer
from daemon.recipe_store import RecipeStore
from daemon.station import Taught
from model.calibration import Calibration
from model.detector import Detector
from model.features import create_extractor
from tests.frames import frame
from tests.parts import draw_part, png
from tests.plant import RECIPES, MakePlant, TestPlant, picture
from tests.school import PixelExtractor
from tests.tiny_clip import clip_state, linear_state, tiny_spec

UPPER = {"x": 0, "y": 0, "width": 256, "height": 100}
LEFT = {"x": 0, "y": 0, "width": 120, "height": 256}


class Gate:
    """Holds builds after their first shot while it is shut."""

    def __init__(self) -> None:
        self.entered, self._go = threading.Event(), threading.Event()
        self._go.set()

    def __call__(self, step: str) -> None:
        if step == "features_stored" and not self._go.is_set():
            self.entered.set()
            assert self._go.wait(20)

    def shut(self) -> None:
        self.entered.clear()
        self._go.clear()

    def open(self) -> None:
        self._go.set()


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()


def refused(plant: TestPlant, name: str, request: dict[str, Any]) -> str:
    with pytest.raises(CommandError) as caught:
        plant.run(name, request)
    assert caught.value.code == "refused"
    return str(caught.value)


def fits(plant: TestPlant) -> tuple[int, int, int, int] | None:
    """The region by which the station's frames are cropped, which is its bank's."""
    program = plant.station.program
    assert program.bank is not None
    region = program.region
    box = (region.x, region.y, region.width, region.height) if region else None
    assert program.bank.manifest.region == box
    return box


def set_(plant: TestPlant, region: dict[str, int] | None, recipe: str = "disc") -> str:
    answer = plant.run("region_set", {"recipe": recipe, "region": region})
    assert (answer["recipe"], answer["station"]) == (recipe, None)
    return str(answer["build"])


def test_region_and_bank_change_together_when_the_bank_of_the_new_region_stands(make: MakePlant, gate: Gate) -> None:
    plant = make(at=gate)
    plant.teach("disc", 1, 2, 3)
    before = plant.station.program
    assert fits(plant) is None
    plant.told.clear()
    gate.shut()
    build = set_(plant, UPPER)
    assert gate.entered.wait(10)
    assert plant.station.program is before
    assert plant.listed()["disc"]["region"] == UPPER
    # Nothing else that gives the station a program mixes the two.
    plant.run("threshold_set", {"recipe": "disc", "factor": 1.5})
    assert (fits(plant), plant.station.program.bank) == (None, before.bank)
    gate.open()
    plant.built(build)
    assert fits(plant) == (0, 0, 256, 100)
    assert plant.station.program.bank is not before.bank
    assert [program.region and program.region.height for program in plant.told] == [None, 100]
    # Back to its own, whose bank is kept: nothing is encoded again.
    assert isinstance(plant.detector.extractor, PixelExtractor)
    encoded = plant.detector.extractor.encoded
    plant.built(plant.run("region_set", {"station": "press"})["build"])
    assert (fits(plant), plant.listed()["disc"]["region"], plant.detector.extractor.encoded) == (None, None, encoded)
    assert plant.station.program.bank is not None
    assert before.bank is not None
    assert plant.station.program.bank.hash == before.bank.hash


def test_a_station_that_selects_the_recipe_meanwhile_has_the_old_region_with_the_old_bank(make: MakePlant, gate: Gate) -> None:
    plant = make(at=gate)
    plant.teach("ring", 1)
    plant.teach("disc", 1, 2)
    gate.shut()
    build = set_(plant, UPPER)
    assert gate.entered.wait(10)
    plant.programs.give("press", plant.store.get("disc"), plant.builder.judging)
    assert fits(plant) is None
    gate.open()
    plant.built(build)
    assert fits(plant) == (0, 0, 256, 100)


def test_a_picture_that_comes_meanwhile_is_looked_at_by_the_region_whose_bank_judges(make: MakePlant, gate: Gate) -> None:
    plant = make(at=gate)
    plant.teach("disc", 1, 2, 3)
    gate.shut()
    set_(plant, {"x": 90, "y": 90, "width": 76, "height": 76})
    assert gate.entered.wait(10)
    [shot] = plant.run("register", {"recipe": "disc"}, picture(4))["shots"]
    assert shot["held"] is None
    odd = draw_part(5)
    odd[:80] = 240 * (np.indices((80, 256)) // 8).sum(0) % 480  # edges outside the new region
    [shot] = plant.run("register", {"recipe": "disc"}, png(odd))["shots"]
    taught = plant.taught["disc"]
    assert isinstance(taught, Taught)
    assert shot["held"] is not None
    assert shot["held"]["score"] == float(plant.builder.judge(odd, taught.reference).scores[0])


def test_what_a_frame_or_a_shot_does_not_hold_is_refused_and_changes_nothing(make: MakePlant) -> None:
    plant = make()
    plant.teach("disc", 1, 2)
    before = plant.station.program
    wide = {"x": 0, "y": 0, "width": 257, "height": 100}
    reason = refused(plant, "region_set", {"recipe": "disc", "region": wide})
    assert reason.startswith("shot ")
    assert "has 256 x 256 pixels, and does not hold the region x=0 y=0 width=257 height=100. Draw it within every shot" in reason
    plant.frames.see("press", frame(draw_part(1)[:90]), 16)
    reason = refused(plant, "region_set", {"station": "press", "region": UPPER})
    assert reason.startswith("the newest frame of station press has 256 x 90 pixels, and does not hold the region")
    # A recipe that the station does not have is none of its frames' business.
    plant.run("region_set", {"recipe": "ring", "region": UPPER})
    with pytest.raises(CommandError, match=r"region_set\.region\.width: input should be greater than or equal to 16") as caught:
        plant.run("region_set", {"recipe": "disc", "region": {**UPPER, "width": 15}})
    assert caught.value.code == "malformed"
    assert plant.station.program is before
    assert plant.listed()["disc"]["region"] is None
    assert plant.builder.pending("disc") is None


def test_the_way_back_is_refused_where_the_recipes_own_region_does_not_fit(make: MakePlant) -> None:
    plant = make()
    plant.run("recipe_create", {"recipe": "bolt", "object": "bolt", "region": {"x": 0, "y": 0, "width": 300, "height": 300}})
    assert plant.run("region_set", {"recipe": "bolt", "region": UPPER})["build"] is None
    plant.teach("bolt", 1)
    assert "300" in refused(plant, "region_set", {"recipe": "bolt"})
    assert plant.listed()["bolt"]["region"] == UPPER


def test_a_build_that_fails_leaves_region_and_bank_as_they_were(make: MakePlant, caplog: pytest.LogCaptureFixture) -> None:
    plant = make()
    plant.teach("disc", 1, 2)
    before = plant.station.program
    for shot in (plant.state / "recipes" / "disc" / "shots").iterdir():
        shot.write_bytes(b"damaged")
    plant.built(set_(plant, UPPER))
    assert plant.station.program is before
    assert "recipe disc: build failed, the old bank goes on: recipe disc: none of its 2 shots can be used" in caplog.text
    plant.built(set_(plant, None))
    assert fits(plant) is None


def test_it_survives_a_restart_and_another_region_in_the_file(make: MakePlant) -> None:
    plant = make()
    plant.teach("disc", 1, 2)
    plant.built(set_(plant, UPPER))
    bank = plant.station.program.bank
    plant.close()
    again = make()
    again.teacher.start(again.store.get("disc"), lambda *_: None)
    assert fits(again) == (0, 0, 256, 100)
    assert bank is not None
    assert again.station.program.bank is not None
    assert again.station.program.bank.hash == bank.hash
    # As a reload does.
    own = RecipeConfig(name="disc", object="disc", region=Region(**LEFT))
    again.store.put(own)
    assert again.store.get("disc").region == Region(**UPPER)
    again.built(set_(again, None))
    assert fits(again) == (0, 0, 120, 256)


def test_a_restart_before_the_bank_stands_judges_as_before_until_it_does(make: MakePlant, gate: Gate) -> None:
    plant = make()
    plant.teach("disc", 1, 2)
    before = plant.station.program
    plant.builder.stop()
    set_(plant, UPPER)
    plant.close()
    again = make(at=gate)
    gate.shut()
    again.teacher.start(again.store.get("disc"), lambda *_: None)
    assert gate.entered.wait(10)
    assert (fits(again), again.station.program.threshold) == (None, before.threshold)
    build = again.builder.pending("disc")
    gate.open()
    again.built(build)
    assert fits(again) == (0, 0, 256, 100)


def test_a_restart_after_a_build_that_failed_judges_as_before(make: MakePlant, caplog: pytest.LogCaptureFixture) -> None:
    plant = make()
    plant.teach("disc", 1, 2)
    for shot in (plant.state / "recipes" / "disc" / "shots").iterdir():
        shot.write_bytes(b"damaged")
    plant.built(set_(plant, UPPER))
    before = plant.station.program
    plant.close()
    again = make()
    caplog.clear()
    again.teacher.start(again.store.get("disc"), lambda *_: None)
    if (build := again.builder.pending("disc")) is not None:
        again.built(build)
    assert "recipe disc: build failed, the old bank goes on" in caplog.text
    assert (fits(again), again.station.program.threshold) == (None, before.threshold)
    # Marks move its threshold still, by pictures of its own region.
    sizes: list[tuple[int, ...]] = []

    def refine(_recipe: str, calibration: Calibration, _key: str, scorer: Scorer) -> None:
        picture = draw_part(9)
        sizes.append(picture.shape)
        taught = again.builder.taught("disc")
        assert taught is not None
        assert scorer(picture) == float(again.builder.judge(picture, calibration.apply(taught.reference)).scores[0])

    again.refine = refine
    caplog.clear()
    again.built(again.builder.refine("disc"))
    assert sizes
    assert "build failed" not in caplog.text


def test_another_region_in_the_file_at_a_start_waits_for_its_bank_too(make: MakePlant, gate: Gate) -> None:
    plant = make()
    plant.teach("disc", 1, 2)
    plant.close()
    again = make(at=gate)
    again.store.put(RecipeConfig(name="disc", object="disc", region=Region(**LEFT)))
    gate.shut()
    again.teacher.start(again.store.get("disc"), lambda *_: None)
    assert gate.entered.wait(10)
    assert fits(again) is None
    build = again.builder.pending("disc")
    gate.open()
    again.built(build)
    assert fits(again) == (0, 0, 120, 256)


def test_a_region_set_after_a_rollback_is_built_after_a_restart(make: MakePlant) -> None:
    plant = make()
    plant.teach("disc", 1, 2)
    plant.teach("disc", 3)
    plant.run("rollback", {"recipe": "disc"})
    plant.builder.stop()
    set_(plant, UPPER)
    plant.close()
    again = make()
    again.teacher.start(again.store.get("disc"), lambda *_: None)
    if (build := again.builder.pending("disc")) is not None:
        again.built(build)
    assert fits(again) == (0, 0, 256, 100)


def test_a_picture_for_a_recipe_that_no_station_has_is_looked_at_meanwhile_too(make: MakePlant, gate: Gate) -> None:
    plant = make(at=gate)
    plant.teach("ring", 1, 2, 3)
    plant.builder.drop_unused()
    assert plant.builder.taught("ring") is None
    gate.shut()
    set_(plant, UPPER, "ring")
    assert gate.entered.wait(10)
    [shot] = plant.run("register", {"recipe": "ring"}, picture(4))["shots"]
    assert shot["held"] is None
    odd = draw_part(5)
    odd[150:] = 240 * (np.indices((106, 256)) // 8).sum(0) % 480  # edges outside the new region
    [shot] = plant.run("register", {"recipe": "ring"}, png(odd))["shots"]
    assert shot["held"] is not None


def test_a_region_that_is_set_while_a_reload_teaches_the_recipe_is_not_lost(make: MakePlant, tmp_path: Path) -> None:
    plant = make()
    plant.teach("disc", 1, 2)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "a.png").write_bytes(picture(3))
    plant.store.put(RecipeConfig(name="disc", object="disc", shots=pictures, region=Region(**LEFT)))
    read = plant.store.get("disc")
    asked: list[str] = []

    def progress(_what: str, _done: int, _total: int) -> None:
        if not asked:  # the folder's pictures are being read
            asked.append(set_(plant, UPPER))

    plant.teacher.start_anew(read, progress)
    assert asked
    assert fits(plant) == (0, 0, 256, 100)
    plant.built(asked[0])
    assert fits(plant) == (0, 0, 256, 100)
    assert plant.builder.pending("disc") is None


def test_a_rollback_to_a_bank_of_another_region_is_refused_and_says_which(make: MakePlant) -> None:
    plant = make()
    plant.teach("disc", 1, 2)
    plant.built(set_(plant, UPPER))
    after = plant.station.program
    message = refused(plant, "rollback", {"recipe": "disc"})
    assert "is of another region of interest (the whole frame). Set that region, and the bank judges again" in message
    assert plant.station.program is after
    plant.built(set_(plant, LEFT))
    assert "(0,0,256,100)" in refused(plant, "rollback", {"recipe": "disc"})
    # Of the same region it is what it was.
    plant.teach("disc", 3)
    assert plant.run("rollback", {"recipe": "disc"})["bank"]["shots"] == 2
    assert fits(plant) == (0, 0, 120, 256)


def test_a_copy_and_an_exported_file_have_it_as_their_own_and_it_goes_with_the_recipe(make: MakePlant, tmp_path: Path) -> None:
    plant = make()
    plant.run("recipe_create", {"recipe": "bolt", "object": "bolt", "region": LEFT})
    plant.teach("bolt", 1, 2)
    plant.built(set_(plant, UPPER, "bolt"))
    plant.built(plant.run("recipe_copy", {"recipe": "bolt", "to": "nut"})["build"])
    plant.built(plant.run("recipe_import", {"recipe": "pin"}, plant.commands.export("bolt"))["build"])
    set_(plant, None, "bolt")
    plant.run("region_set", {"recipe": "nut"})
    listed = plant.listed()
    assert [listed[name]["region"] for name in ("bolt", "nut", "pin")] == [LEFT, UPPER, UPPER]
    assert listed["nut"]["bank"] == listed["pin"]["bank"]
    plant.built(set_(plant, UPPER, "bolt"))
    plant.run("recipe_delete", {"recipe": "bolt"})
    plant.run("recipe_create", {"recipe": "bolt", "object": "bolt"})
    assert plant.listed()["bolt"]["region"] is None
    plant.close()
    store = RecipeStore(plant.state, make().ledger, list(RECIPES.values()), {"press": "disc"})
    assert store.get("bolt").region is None


def test_words_alone_change_without_a_bank(tmp_path: Path) -> None:
    plant = TestPlant(tmp_path, Detector(create_extractor(tiny_spec(tmp_path, clip_state(), linear_state()))))
    plant.built(plant.run("recipe_create", {"recipe": "bolt", "object": "bolt", "mode": "zero_shot"})["build"])
    plant.select("bolt")
    whole = plant.station.program
    plant.built(set_(plant, UPPER, "bolt"))
    program = plant.station.program
    assert (whole.region, program.region, program.bank) == (None, Region(**UPPER), None)
    # Shots calibrate words, those of one region no other.
    plant.teach("bolt", 1, 2)
    program = plant.station.program
    plant.built(set_(plant, LEFT, "bolt"))
    assert plant.station.program.region == Region(**LEFT)
    assert plant.station.program.threshold != program.threshold
    left = plant.station.program
    plant.builder.stop()
    set_(plant, UPPER, "bolt")
    plant.close()
    again = TestPlant(tmp_path, plant.detector)
    taught = again.builder.load_current(again.store.get("bolt"))
    assert taught is not None
    assert (taught.region, taught.calibration.threshold) == (Region(**LEFT), left.threshold)
    again.builder.catch_up(again.store.get("bolt"))
    if (build := again.builder.pending("bolt")) is not None:
        again.built(build)
    taught = again.builder.taught("bolt")
    assert taught is not None
    assert taught.region == Region(**UPPER)
    again.close()


def test_a_calibration_of_words_that_names_no_region_is_made_again(tmp_path: Path) -> None:
    plant = TestPlant(tmp_path, Detector(create_extractor(tiny_spec(tmp_path, clip_state(), linear_state()))))
    plant.built(plant.run("recipe_create", {"recipe": "bolt", "object": "bolt", "mode": "zero_shot"})["build"])
    plant.teach("bolt", 1, 2)
    recipe = plant.store.get("bolt")
    assert plant.builder.load_current(recipe) is not None

    def as_before(connection: sqlite3.Connection) -> None:
        connection.execute("UPDATE banks SET calibration = json_remove(calibration, '$.basis.region')")

    plant.ledger.ask(as_before, durable=True)
    assert plant.builder.load_current(recipe) is None
    plant.close()
