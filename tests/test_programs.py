"""daemon/programs.py: what a station inspects by after swaps, selects and thresholds, one after the other and at once."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

import pytest

from daemon.station import Taught, Untaught
from tests.plant import MakePlant


def test_a_factor_follows_every_new_bank(make: MakePlant) -> None:
    plant = make()
    plant.teach("disc", 1, 2)
    plant.select("disc")
    calibrated = plant.station.program.threshold
    assert calibrated is not None
    answer = plant.run("threshold_set", {"station": "press", "factor": 1.5})
    assert answer == {"recipe": "disc", "threshold": pytest.approx(1.5 * calibrated), "stale": False}
    assert plant.station.program.threshold == answer["threshold"]
    plant.teach("disc", 3)
    taught = plant.taught["disc"]
    assert isinstance(taught, Taught)
    assert taught.calibration.threshold != calibrated
    assert plant.station.program.threshold == pytest.approx(1.5 * taught.calibration.threshold)
    plant.run("threshold_set", {"station": "press"})
    assert plant.station.program.threshold == taught.calibration.threshold


def test_an_absolute_threshold_stays_in_force_is_stale_under_another_bank_and_fresh_after_the_rollback(
    make: MakePlant,
) -> None:
    plant = make()
    plant.teach("disc", 1, 2)
    plant.select("disc")
    plant.events.clear()
    assert plant.run("threshold_set", {"recipe": "disc", "threshold": 0.8}) == {
        "recipe": "disc",
        "threshold": 0.8,
        "stale": False,
    }
    old = plant.station.program
    assert (old.threshold, old.threshold_stale, plant.events) == (0.8, False, [])
    plant.teach("disc", 3)
    new = plant.station.program
    assert (new.threshold, new.threshold_stale) == (0.8, True)
    [(recipe, kind, detail)] = plant.events
    assert (recipe, kind, detail["threshold"]) == ("disc", "threshold_stale", 0.8)
    assert old.calibration is not None
    assert new.calibration is not None
    assert detail["calibrated_then"] == old.calibration.threshold
    assert detail["calibrated_now"] == new.calibration.threshold
    assert plant.listed()["disc"]["threshold_stale"]
    plant.run("rollback", {"recipe": "disc"})
    assert not plant.station.program.threshold_stale
    assert not plant.listed()["disc"]["threshold_stale"]
    plant.built(plant.run("rebuild", {"recipe": "disc"})["build"])
    assert plant.station.program.threshold_stale
    plant.run("threshold_set", {"recipe": "disc", "threshold": 0.8})
    assert not plant.station.program.threshold_stale
    plant.close()
    again = make()
    assert not again.listed()["disc"]["threshold_stale"]
    again.builder.load_current(again.store.get("disc"))
    assert (again.station.program.threshold, again.station.program.threshold_stale) == (0.8, False)


def test_a_bank_that_comes_while_a_station_changes_to_its_recipe_is_the_one_it_gets(make: MakePlant) -> None:
    plant = make()
    plant.teach("ring", 1, 2)
    old = plant.taught["ring"]
    plant.teach("ring", 3)
    new = plant.taught["ring"]
    with ThreadPoolExecutor(1) as pool:
        swaps: list[Future[None]] = []

        def judging(recipe: str) -> Taught | Untaught:
            swaps.append(pool.submit(plant.programs.taught, plant.store.get(recipe), new))
            wait([swaps[0]], 0.3)  # it would be done by now if it could
            return old

        plant.programs.give("press", plant.store.get("ring"), judging)
        swaps[0].result(5)
    assert plant.station.program.taught is new


def test_swaps_selects_and_thresholds_at_once_leave_the_station_what_judges_now(make: MakePlant) -> None:
    plant = make()
    for recipe in ("disc", "ring"):
        plant.teach(recipe, 1, 2)
        plant.teach(recipe, 3)
    done = threading.Event()

    def repeat(work: Callable[[int], object]) -> None:
        number = 0
        while not done.is_set():
            work(number)
            number += 1

    banks = {recipe: [row["bank"] for row in plant.run("banks", {"recipe": recipe})["banks"]] for recipe in ("disc", "ring")}
    works: list[Callable[[int], object]] = [
        lambda number: plant.select(("disc", "ring")[number % 2]),
        lambda number: plant.run("rollback", {"recipe": "disc", "bank": banks["disc"][number % 2]}),
        lambda number: plant.run("rollback", {"recipe": "ring", "bank": banks["ring"][number % 2]}),
        lambda number: plant.run("threshold_set", {"recipe": "disc", "factor": 1.0 + number % 7}),
    ]
    with ThreadPoolExecutor(len(works)) as pool:
        running = [pool.submit(repeat, work) for work in works]
        done.wait(3)
        done.set()
        for one in running:
            one.result(20)
    assert len(plant.told) > 20
    for program in plant.told:
        assert program.bank is not None
        assert program.bank.hash in banks[program.recipe.name]
    last = plant.station.program
    [current] = [row["bank"] for row in plant.run("banks", {"recipe": last.recipe.name})["banks"] if row["current"]]
    assert last.bank is not None
    assert last.bank.hash == current
    assert last.override == plant.store.override(last.recipe.name)
    assert plant.store.stations()["press"] == last.recipe.name
