"""`aprilcam evaluate`: the command on drawn data sets, in the layouts and with the faults that real ones have."""

import json
import random
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import roc_auc_score

from connectors.cameras.pictures import read_picture
from daemon import cli
from daemon.evaluate import evaluate, identity, settings_of
from daemon.evaluate_report import report
from daemon.evaluate_results import CategoryResult, ResultsFile, Run, Setting
from daemon.presets import load_preset
from model.calibration import calibrate, mirror
from model.dataset import VISA_SPLIT, read_dataset
from model.detector import Detector, Reference
from model.evaluation import Ranking, Rates
from model.features import create_extractor
from tests.parts import draw_part, write_parts
from tests.tiny_clip import clip_state, linear_state, tiny_spec


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded default at 96 px: a seventh of the work."""
    text = resources.files("config").joinpath("models/efficientnet-lite0.toml").read_text()
    path = tmp_path_factory.mktemp("presets") / "small.toml"
    path.write_text(re.sub(r"image_size = \d+", "image_size = 96", text))
    return path


@pytest.fixture(scope="module")
def detector(small: Path) -> Detector:
    return Detector(create_extractor(load_preset(str(small), Path())))


def scratch_mask(seed: int) -> NDArray[np.uint8]:
    """Where the scratch of that part is: where it differs from the same part without."""
    difference = cv2.absdiff(draw_part(seed, scratched=True), draw_part(seed))
    return np.where(difference > 20, np.uint8(255), np.uint8(0))


def mvtec(root: Path, *categories: str, good: int = 3, bad: int = 3) -> Path:
    for number, category in enumerate(categories or ("disc",)):
        folder, first = root / category, 100 * number
        write_parts(folder / "train" / "good", range(first, first + 5))
        write_parts(folder / "test" / "good", range(first + 10, first + 10 + good))
        write_parts(folder / "test" / "scratch", range(first + 20, first + 20 + bad), scratched=True)
        (folder / "ground_truth" / "scratch").mkdir(parents=True)
        for index in range(bad):
            path = folder / "ground_truth" / "scratch" / f"{index:04d}_mask.png"
            assert cv2.imwrite(str(path), scratch_mask(first + 20 + index))
    return root


def visa(root: Path) -> Path:
    """One category, its pictures JPEG and its masks 0 and 1, as VisA's are."""
    lines = ["object,split,label,image,mask"]

    def write(picture: NDArray[np.uint8], name: str) -> str:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(root / name), picture)
        return name

    for index in range(6):
        name = write(draw_part(index), f"disc/Data/Images/Normal/{index:04d}.JPG")
        lines.append(f"disc,{'train' if index < 3 else 'test'},normal,{name},")
    for index in range(3):
        name = write(draw_part(20 + index, scratched=True), f"disc/Data/Images/Anomaly/{index:03d}.JPG")
        lines.append(
            f"disc,test,anomaly,{name},{write(scratch_mask(20 + index) // 255, f'disc/Data/Masks/Anomaly/{index:03d}.png')}"
        )
    (root / VISA_SPLIT).parent.mkdir()
    (root / VISA_SPLIT).write_text("\n".join(lines) + "\n")
    return root


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


Aprilcam = Callable[..., Done]


@pytest.fixture
def aprilcam(small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Aprilcam:
    """The command line, in this process: importing torch anew takes longer than all else. Without --preset, the small one."""

    def run(*words: object) -> Done:
        given = [] if "--preset" in words else ["--preset", small]
        monkeypatch.setattr(sys, "argv", ["aprilcam", "evaluate", *map(str, [*words, *given])])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return Done(int(ended.value.code or 0), captured.out, captured.err)

    return run


def stored(path: Path, category: str = "disc") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())["categories"][category]
    return found


def preset(folder: Path) -> Path:
    """The tiny CLIP of the golden data as a preset file."""
    spec = tiny_spec(folder, clip_state(), linear_state())
    keys = ("name", "family", "backbone", "weights", "image_size", "neighbourhood", "activation", "linear_layers")
    lines = [f"{key} = {json.dumps(getattr(spec, key))}" for key in keys]
    lines += [f"{key} = {list(getattr(spec, key))}" for key in ("layers", "mean", "std")]
    (folder / "tiny.toml").write_text("\n".join(lines))
    return folder / "tiny.toml"


# what it prints and keeps


def test_a_data_set_of_discs_is_judged_and_its_scratches_are_found(tmp_path: Path, aprilcam: Aprilcam) -> None:
    done = aprilcam(mvtec(tmp_path), "--shots", "3", "--seeds", 2, "--preset", "efficientnet-lite0")
    assert (done.code, done.err.splitlines()) == (0, ["loading efficientnet-lite0 on cpu ...", "disc: 6 pictures done"])
    verdicts, pixels = (line.split("|") for line in done.out.splitlines() if line.startswith("| disc"))
    assert [cell.strip() for cell in verdicts[1:4]] == ["disc", "3 / 3", "3"]
    assert [cell.strip() for cell in verdicts[5:9]] == ["0.0", "100.0", "100.0", "100.0"]
    assert float(pixels[4].split()[0]) > 95
    assert float(pixels[7].split()[0]) > 90
    for words in ("false rejects: good parts failed", "over 2 draws of the shots", "PRO: "):
        assert words in done.out


def test_figures_are_of_the_scores_that_the_daemons_path_gives(tmp_path: Path, detector: Detector, aprilcam: Aprilcam) -> None:
    mvtec(tmp_path)
    assert aprilcam(tmp_path, "--shots", 2, "--seeds", 1, "--json", tmp_path / "out.json").code == 0
    found = stored(tmp_path / "out.json")
    (run,) = found["runs"]
    names = sorted(path.name for path in (tmp_path / "disc/train/good").iterdir())
    assert run["drawn"] == [f"train/good/{name}" for name in random.Random(0).sample(names[:32], 2)]

    bank = detector.build([read_picture(tmp_path / "disc" / name) for name in run["drawn"]], run["drawn"])
    pictures = [read_picture(tmp_path / "disc" / name) for name in found["pictures"]]
    shots = [read_picture(tmp_path / "disc" / name) for name in run["drawn"]]
    views = [detector.encode([mirror(shot)]) for shot in shots]
    calibration = calibrate(detector, detector.encode(shots), views, Reference(bank))
    scores = detector.judge(pictures, [calibration.apply(Reference(bank))] * len(pictures)).scores
    assert run["scores"] == pytest.approx(scores.tolist(), abs=1e-5)
    assert run["threshold"] == pytest.approx(calibration.threshold, abs=1e-5)
    defective = np.array([defect is not None for defect in found["defects"]])
    assert run["image"]["auroc"] == pytest.approx(roc_auc_score(defective, scores))
    assert run["rates"]["false_reject"] == np.mean(scores[~defective] > run["threshold"])
    assert run["rates"]["escape"] == np.mean(scores[defective] <= run["threshold"])


def test_several_numbers_of_shots_in_one_run_score_as_each_alone(tmp_path: Path, detector: Detector) -> None:
    categories = read_dataset(mvtec(tmp_path))

    def scores(*shots: int) -> list[tuple[float, ...]]:
        (result,) = evaluate(detector, categories, settings_of("few_shot", shots, 2), lambda *_: None)
        return [run.scores for run in result.runs]

    together = scores(1, 3)
    assert together[:2] == scores(1)
    assert together[2:] == scores(3)


def test_one_shot_either_has_rates_or_says_why_not(tmp_path: Path, aprilcam: Aprilcam) -> None:
    done = aprilcam(mvtec(tmp_path), "--shots", "1", "--seeds", 1, "--json", tmp_path / "out.json")
    (run,) = stored(tmp_path / "out.json")["runs"]
    assert (run["threshold"] is None) == bool(run["note"])
    assert (run["rates"]["escape"] is None) == bool(run["note"])
    assert run["note"] in done.out


def test_visa_layout_is_judged_with_masks_of_ones(tmp_path: Path, aprilcam: Aprilcam) -> None:
    done = aprilcam(visa(tmp_path), "--shots", 3, "--seeds", 1, "--json", tmp_path / "out.json")
    assert done.code == 0
    (run,) = stored(tmp_path / "out.json")["runs"]
    assert run["image"]["auroc"] == 1
    assert run["pixel"]["auroc"] > 0.95


def test_defective_pictures_without_masks_count_for_images_and_not_for_pixels(tmp_path: Path, detector: Detector) -> None:
    mvtec(tmp_path / "one")
    mvtec(tmp_path / "two")
    write_parts(tmp_path / "two/disc/test/unmasked", range(50, 52), scratched=True)
    settings = settings_of("few_shot", [2], 1)
    (one,), (two,) = (evaluate(detector, read_dataset(tmp_path / name), settings, lambda *_: None) for name in ("one", "two"))
    assert len(two.runs[0].scores) == len(one.runs[0].scores) + 2
    assert two.runs[0].pixel == one.runs[0].pixel
    assert two.runs[0].pro == one.runs[0].pro


# text


def test_zero_shot_draws_nothing_and_is_judged_once(tmp_path: Path, aprilcam: Aprilcam) -> None:
    mvtec(tmp_path / "data")
    done = aprilcam(
        tmp_path / "data", "--mode", "zero_shot", "--shots", "1,2", "--preset", preset(tmp_path), "--json", tmp_path / "out.json"
    )
    assert done.code == 0
    (run,) = stored(tmp_path / "out.json")["runs"]
    assert (run["setting"], run["drawn"]) == ({"mode": "zero_shot", "shots": 0, "seed": 0}, [])
    assert run["published"] is not None
    assert (run["threshold"], run["image_weight"]) == (4, 4)
    assert "at the threshold of even odds" in done.out
    assert "published image score (needs the test set)" in done.out


def test_both_halves_are_judged_and_scored_as_published_too(tmp_path: Path, aprilcam: Aprilcam) -> None:
    mvtec(tmp_path / "data")
    file = preset(tmp_path)
    out = tmp_path / "out.json"
    assert (
        aprilcam(tmp_path / "data", "--mode", "both", "--shots", "0,2", "--seeds", 1, "--preset", file, "--json", out).code == 0
    )
    found = stored(out)
    zero, both = found["runs"]
    assert [run["setting"]["mode"] for run in (zero, both)] == ["zero_shot", "both"]

    own = Detector(create_extractor(load_preset(str(file), tmp_path)))
    root = tmp_path / "data/disc"
    bank = own.build([read_picture(root / name) for name in both["drawn"]], both["drawn"])
    pictures = [read_picture(root / name) for name in found["pictures"]]
    judged = own.judge(pictures, [own.reference("both", bank=bank, object_name="disc")] * len(pictures))
    peaks = judged.maps.max(axis=(1, 2))
    defective = np.array([defect is not None for defect in found["defects"]])
    want = judged.image_probabilities + (peaks - peaks.min()) / (peaks.max() - peaks.min())
    shots = [read_picture(root / name) for name in both["drawn"]]
    views = [own.encode([mirror(shot)]) for shot in shots]
    weight = calibrate(own, own.encode(shots), views, own.reference("both", bank=bank, object_name="disc")).image_weight
    assert both["image_weight"] == pytest.approx(weight, abs=1e-4)
    assert weight > 0
    assert both["scores"] == pytest.approx((peaks + both["image_weight"] * judged.image_probabilities).tolist(), abs=1e-4)
    assert both["published"]["auroc"] == pytest.approx(roc_auc_score(defective, want))
    assert zero["published"]["auroc"] == pytest.approx(roc_auc_score(defective, judged.image_probabilities))


def test_a_preset_without_text_refuses_zero_shot(tmp_path: Path, aprilcam: Aprilcam) -> None:
    done = aprilcam(mvtec(tmp_path), "--mode", "zero_shot")
    assert (done.code, done.out) == (2, "")
    assert "zero-shot: expected a CLIP" in done.err


# going on


def without_times(result: CategoryResult) -> CategoryResult:
    return replace(result, runs=tuple(replace(run, ms_per_picture=0.0) for run in result.runs))


def test_an_interrupted_run_goes_on_after_the_last_finished_category(tmp_path: Path, detector: Detector) -> None:
    categories, path = read_dataset(mvtec(tmp_path, "a", "b")), tmp_path / "out.json"
    settings = settings_of("few_shot", [2], 1)
    seen: list[tuple[str, int]] = []

    def interrupt(category: str, done: int, total: int) -> None:
        if category == "b" and done == total:
            raise KeyboardInterrupt

    def open_store() -> ResultsFile:
        return ResultsFile(path, identity(detector, tmp_path, settings))

    with pytest.raises(KeyboardInterrupt):
        list(evaluate(detector, categories, settings, interrupt, store=open_store()))
    assert list(json.loads(path.read_text())["categories"]) == ["a"]

    resumed = list(evaluate(detector, categories, settings, lambda *step: seen.append(step[:2]), store=open_store()))
    assert {category for category, _ in seen} == {"b"}
    whole = list(evaluate(detector, categories, settings, lambda *_: None))
    assert [without_times(result) for result in resumed] == [without_times(result) for result in whole]
    assert list(open_store().finished.values()) == resumed
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "b", "out.json"]


def test_ctrl_c_says_what_is_kept_and_the_same_command_goes_on(
    tmp_path: Path, aprilcam: Aprilcam, monkeypatch: pytest.MonkeyPatch
) -> None:
    mvtec(tmp_path, "a", "b")
    command = (tmp_path, "--shots", 2, "--seeds", 1, "--json", tmp_path / "out.json")
    with monkeypatch.context() as patched:
        patched.setattr("daemon.evaluate.read_picture", interrupt_at(tmp_path / "b"))
        stopped = aprilcam(*command)
    assert (stopped.code, stopped.out) == (130, "")
    assert "stopped: 1 of 2 categories are done; they are kept in" in stopped.err
    done = aprilcam(*command)
    assert done.code == 0
    assert "1 of 2 categories are there from before (a)" in done.err
    assert "a: 6 pictures done" not in done.err
    for name in ("| a ", "| b ", "| **mean** "):
        assert name in done.out


def interrupt_at(folder: Path) -> Callable[[Path], NDArray[np.uint8]]:
    def read(path: Path) -> NDArray[np.uint8]:
        if folder in path.parents:
            raise KeyboardInterrupt
        return read_picture(path)

    return read


def test_results_of_other_settings_are_refused_and_kept(tmp_path: Path, detector: Detector, aprilcam: Aprilcam) -> None:
    mvtec(tmp_path)
    path = tmp_path / "out.json"
    assert aprilcam(tmp_path, "--shots", 2, "--seeds", 1, "--json", path).code == 0
    before = path.read_bytes()
    for words, says in (
        (("--shots", 3, "--seeds", 1), "expected shots [3], got [2]"),
        (("--shots", 2, "--seeds", 2), "expected seeds 2, got 1"),
        (("--shots", 2, "--seeds", 1, "--preset", preset(tmp_path)), "expected linear_layers_sha256"),
    ):
        done = aprilcam(tmp_path, *words, "--json", path)
        assert (done.code, done.out) == (2, "")
        assert says in done.err
        assert "Name another file, or delete this one" in done.err
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", ["", "[]", '{"settings": 3, "evaluate_format": 1}', "{}"])
def test_a_file_of_something_else_is_not_overwritten(tmp_path: Path, aprilcam: Aprilcam, content: str) -> None:
    path = tmp_path / "out.json"
    path.write_text(content)
    done = aprilcam(mvtec(tmp_path), "--json", path)
    assert (done.code, path.read_text()) == (2, content)
    assert "expected results of aprilcam evaluate" in done.err


# pictures


def test_pictures_of_each_number_of_shots_are_drawn(tmp_path: Path, aprilcam: Aprilcam) -> None:
    """A defective part that looks good must escape, so there is a sheet of worst parts as well."""
    mvtec(tmp_path / "data")
    write_parts(tmp_path / "data/disc/test/unseen", range(60, 61))
    done = aprilcam(tmp_path / "data", "--shots", "1,4", "--seeds", 2, "--pictures", tmp_path / "deep/drawn")
    assert (done.code, done.err.splitlines()[1:]) == (0, ["disc: 7 pictures done"])
    drawn = {path.name: read_picture(path) for path in (tmp_path / "deep/drawn").iterdir()}
    assert {"disc-few-shot-1.png", "disc-few-shot-4.png", "disc-few-shot-4-worst.png"} <= set(drawn)
    assert all(picture.shape[1] > 600 and len(np.unique(picture)) > 20 for picture in drawn.values())


# bad input

Save = Callable[[Image.Image, Path], None]


@pytest.mark.parametrize(
    ("suffix", "save"),
    [
        (".png", lambda image, path: image.convert("RGB").save(path)),
        (".png", lambda image, path: image.convert("RGBA").save(path)),
        (".png", lambda image, path: Image.fromarray(np.asarray(image).astype(np.uint16) * 257).save(path)),
        (".tif", lambda image, path: image.convert("CMYK").save(path)),
        (".jpg", lambda image, path: image.convert("CMYK").save(path, quality=100)),
    ],
    ids=["RGB", "RGBA", "16 bits", "CMYK TIFF", "CMYK JPEG"],
)
def test_pictures_of_other_kinds_are_judged_as_the_grey_ones_they_show(
    tmp_path: Path, detector: Detector, suffix: str, save: Save
) -> None:
    settings = settings_of("few_shot", [2], 1)
    (plain,) = evaluate(detector, read_dataset(mvtec(tmp_path)), settings, lambda *_: None)
    for path in (tmp_path / "disc/test").glob("*/*.png"):
        image = Image.open(path)
        image.load()
        path.unlink()
        save(image, path.with_suffix(suffix))
    (other,) = evaluate(detector, read_dataset(tmp_path), settings, lambda *_: None)
    assert other.runs[0].scores == pytest.approx(plain.runs[0].scores, abs=0.02)


def test_a_colour_picture_in_cmyk_has_the_colours_it_shows(tmp_path: Path) -> None:
    image = Image.new("RGB", (64, 64), (200, 30, 40))
    for name in ("a.jpg", "a.tif"):
        image.convert("CMYK").save(tmp_path / name)
        assert np.abs(read_picture(tmp_path / name).astype(int) - (200, 30, 40)).max() <= 3


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda root: (root / "test/good/0001.png").write_bytes(b"no picture"), "test/good/0001.png: not a picture"),
        (lambda root: cut(root / "test/scratch/0000.png"), "test/scratch/0000.png: damaged or incomplete"),
        (lambda root: (root / "ground_truth/scratch/0001_mask.png").unlink(), "expected its mask"),
        (lambda root: flat(root / "ground_truth/scratch/0001_mask.png", 100, 9), "expected 256 x 256 pixels"),
        (lambda root: flat(root / "ground_truth/scratch/0001_mask.png", 256, 0), "expected pixels over 0"),
        (lambda root: (root / "train/good").rename(root / "train/fine"), "expected pictures of good parts"),
        (lambda root: (root / "test").rename(root / "tests"), "expected test pictures"),
        (lambda root: (root / "train/good/0000.png").unlink(), "5 shots: expected as many good pictures"),
    ],
)
def test_a_fault_in_the_data_is_one_message(
    tmp_path: Path, aprilcam: Aprilcam, spoil: Callable[[Path], object], says: str
) -> None:
    mvtec(tmp_path)
    spoil(tmp_path / "disc")
    done = aprilcam(tmp_path, "--shots", 5, "--seeds", 1)
    assert (done.code, done.out) == (2, "")
    lines = [line for line in done.err.splitlines() if not line.startswith("loading")]
    assert len(lines) == 1
    assert says in lines[0]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:2000])


def flat(path: Path, size: int, value: int) -> None:
    assert cv2.imwrite(str(path), np.full((size, size), value, np.uint8))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--shots", "two"), "expected a number or several"),
        (("--shots", "-1"), "expected a number or several"),
        (("--shots", "0"), "expected 1 or more for mode few_shot"),
        (("--mode", "all"), "zero_shot"),
        (("--device", "gpu"), "expected cpu, cuda or cuda:N"),
        (("--device", "cuda:99"), "expected that CUDA device"),
        (("--categories", "disk"), "Did you mean disc?"),
        (("--preset", "resnet"), "no preset is named 'resnet'"),
        (("--json", "/nowhere/out.json"), "cannot be written"),
        (("--pictures", "/proc/nowhere"), "cannot be made"),
    ],
)
def test_a_wrong_option_is_named(tmp_path: Path, aprilcam: Aprilcam, words: tuple[str, str], says: str) -> None:
    done = aprilcam(mvtec(tmp_path), *words)
    assert (done.code, done.out) == (2, "")
    assert says in " ".join(done.err.replace("│", " ").split())


# the table


def run_of(seed: int, auroc: float, rates: Rates, note: str = "") -> Run:
    ranking = Ranking(auroc, 0.5, 0.25)
    threshold = None if rates.escape is None else 1.0
    return Run(
        Setting("few_shot", 2, seed), (), (), ranking, None, Ranking(None, None, None), None, 0, threshold, rates, note, 12.3
    )


def test_the_table_shows_means_and_spreads_and_why_there_is_no_figure() -> None:
    results = [
        CategoryResult("a", ("x", "y"), (None, "cut"), (run_of(0, 0.8, Rates(0.0, 0.5)), run_of(1, 0.9, Rates(0.0, 0.7)))),
        CategoryResult("b", ("x",), ("cut",), (run_of(0, 0.6, Rates(None, None), "odd"), run_of(1, 0.7, Rates(0.2, 0.1)))),
    ]
    printed = report(results)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if line.startswith("| ")]
    head = ["category", "good / bad", "shots", "false rejects %", "escapes %", "AUROC %", "F1-max %", "AP %", "ms/picture"]
    assert rows[:4] == [
        head,
        ["a", "1 / 1", "2", "0.0", "60.0 (50.0..70.0)", "85.0 (80.0..90.0)", "50.0", "25.0", "12"],
        ["b", "0 / 1", "2", "n/a", "n/a", "65.0 (60.0..70.0)", "50.0", "25.0", "12"],
        ["**mean**", "", "2", "n/a", "n/a", "75.0 (70.0..80.0)", "50.0", "25.0", "12"],
    ]
    assert "n/a for b: odd" in printed
    assert "n/a for a, b: its defective pictures have no masks" in printed
    assert "published" not in printed
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines[:5]}) == 1
