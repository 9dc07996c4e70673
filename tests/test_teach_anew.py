"""daemon/builder.py: recipes whose settings in the configuration file are others now."""

import pytest

from config.errors import PictureError
from config.schema import Region
from daemon.station import Program
from tests.plant import MakePlant


def test_other_settings_of_a_recipe_judge_together_with_the_bank_that_fits_them(make: MakePlant) -> None:
    plant = make()
    plant.teach("disc", 1, 2)
    before = plant.station.program
    assert before.recipe.region is None
    region = Region(x=64, y=64, width=128, height=128)
    own = before.recipe.model_copy(update={"region": region})
    plant.store.put(own)
    steps: list[Program] = []

    def progress(_what: str, _done: int, _total: int) -> None:
        steps.append(plant.station.program)

    plant.builder.teach_anew(own, progress)
    assert steps
    assert all(program is before for program in steps), "the old settings judge until the new bank is there"
    after = plant.station.program
    assert after.recipe == own
    assert after.bank is not None
    assert after.bank.manifest.region == (64, 64, 128, 128)
    assert plant.builder.taught("disc") is after.taught

    # A threshold of the file needs no build.
    set_ = own.model_copy(update={"threshold": 0.25})
    plant.store.put(set_)
    steps.clear()
    plant.builder.teach_anew(set_, progress)
    assert (steps, plant.station.program.threshold) == ([], 0.25)
    assert plant.station.program.bank is not None
    assert plant.station.program.bank.hash == after.bank.hash


def test_settings_that_cannot_be_taught_leave_those_that_judge(make: MakePlant) -> None:
    plant = make()
    plant.teach("disc", 1, 2)
    before = plant.station.program
    outside = before.recipe.model_copy(update={"region": Region(x=200, y=200, width=128, height=128)})
    plant.store.put(outside)
    with pytest.raises(PictureError):
        plant.builder.teach_anew(outside, lambda *_: None)
    assert plant.station.program is before
