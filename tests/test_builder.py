"""daemon/builder.py, maker.py, banks.py, encoded.py: builds in the background, swaps, rollbacks, and what a kill leaves."""

import hashlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from config.errors import StoreError
from config.schema import RecipeConfig, StationConfig
from connectors.contract import ResultOut, Topics
from daemon.encoded import EncodedShots
from daemon.finisher import Finisher
from daemon.inspector import Inspector
from daemon.ledger import Ledger
from daemon.shots import pixel_hash
from daemon.station import Program, Station, Taught, Untaught
from model.bank import Bank, build_bank
from model.calibration import calibrate, mirror
from model.detector import Detector, Reference
from model.features import create_extractor
from tests.broker import wait_for
from tests.parts import draw_part, png
from tests.school import RECIPE, PixelExtractor, School
from tests.test_inspector import frame
from tests.test_teacher import disk_that_takes, teach
from tests.tiny_clip import clip_state, linear_state, tiny_spec

Make = Callable[..., School]


@pytest.fixture
def school(tmp_path: Path) -> Iterator[Make]:
    schools: list[School] = []

    def make(**options: object) -> School:
        schools.append(School(tmp_path / "state", **options))  # type: ignore[arg-type]
        return schools[-1]

    yield make
    for one in schools:
        if one.ledger._thread.is_alive():
            one.close()


def add(school: School, seed: int) -> str | None:
    return school.teacher.register("disc", png(draw_part(seed)), name=f"{seed}", force=True).build


def bank_of(taught: Taught | Untaught | None) -> Bank:
    assert isinstance(taught, Taught)
    assert taught.bank is not None
    return taught.bank


def test_one_more_shot_encodes_itself_and_its_mirror_image_and_the_bank_is_that_of_all_at_once(school: Make) -> None:
    own = school()
    teach(own, range(5))
    before = own.extractor.encoded
    taught = own.built(add(own, 5))
    assert own.extractor.encoded == before + 2
    bank = bank_of(taught)
    detector = Detector(PixelExtractor())
    pictures = [draw_part(seed) for seed in range(6)]
    names = [pixel_hash(picture) for picture in pictures]
    features = detector.encode(pictures)
    plain = build_bank(features, fingerprint=detector.fingerprint, shots=names, max_rows=400)
    assert bank.hash == plain.hash
    assert bank.layers[0].equal(plain.layers[0])
    mirrored = [detector.encode([mirror(picture)]) for picture in pictures]
    assert taught.calibration == calibrate(detector, features, mirrored, Reference(plain))
    rate = taught.calibration.false_reject
    assert rate is not None
    told = own.heard("bank_built")[-1]
    assert (told["expected_false_reject"], told["false_reject_low"], told["false_reject_high"]) == (
        rate.expected,
        rate.low,
        rate.high,
    )


def test_a_calibration_of_an_older_rule_is_made_again(school: Make) -> None:
    own = school()
    first = teach(own, range(3))
    own.ledger.call(
        lambda connection: connection.execute(
            "UPDATE banks SET calibration = json_remove(json_set(calibration, '$.basis.rule', 3, "
            "'$.calibration.threshold', 9.0), '$.calibration.mirror_scores', '$.calibration.false_reject')"
        )
    ).result()
    assert own.teacher.banks("disc")[0].calibration.threshold == 9
    own.close()
    again = school()
    taught = again.open()
    assert isinstance(taught, Taught)
    assert taught.calibration == first.calibration
    assert again.extractor.encoded == 0
    assert again.teacher.banks("disc")[0].calibration == first.calibration


def test_damaged_features_are_made_again(tmp_path: Path, school: Make) -> None:
    own = school()
    first = teach(own, range(3))
    [one, two, three] = sorted((tmp_path / "state" / "recipes" / "disc" / "features").iterdir())
    one.write_bytes(one.read_bytes()[:-1] + b"\x00")
    two.write_bytes(b"half")
    three.unlink()
    before = own.extractor.encoded
    own.ledger.call(lambda connection: connection.execute("DELETE FROM banks")).result()
    assert own.built(own.teacher.rebuild("disc")).calibration == first.calibration
    assert own.extractor.encoded == before + 2 * 3


def test_features_kept_by_a_release_that_kept_no_mirror_images_are_made_again(tmp_path: Path, school: Make) -> None:
    own = school()
    first = teach(own, range(2))
    folder = tmp_path / "state" / "recipes" / "disc" / "features"
    for path in folder.iterdir():
        path.unlink()
    old = EncodedShots(folder, own.detector.fingerprint, None, None)
    old._key = hashlib.sha256(
        json.dumps([own.detector.fingerprint, None, None], sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()
    for seed in range(2):
        old.store(pixel_hash(draw_part(seed)), own.detector.encode([draw_part(seed)]))
    own.ledger.call(lambda connection: connection.execute("DELETE FROM banks")).result()
    before = own.extractor.encoded
    assert own.built(own.teacher.rebuild("disc")).calibration == first.calibration
    assert own.extractor.encoded == before + 2 * 2
    assert len(list(folder.iterdir())) == 2


def test_registrations_join_the_build_that_waits_and_follow_the_one_that_runs(school: Make) -> None:
    entered, go = threading.Event(), threading.Event()

    def hold(step: str) -> None:
        if step == "features_stored" and not entered.is_set():
            entered.set()
            assert go.wait(10)

    own = school(at=hold)
    own.open()
    running = add(own, 0)
    assert entered.wait(10)
    burst = [add(own, seed) for seed in range(1, 6)]
    assert own.builder.pending("disc") == burst[0]
    go.set()
    assert set(burst) == {burst[0]} != {running}
    assert own.built(burst[0]).calibration.shots == 6
    assert [detail["build"] for detail in own.heard("bank_built")] == [running, burst[0]]
    assert [detail["shots"] for detail in own.heard("bank_built")] == [1, 6]
    assert own.builder.pending("disc") is None


def test_a_rollback_survives_a_restart_and_the_next_shot_builds_from_all(school: Make) -> None:
    own = school()
    banks = [bank_of(teach(own, range(3)))]
    banks += [bank_of(own.built(add(own, seed))) for seed in (3, 4)]
    row = own.teacher.rollback("disc")
    assert (row.bank, row.current, row.rolled_back) == (banks[1].hash, True, True)
    assert bank_of(own.builder.taught("disc")).hash == banks[1].hash
    own.close()
    again = school()
    assert bank_of(again.open()).hash == banks[1].hash
    assert again.builder.pending("disc") is None
    assert again.teacher.rollback("disc", banks[0].name).calibration.shots == 3
    taught = again.built(add(again, 5))
    assert taught.calibration.shots == 6
    newest = again.teacher.banks("disc")[0]
    assert (newest.name, newest.current, newest.rolled_back) == (bank_of(taught).name, True, False)
    assert again.teacher.rollback("disc", banks[2].hash).current
    before = again.extractor.encoded
    assert bank_of(again.built(again.teacher.rebuild("disc"))).hash == bank_of(taught).hash
    assert again.extractor.encoded == before  # that bank is still there
    with pytest.raises(StoreError, match=r"recipe disc: bank 0123 is not kept\. Kept: "):
        again.teacher.rollback("disc", "0123")


def test_a_rollback_gives_up_the_build_that_runs(school: Make) -> None:
    entered, go = threading.Event(), threading.Event()

    def hold(step: str) -> None:
        if armed and step == "features_stored":
            entered.set()
            assert go.wait(10)

    own = school(at=hold)
    armed = False
    teach(own, range(2))
    old = bank_of(own.built(add(own, 2)))
    armed = True
    build = add(own, 3)
    assert entered.wait(10)
    own.teacher.rollback("disc", old.name)
    go.set()
    assert bank_of(own.built(build)).hash == old.hash
    assert own.heard("build_failed")[0]["reason"] == f"rolled back to bank {old.name}"
    assert own.teacher.banks("disc")[0].rolled_back


def test_the_last_five_banks_are_kept_and_the_current_one_whatever_its_age(tmp_path: Path, school: Make) -> None:
    own = school()
    banks = [bank_of(teach(own, range(2)))] + [bank_of(own.built(add(own, seed))) for seed in range(2, 8)]
    assert [row.name for row in own.teacher.banks("disc")] == [bank.name for bank in banks[:1:-1]]
    folder = tmp_path / "state" / "recipes" / "disc" / "banks"
    assert {path.name for path in folder.iterdir()} == {bank.name for bank in banks[2:]}
    for bank in banks[2:]:
        assert own.teacher.rollback("disc", bank.name).name == bank.name
        assert bank_of(own.builder.taught("disc")).layers[0].equal(bank.layers[0])


def test_a_corrupt_bank_is_told_of_and_built_again_from_its_shots(tmp_path: Path, school: Make) -> None:
    own = school()
    first = teach(own, range(3))
    own.close()
    folder = tmp_path / "state" / "recipes" / "disc" / "banks" / bank_of(first).name
    data = bytearray((folder / "bank.safetensors").read_bytes())
    data[-9] ^= 1
    (folder / "bank.safetensors").write_bytes(data)
    again = school()
    taught = again.open()
    assert isinstance(taught, Taught)
    assert taught.calibration == first.calibration
    [detail] = again.heard("bank_corrupt")
    assert detail["bank"] == folder.name
    assert "sha256" in str(detail["why"])
    again.close()
    assert school().open().calibration == first.calibration  # type: ignore[union-attr]


def test_a_failed_build_is_told_and_changes_nothing(tmp_path: Path, school: Make) -> None:
    own = school()
    teach(own, range(3))
    own.close()  # its log is written into the ledger's file, and begins anew
    own = school()
    first = own.open()
    with disk_that_takes(65_536):
        build = add(own, 3)  # its picture fits, features and bank do not
        assert build is not None
        assert own.builder.wait(build, 20)
    [detail] = own.heard("build_failed")
    assert detail["build"] == build
    assert "File too large" in str(detail["reason"])
    assert own.builder.taught("disc") is first
    assert own.teacher.banks("disc")[0].bank == bank_of(first).hash
    assert own.built(own.teacher.rebuild("disc")).calibration.shots == 4


def test_a_damaged_shot_costs_itself_only(tmp_path: Path, school: Make) -> None:
    own = school()
    for seed in range(5):
        add(own, seed)
    damaged = own.teacher.shots("disc")[2]
    (tmp_path / "state" / "recipes" / "disc" / "shots" / damaged.file).write_bytes(b"")
    taught = own.open()
    assert isinstance(taught, Taught)
    assert taught.calibration.shots == 4
    assert damaged.shot not in bank_of(taught).manifest.shots


def test_a_stop_ends_a_build_soon_and_the_next_start_goes_on_from_it(school: Make) -> None:
    entered = threading.Event()

    def slow(step: str) -> None:
        if step == "features_stored" and armed:
            entered.set()
            time.sleep(0.05)

    armed = False
    own = school(at=slow)
    old = bank_of(teach(own, range(2)))
    armed = True
    for seed in range(2, 30):
        own.teacher._shots.add("disc", pixel_hash(draw_part(seed)), png(draw_part(seed)), 256, 256)
    own.teacher.rebuild("disc")
    assert entered.wait(10)
    started_s = time.monotonic()
    own.close()
    assert time.monotonic() - started_s < 1.0
    armed = False
    again = school()
    assert bank_of(again.open()).hash == old.hash
    wait_for(lambda: bool(again.heard("bank_built")), "the bank of all shots")
    assert again.heard("bank_built")[0]["shots"] == 30
    assert again.extractor.encoded < 2 * 31


def test_no_frame_is_lost_over_fifty_swaps_and_each_is_judged_by_one_bank(tmp_path: Path) -> None:
    results: list[ResultOut] = []
    ledger = Ledger(tmp_path / "line", results.extend)
    finisher = Finisher(Topics("t"))
    stations: list[Station] = []

    def swap(_recipe: RecipeConfig, taught: Taught | Untaught) -> None:
        for station in stations:
            station.program = replace(station.program, taught=taught)

    own = School(tmp_path / "state", on_taught=swap)
    inspector = Inspector(finisher, max_batch=4, max_wait_s=0.0)
    own.builder._device = inspector
    first = own.open() if add(own, 0) else None
    assert isinstance(first, Taught)
    config = StationConfig(name="a", camera="c", recipe="disc", frames="every", queue_frames=1_000)
    station = Station(config, Program(RECIPE, first), True, ledger.submit)
    stations.append(station)
    inspector.start(own.detector, [station])
    done, offered = threading.Event(), 0

    def camera() -> None:
        nonlocal offered
        while not done.is_set():
            if station.waiting() < 20:  # as fast as they are judged
                offer = station.offer(frame(offered % 256))
                assert offer is not None
                assert offer.refused is None
                inspector.notify()
                offered += 1
            else:
                time.sleep(0.001)

    # One bank is built beside the camera, in the share of time that is left to it; the swaps then take turns.
    filming = threading.Thread(target=camera)
    filming.start()
    build = add(own, 1)
    assert build is not None
    assert own.builder.wait(build, 60)
    rows = own.teacher.banks("disc")
    while len(own.told) < 51:
        own.teacher.rollback("disc", rows[len(own.told) % len(rows)].name)
        count = len(results)
        wait_for(lambda count=count: len(results) > count, "a result by it")  # type: ignore[misc]
    done.set()
    filming.join()
    wait_for(lambda: len(results) == offered, "every result")
    thresholds = {bank_of(taught).name: taught.calibration.threshold for taught in own.told if isinstance(taught, Taught)}
    assert len(thresholds) == 2
    assert {result.bank for result in results} == set(thresholds)
    assert all(result.threshold == thresholds[result.bank or ""] for result in results)
    assert [result.sequence for result in results] == list(range(1, offered + 1))
    assert [result.frame.number for result in results] == [number % 256 for number in range(offered)]
    own.builder.stop()
    inspector.stop()
    finisher.close()
    ledger.close()
    own.inspector.stop()
    own.ledger.close()


def test_a_process_killed_at_any_step_or_instant_keeps_every_shot_and_a_bank() -> None:
    command = [sys.executable, "-m", "tests.kill_teaching", "20"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr


# modes of a CLIP


@pytest.fixture
def clip(tmp_path: Path, school: Make) -> School:
    return school(detector=Detector(create_extractor(tiny_spec(tmp_path, clip_state(), linear_state()))))


def started(school: School, recipe: RecipeConfig) -> Taught | Untaught:
    school.builder._taught.clear()
    return school.teacher.start(recipe, lambda *_: None)


def test_without_shots_words_judge_and_with_shots_both_unless_the_recipe_says(clip: School) -> None:
    words = started(clip, RECIPE)
    assert isinstance(words, Taught)
    assert (words.mode, words.bank, words.calibration.shots) == ("zero_shot", None, 0)
    assert isinstance(started(clip, RECIPE.model_copy(update={"mode": "both"})), Untaught)
    for seed in range(3):
        add(clip, seed)
    thresholds = {}
    for mode, want in ((None, "both"), ("few_shot", "few_shot"), ("zero_shot", "zero_shot")):
        recipe = RECIPE.model_copy(update={"mode": mode})
        taught = started(clip, recipe)
        assert isinstance(taught, Taught)
        assert (taught.mode, taught.calibration.shots) == (want, 3)
        assert (taught.bank is None) == (want == "zero_shot")
        assert taught.reference.image_weight == taught.calibration.image_weight
        thresholds[want] = taught.calibration.threshold
        again = started(clip, recipe)
        assert isinstance(again, Taught)
        assert (again.mode, again.calibration) == (want, taught.calibration)
    assert len(set(thresholds.values())) == 3


def test_another_name_is_calibrated_anew_from_the_same_features(clip: School) -> None:
    for seed in range(3):
        add(clip, seed)
    one = started(clip, RECIPE)
    two = started(clip, RECIPE.model_copy(update={"object": "bottle"}))
    assert bank_of(one).hash == bank_of(two).hash
    assert one.calibration != two.calibration  # type: ignore[union-attr]
