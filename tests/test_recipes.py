"""daemon/recipes.py, recipe_store.py: recipes made, selected, moved and deleted, and what a kill leaves."""

import io
import json
import logging
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from config.errors import CommandError
from config.schema import RecipeConfig
from daemon.ledger import Ledger
from daemon.marks import CREATE as MARKS
from daemon.marks import Marks
from daemon.recipe_store import OF_A_RECIPE, RecipeStore
from daemon.station import Taught, Untaught
from model.detector import Detector
from model.features import create_extractor
from tests.archived import Kept, a_result
from tests.broker import wait_for
from tests.plant import RECIPES, MakePlant, TestPlant, picture
from tests.school import PixelExtractor
from tests.tiny_clip import clip_state, linear_state, tiny_spec


class Killed(BaseException):
    """The process ended here."""


def refusal(plant: TestPlant, name: str, request: dict[str, Any], attachment: bytes | None = None) -> tuple[str, str]:
    with pytest.raises(CommandError) as caught:
        plant.run(name, request, attachment)
    return caught.value.code, str(caught.value)


def rows(plant: TestPlant, recipe: str) -> int:
    """Rows of a recipe in every table that has some."""
    tables = (*OF_A_RECIPE, "unfinished_recipes", "marks")
    counts = [f"SELECT count(*) FROM {table} WHERE recipe = :recipe" for table in tables]  # noqa: S608
    query = f"SELECT {' + '.join(f'({count})' for count in counts)}"
    plant.ledger.call(lambda c: c.execute(MARKS)).result()
    return int(plant.ledger.call(lambda c: c.execute(query, {"recipe": recipe}).fetchone()[0]).result())


# making and selecting


def test_a_recipe_is_made_taught_and_selected_and_the_next_start_begins_with_it(make: MakePlant) -> None:
    plant = make()
    region = {"x": 0, "y": 10, "width": 200, "height": 100}
    answer = plant.run("recipe_create", {"recipe": "bolt", "object": "steel bolt", "region": region})
    assert answer == {"recipe": "bolt", "station": None, "build": None}
    code, message = refusal(plant, "select_recipe", {"recipe": "bolt", "station": "press"})
    assert (code, message.partition(":")[0]) == ("refused", "recipe 'bolt' has no reference shots")
    assert plant.station.program.recipe.name == "disc"
    plant.teach("bolt", 1, 2)
    plant.select("bolt")
    program = plant.station.program
    assert (program.recipe.name, program.region and program.region.height) == ("bolt", 100)
    assert program.bank is not None
    assert [(recipe, kind) for recipe, kind, _ in plant.events] == [("bolt", "recipe_prepared"), ("bolt", "recipe_selected")]
    assert plant.events[1][2] == {"bank": program.bank.name, "threshold": program.threshold}
    row = plant.listed()["bolt"]
    assert (row["object"], row["stations"], row["shots"], row["configured"]) == ("steel bolt", ["press"], 2, False)
    assert (row["bank"], row["threshold"], row["region"]) == (program.bank.name, program.threshold, region)
    assert plant.listed()["disc"]["configured"]
    plant.close()
    again = make()
    assert again.store.stations() == {"press": "bolt"}
    assert again.store.get("bolt") == program.recipe
    # Its configured recipe is that of the file again, whatever the file says later.
    again.teach("disc", 1)
    again.select("disc")
    again.close()
    moved = RecipeStore(again.state, ledger := Ledger(again.state), list(RECIPES.values()), {"press": "ring"})
    assert moved.stations() == {"press": "ring"}
    ledger.close()


def test_a_recipe_without_its_bank_is_built_first_and_the_station_goes_on_meanwhile(make: MakePlant) -> None:
    entered, go = threading.Event(), threading.Event()

    def hold(step: str) -> None:
        if step == "features_stored" and armed:
            entered.set()
            assert go.wait(10)

    armed = False
    plant = make(at=hold)
    plant.teach("disc", 1)
    plant.select("disc")
    before = plant.station.program
    armed = True
    build = plant.run("register", {"recipe": "ring"}, picture(2))["shots"][0]["build"]
    assert entered.wait(10)
    code, message = refusal(plant, "select_recipe", {"recipe": "ring", "station": "press"})
    assert code == "busy"
    assert f"build {build} makes it. Select the recipe again when bank_built is told" in message
    assert plant.station.program is before
    assert plant.store.stations() == {"press": "disc"}
    go.set()
    plant.built(build)
    plant.select("ring")
    assert plant.station.program.recipe.name == "ring"


def test_words_alone_are_made_ready_before_a_station_changes_to_them(tmp_path: Path) -> None:
    plant = TestPlant(tmp_path, Detector(create_extractor(tiny_spec(tmp_path, clip_state(), linear_state()))))
    nothing = plant.station.program
    build = plant.run("recipe_create", {"recipe": "bolt", "object": "steel bolt", "mode": "zero_shot"})["build"]
    plant.built(build)
    plant.select("bolt")
    program = plant.station.program
    assert isinstance(nothing.taught, Untaught)
    assert isinstance(program.taught, Taught)
    assert (program.taught.mode, program.bank) == ("zero_shot", None)
    # After a restart nothing has built it: its words are all it needs.
    plant.close()
    again = TestPlant(tmp_path, Detector(create_extractor(tiny_spec(tmp_path, clip_state(), linear_state()))))
    again.select("bolt")
    assert again.station.program.threshold == program.threshold
    shots = [again.run("register", {"recipe": "bolt"}, picture(seed))["shots"][0] for seed in (1, 2)]
    again.built(shots[-1]["build"])
    assert again.station.program.threshold != program.threshold
    judged = json.loads(zipfile.ZipFile(io.BytesIO(again.commands.export("bolt"))).read("manifest.json"))["judged"]
    assert (judged["threshold"], judged["shots"], judged["bank"]) == (again.station.program.threshold, 2, None)
    assert judged["model"] == json.loads(json.dumps(again.detector.fingerprint))
    again.close()


def test_a_selected_recipe_that_is_gone_leaves_its_station_the_configured_one(
    make: MakePlant, caplog: pytest.LogCaptureFixture
) -> None:
    plant = make()
    plant.ledger.call(lambda c: c.execute("INSERT INTO selections VALUES ('press', 'cog')")).result()
    plant.close()
    with caplog.at_level(logging.WARNING):
        assert make().store.stations() == {"press": "disc"}
    assert "station press: recipe 'cog' was selected and is gone; it inspects by 'disc'" in caplog.text


def test_a_recipe_of_the_configuration_file_wins_over_one_of_its_name(make: MakePlant, caplog: pytest.LogCaptureFixture) -> None:
    plant = make()
    plant.run("recipe_create", {"recipe": "bolt", "object": "old"})
    plant.close()
    own = RecipeConfig(name="bolt", object="new")
    ledger = Ledger(plant.state)
    store = RecipeStore(plant.state, ledger, [*RECIPES.values(), own], {})
    assert store.get("bolt") is own
    assert "recipe bolt: made at run time, and in the configuration file, whose settings count" in caplog.text
    ledger.close()


def test_names_that_are_taken_or_left_over_and_modes_the_model_lacks_are_refused(make: MakePlant) -> None:
    plant = make()
    plant.teach("ring", 1)
    plant.run("recipe_create", {"recipe": "bolt", "object": "bolt"})
    for name in ("disc", "bolt"):
        for command, request in (
            ("recipe_create", {"recipe": name, "object": "x"}),
            ("recipe_copy", {"recipe": "ring", "to": name}),
            ("recipe_import", {"recipe": name}),
        ):
            file = plant.commands.export("ring") if command == "recipe_import" else None
            assert f"a recipe is named '{name}' already" in refusal(plant, command, request, file)[1]
    assert "needs words" in refusal(plant, "recipe_create", {"recipe": "w", "object": "x", "mode": "zero_shot"})[1]
    plant.close()
    ledger = Ledger(plant.state)
    store = RecipeStore(plant.state, ledger, [RECIPES["disc"]], {})
    with pytest.raises(CommandError, match="holds shots or banks of a recipe 'ring' that the configuration file once had"):  # noqa: SIM117
        with store.making("ring"):
            pass
    ledger.close()


def test_banks_of_recipes_that_no_station_has_leave_the_memory_and_still_hold_odd_pictures_back(
    make: MakePlant,
) -> None:
    plant = make()
    plant.teach("disc", 1, 2, 3)
    plant.teach("ring", 1, 2, 3)
    assert plant.builder.judging("ring") is not None
    plant.select("disc")
    assert plant.builder.judging("disc") is not None
    assert plant.builder.judging("ring") is None
    checks = (240 * (np.indices((256, 256)) // 8).sum(0) % 480).astype(np.uint8)  # edges all over
    odd = cv2.imencode(".png", checks)[1].tobytes()
    [shot] = plant.run("register", {"recipe": "ring"}, odd)["shots"]
    assert shot["held"] is not None
    assert plant.listed()["ring"]["shots"] == 3
    # It was loaded for that, and the next one that is taught takes its place.
    assert plant.builder.judging("ring") is not None
    plant.run("recipe_create", {"recipe": "bolt", "object": "bolt"})
    plant.teach("bolt", 1)
    assert [recipe for recipe in ("disc", "ring", "bolt") if plant.builder.judging(recipe) is not None] == ["disc", "bolt"]


# copying and deleting


def test_a_copy_has_settings_shots_and_threshold_and_the_same_bank_of_its_own(make: MakePlant) -> None:
    plant = make()
    plant.run("recipe_create", {"recipe": "bolt", "object": "bolt", "mode": "few_shot"})
    plant.teach("bolt", 1, 2)
    plant.run("threshold_set", {"recipe": "bolt", "factor": 1.5})
    answer = plant.run("recipe_copy", {"recipe": "bolt", "to": "nut"})
    plant.built(answer["build"])
    own, copied = plant.listed()["bolt"], plant.listed()["nut"]
    for field in ("object", "mode", "shots", "bank", "threshold", "override"):
        assert copied[field] == own[field], field
    shots = plant.run("shots", {"recipe": "bolt"})["shots"]
    assert plant.run("shots", {"recipe": "nut"})["shots"] == shots
    plant.run("recipe_delete", {"recipe": "bolt"})
    assert not (plant.state / "recipes" / "bolt").exists()
    for shot in shots:
        assert (plant.state / "recipes" / "nut" / "shots" / shot["file"]).is_file()
    plant.built(plant.run("rebuild", {"recipe": "nut"})["build"])
    plant.select("nut")


def test_a_deleted_recipe_is_gone_with_all_it_had_and_its_name_is_free(make: MakePlant) -> None:
    plant = make()
    plant.run("recipe_create", {"recipe": "bolt", "object": "bolt"})
    plant.teach("bolt", 1, 2)
    plant.teach("disc", 1)
    plant.select("bolt")
    code, message = refusal(plant, "recipe_delete", {"recipe": "bolt"})
    assert (code, message) == ("refused", "recipe 'bolt': station press inspects by it. Select another recipe for it first")
    assert "is of the configuration file" in refusal(plant, "recipe_delete", {"recipe": "ring"})[1]
    plant.select("disc")
    plant.run("recipe_delete", {"recipe": "bolt"})
    assert "bolt" not in plant.listed()
    assert refusal(plant, "shots", {"recipe": "bolt"})[0] == "unknown_recipe"
    assert not (plant.state / "recipes" / "bolt").exists()
    assert rows(plant, "bolt") == 0
    assert plant.builder.judging("bolt") is None
    plant.run("recipe_create", {"recipe": "bolt", "object": "another"})
    assert plant.listed()["bolt"]["shots"] == 0


def test_marks_on_results_of_a_deleted_recipe_go_and_their_files_are_kept_no_longer_than_others(
    make: MakePlant,
) -> None:
    plant = make()
    plant.run("recipe_create", {"recipe": "bolt", "object": "bolt"})
    plant.close()
    kept = Kept(plant.state)
    result = kept.put(a_result("fail", recipe="bolt"))
    Marks(kept.ledger, kept.archive).mark(result.result_id, "good", by="test")
    kept.close()
    again = make()
    assert rows(again, "bolt") == 2
    again.run("recipe_delete", {"recipe": "bolt"})
    assert rows(again, "bolt") == 0
    assert again.ledger.call(lambda c: c.execute("SELECT rank FROM archived").fetchall()).result() == [(1,)]


def test_deleting_gives_up_the_build_that_runs(make: MakePlant) -> None:
    entered, go = threading.Event(), threading.Event()

    def hold(step: str) -> None:
        if step == "features_stored":
            entered.set()
            assert go.wait(10)

    plant = make(at=hold)
    plant.run("recipe_create", {"recipe": "bolt", "object": "bolt"})
    plant.run("register", {"recipe": "bolt"}, picture(1))
    assert entered.wait(10)
    with ThreadPoolExecutor(1) as pool:
        deleting = pool.submit(plant.run, "recipe_delete", {"recipe": "bolt"})
        wait_for(lambda: "bolt" not in plant.listed(), "the recipe to be hidden")
        with pytest.raises(TimeoutError):
            deleting.result(0.3)
        assert "named 'bolt' already" in refusal(plant, "recipe_create", {"recipe": "bolt", "object": "x"})[1]
        go.set()
        deleting.result(20)
    wait_for(lambda: plant.builder.pending("bolt") is None, "the builder to rest")
    assert rows(plant, "bolt") == 0
    assert not (plant.state / "recipes" / "bolt").exists()


def test_a_picture_that_comes_while_its_recipe_is_deleted_is_refused_and_leaves_nothing(make: MakePlant) -> None:
    plant = make()
    plant.run("recipe_create", {"recipe": "bolt", "object": "bolt"})
    with ThreadPoolExecutor(1) as pool:
        with plant.teacher._shots.storing:
            registering = pool.submit(plant.run, "register", {"recipe": "bolt"}, picture(1))
            with pytest.raises(TimeoutError):
                registering.result(0.5)
            plant.store.hide("bolt")
            plant.store.remove("bolt")
        with pytest.raises(CommandError) as caught:
            registering.result(10)
    assert caught.value.code == "unknown_recipe"
    assert rows(plant, "bolt") == 0
    assert not (plant.state / "recipes" / "bolt").exists()


# moving


def test_an_exported_recipe_taken_in_elsewhere_judges_the_same(make: MakePlant, tmp_path: Path) -> None:
    plant = make()
    plant.teach("disc", 1, 2, 3)
    plant.run("threshold_set", {"recipe": "disc", "threshold": 0.9})
    file = plant.commands.export("disc")
    other = TestPlant(tmp_path / "other", Detector(PixelExtractor()))
    answer = other.run("recipe_import", {"recipe": "plate"}, file)
    assert answer["recipe"] == "plate"
    other.built(answer["build"])
    ours, theirs = plant.listed()["disc"], other.listed()["plate"]
    for field in ("object", "shots", "bank", "threshold", "override"):
        assert theirs[field] == ours[field], field
    assert not theirs["threshold_stale"]
    other.select("plate")
    assert other.station.program.calibration == plant.taught["disc"].calibration  # type: ignore[union-attr]
    assert other.commands.export("plate") != file  # its name is in it
    other.close()


def test_a_file_that_is_refused_leaves_nothing(make: MakePlant) -> None:
    plant = make()
    plant.teach("disc", 1)
    file = bytearray(plant.commands.export("disc"))
    file[len(file) // 2] ^= 1
    code, message = refusal(plant, "recipe_import", {"recipe": "bolt"}, bytes(file))
    assert (code, message.startswith("the file: a damaged ZIP")) == ("refused", True)
    assert rows(plant, "bolt") == 0
    assert not (plant.state / "recipes" / "bolt").exists()


STEPS = ("recipe_begun", "picture_stored", "recipe_committed")


@pytest.mark.parametrize(
    ("command", "step"),
    [
        *((command, step) for command in ("recipe_copy", "recipe_import") for step in STEPS),
        ("recipe_create", "recipe_begun"),
        ("recipe_create", "recipe_committed"),
    ],
)
def test_a_recipe_that_was_being_made_at_a_kill_is_there_whole_or_not_at_all(make: MakePlant, command: str, step: str) -> None:
    armed = False

    def kill(now: str) -> None:
        if armed and now == step:
            raise Killed

    plant = make(at=kill)
    plant.teach("disc", 1, 2)
    request = {
        "recipe_copy": {"recipe": "disc", "to": "bolt"},
        "recipe_import": {"recipe": "bolt"},
        "recipe_create": {"recipe": "bolt", "object": "bolt"},
    }[command]
    file = plant.commands.export("disc") if command == "recipe_import" else None
    armed = True
    with pytest.raises(Killed):
        plant.run(command, request, file)
    armed = False
    plant.close()
    again = make()
    whole = step == "recipe_committed"
    assert ("bolt" in again.listed()) == whole
    assert len(plant_files(again)) == (2 if whole and command != "recipe_create" else 0)
    if whole:
        assert again.listed()["bolt"]["shots"] == (0 if command == "recipe_create" else 2)
        again.run("recipe_delete", {"recipe": "bolt"})
    assert rows(again, "bolt") == 0
    again.run("recipe_create", {"recipe": "bolt", "object": "bolt"})


def plant_files(plant: TestPlant) -> list[Path]:
    folder = plant.state / "recipes" / "bolt"
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("step", ["recipe_rows_deleted", "recipe_folder_removed"])
def test_a_recipe_that_was_being_deleted_at_a_kill_is_gone_after_the_start(make: MakePlant, step: str) -> None:
    armed = False

    def kill(now: str) -> None:
        if armed and now == step:
            raise Killed

    plant = make(at=kill)
    plant.run("recipe_create", {"recipe": "bolt", "object": "bolt"})
    plant.teach("bolt", 1, 2)
    armed = True
    with pytest.raises(Killed):
        plant.run("recipe_delete", {"recipe": "bolt"})
    armed = False
    plant.close()
    again = make()
    assert "bolt" not in again.listed()
    assert rows(again, "bolt") == 0
    assert not (again.state / "recipes" / "bolt").exists()
