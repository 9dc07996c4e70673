"""daemon/teacher.py, shots.py, looks.py: what becomes a reference shot, what does not, and what is never lost."""

import json
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest

from config.errors import PictureError, StoreError
from config.schema import RecipeConfig, Region
from connectors.cameras.pictures import read_picture
from daemon.banks import Banks
from daemon.ledger import Ledger
from daemon.presets import load_preset
from daemon.shots import Shots, pixel_hash
from daemon.station import Taught, Untaught
from daemon.teacher import FAR, Teacher
from model.detector import Detector
from model.features import create_extractor
from tests.parts import draw_part, png, write_parts
from tests.school import RECIPE, School

Make = Callable[..., School]


@pytest.fixture(scope="module")
def lite() -> Detector:
    return Detector(create_extractor(load_preset("efficientnet-lite0", Path()), runtime="torch"))


@pytest.fixture
def school(tmp_path: Path) -> Iterator[Make]:
    schools: list[School] = []

    def make(recipe: RecipeConfig = RECIPE, detector: Detector | None = None) -> School:
        schools.append(School(tmp_path / "state", recipe, detector))
        return schools[-1]

    yield make
    for one in schools:
        if not one.inspector._ended and one.ledger._thread.is_alive():
            one.close()


def teach(school: School, seeds: range) -> Taught:
    school.open()
    builds = [school.teacher.register("disc", png(draw_part(seed)), name=f"{seed}").build for seed in seeds]
    return school.built(builds[-1])


@contextmanager
def disk_that_takes(size: int) -> Iterator[None]:
    """No file of this process grows over `size` bytes."""
    before, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def test_the_same_pixels_twice_are_one_shot_and_the_original_file_is_kept(tmp_path: Path, school: Make) -> None:
    own = school()
    data = png(draw_part(0))
    bmp = cv2.imencode(".bmp", draw_part(0))[1].tobytes()
    first = own.teacher.register("disc", data, name="a.png")
    second = own.teacher.register("disc", bmp, name="b.bmp")
    assert (first.new, second.new) == (True, False)
    assert first.shot == second.shot == pixel_hash(draw_part(0))
    assert second.build == first.build
    [stored] = (tmp_path / "state" / "recipes" / "disc" / "shots").iterdir()
    assert (stored.suffix, stored.read_bytes()) == (".png", data)


def test_a_stored_shot_that_vanished_is_stored_again(tmp_path: Path, school: Make) -> None:
    own = school()
    own.teacher.register("disc", png(draw_part(0)), name="a")
    [stored] = (tmp_path / "state" / "recipes" / "disc" / "shots").iterdir()
    stored.unlink()
    assert not own.teacher.register("disc", png(draw_part(0)), name="a").new
    assert np.array_equal(read_picture(stored), draw_part(0))
    assert len(own.teacher.shots("disc")) == 1


def test_pixels_of_a_camera_are_kept_as_they_are_in_colour_too(tmp_path: Path, school: Make) -> None:
    own = school()
    pixels = np.random.default_rng(1).integers(0, 255, (40, 50, 3)).astype(np.uint8)
    shot = own.teacher.register_pixels("disc", pixels, name="frame 7").shot
    [row] = own.teacher.shots("disc")
    assert (row.shot, row.width, row.height) == (shot, 50, 40)
    assert np.array_equal(read_picture(tmp_path / "state" / "recipes" / "disc" / "shots" / row.file), pixels)


def test_pictures_that_do_not_fit_are_refused_with_the_reason(school: Make) -> None:
    own = school(RecipeConfig(name="disc", object="disc", region=Region(x=200, y=0, width=100, height=100)))
    with pytest.raises(PictureError, match=r"a\.png: 256 x 256 pixels do not hold the region x=200 y=0 100 x 100"):
        own.teacher.register("disc", png(draw_part(0)), name="a.png")
    with pytest.raises(PictureError, match=r"dot: 9 x 40 pixels, expected 16 x 16 or more"):
        own.teacher.register("disc", png(np.zeros((40, 9), np.uint8)), name="dot")
    with pytest.raises(PictureError, match=r"text: not a picture"):
        own.teacher.register("disc", b"hello", name="text")
    with pytest.raises(PictureError, match=r"half\.png: "):
        own.teacher.register("disc", png(draw_part(0))[:4000], name="half.png")
    assert own.teacher.shots("disc") == []


def test_a_forgotten_shot_leaves_the_bank_and_a_restart_does_not_bring_it_back(tmp_path: Path, school: Make) -> None:
    write_parts(tmp_path / "in", range(4))
    recipe = RecipeConfig(name="disc", object="disc", shots=tmp_path / "in")
    own = school(recipe)
    own.open()
    gone = own.teacher.shots("disc")[1]
    taught = own.built(own.teacher.forget("disc", gone.shot))
    assert taught.bank is not None
    assert gone.shot not in taught.bank.manifest.shots
    assert own.teacher.forget("disc", "0" * 64) is None
    own.close()
    again = school(recipe)
    again.open()
    assert [row.shot for row in again.teacher.shots("disc")] == list(taught.bank.manifest.shots)
    assert again.teacher.register("disc", png(draw_part(1)), name="1").new
    assert len(again.teacher.shots("disc")) == 4


def test_without_its_last_shot_a_recipe_judges_no_more(school: Make) -> None:
    own = school()
    teach(own, range(2))
    for shot in own.teacher.shots("disc"):
        build = own.teacher.forget("disc", shot.shot)
    assert build is not None
    assert own.builder.wait(build, 30)
    assert isinstance(own.told[-1], Untaught)
    own.close()
    assert isinstance(school().open(), Untaught)


def test_what_the_bank_finds_far_from_normal_is_held_until_a_person_says_yes(
    tmp_path: Path, school: Make, lite: Detector
) -> None:
    own = school(detector=lite)
    taught = teach(own, range(10))
    bad = png(draw_part(99, scratched=True))
    answer = own.teacher.register("disc", bad, name="bad.png")
    assert answer.held is not None
    assert not answer.new
    assert answer.build is None
    assert answer.held.threshold == taught.calibration.threshold
    assert answer.held.score > answer.held.limit == FAR * answer.held.threshold
    assert len(own.teacher.shots("disc")) == 10
    folder = tmp_path / "state" / "recipes" / "disc" / "held"
    assert (folder / f"{answer.shot[:16]}.png").read_bytes() == bad
    anomaly_map = read_picture(folder / f"{answer.shot[:16]}.map.png")
    # The scratch runs from about (93, 108) to (153, 158); a patch of the map is 8 px, averaged over three.
    y, x = np.unravel_index(int(anomaly_map.argmax()), anomaly_map.shape)
    assert 77 < x < 169
    assert 92 < y < 174
    why = json.loads((folder / f"{answer.shot[:16]}.json").read_text())
    assert (why["name"], why["score"], why["bank"]) == ("bad.png", answer.held.score, taught.bank and taught.bank.name)
    assert own.heard("shot_held")[0]["shot"] == answer.shot
    forced = own.teacher.register("disc", bad, name="bad.png", force=True)
    assert (forced.new, forced.held) == (True, None)
    assert list(folder.iterdir()) == []
    assert answer.shot in own.built(forced.build).bank.manifest.shots  # type: ignore[union-attr]
    assert own.teacher.register("disc", png(draw_part(100, scratched=True)), name="alike").held is None


def test_a_held_picture_of_the_configured_folder_stays_held_over_restarts(tmp_path: Path, school: Make, lite: Detector) -> None:
    recipe = RecipeConfig(name="disc", object="disc", shots=tmp_path / "in")
    write_parts(tmp_path / "in", range(10))
    first = school(recipe, lite)
    first.open()
    first.close()
    write_parts(tmp_path / "in", range(99, 100), scratched=True, start=50)
    for held in (1, 0):
        again = school(recipe, lite)
        again.open()
        assert len(again.heard("shot_held")) == held
        assert len(again.teacher.shots("disc")) == 10
        again.close()


def test_a_picture_unlike_the_other_shots_is_warned_of(school: Make) -> None:
    own = school()
    own.open()
    for seed in range(4):
        assert own.teacher.register("disc", png(draw_part(seed)), name=f"{seed}", force=True).warnings == ()
    part = draw_part(9)
    bright = np.clip(part.astype(np.int64) * 2, 0, 255).astype(np.uint8)
    for pixels, want in (
        (cv2.GaussianBlur(part, (0, 0), 1.0), "blurred: sharpness"),
        (bright, "over-exposed: "),
        (part[:200], "size: 256 x 200 px, the other shots have 256 x 256"),
        (cv2.cvtColor(part, cv2.COLOR_GRAY2RGB), "channels: a colour picture, the other shots are grey"),
    ):
        [warning] = own.teacher.register("disc", png(np.asarray(pixels, np.uint8)), name="x", force=True).warnings
        assert warning.startswith(want)
        own.teacher.forget("disc", pixel_hash(np.asarray(pixels, np.uint8)))


def test_a_full_disk_refuses_the_shot_with_the_reason_and_the_old_bank_goes_on(school: Make) -> None:
    own = school()
    taught = teach(own, range(3))
    with disk_that_takes(8_000), pytest.raises(StoreError, match=r"cannot be stored \(File too large\)\. Free space"):
        own.teacher.register("disc", png(draw_part(7)), name="7")
    assert own.builder.taught("disc") is taught
    assert len(own.teacher.shots("disc")) == 3
    assert own.built(own.teacher.register("disc", png(draw_part(7)), name="7").build).calibration.shots == 4


def test_files_that_no_row_knows_are_removed_at_the_start(tmp_path: Path, school: Make) -> None:
    own = school()
    own.teacher.register("disc", png(draw_part(0)), name="0")
    own.close()
    folder = tmp_path / "state" / "recipes" / "disc" / "shots"
    (folder / "0123456789abcdef.png").write_bytes(b"half")
    (folder / ".x.png.abc").write_bytes(b"half")
    again = school()
    again.open()
    assert [path.name for path in folder.iterdir()] == [again.teacher.shots("disc")[0].file]


def test_where_no_daemon_runs_shots_are_kept_for_its_next_start(tmp_path: Path, school: Make) -> None:
    ledger = Ledger(tmp_path / "state")
    teacher = Teacher(Shots(tmp_path / "state", ledger), Banks(tmp_path / "state", ledger), lambda _: RECIPE)
    assert [teacher.register("disc", png(draw_part(seed)), name=f"{seed}").build for seed in range(3)] == [None] * 3
    ledger.close()
    taught = school().open()
    assert isinstance(taught, Taught)
    assert taught.calibration.shots == 3
