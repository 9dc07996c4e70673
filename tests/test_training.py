"""Training the linear layers: the published losses and mosaic, a tiny CLIP that learns, and trainings that are cut off."""

from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import safetensors.torch
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor

from connectors.cameras.pictures import read_picture
from daemon.cli import main
from daemon.presets import load_preset
from model.checkpoint import checkpoint_of
from model.clip import ClipExtractor
from model.dataset import VISA_SPLIT, Category, Sample, read_dataset
from model.detector import Detector
from model.errors import CheckpointError, DatasetError, ModelError, WeightsError
from model.examples import draw_epoch, load_example, mosaic_of
from model.losses import dice_loss, focal_loss
from model.projection import manifest, read_projection, write_projection
from model.spec import ModelSpec
from model.training import PUBLISHED_MVTEC, PUBLISHED_VISA, Step, TrainingSettings, new_projection, train
from tests.parts import draw_part, write_parts
from tests.tiny_clip import clip_state, tiny_spec, write_preset

# losses


def probabilities(*abnormal: float) -> Tensor:
    """B = 1, of one row of pixels."""
    own = torch.tensor(abnormal)
    return torch.stack([1 - own, own])[None, :, None]


def test_focal_loss_is_the_hand_computed_mean_over_pixels() -> None:
    # (1 - 0.8)^2 ln 0.8 of a defect seen, (1 - 0.7)^2 ln 0.7 of a good pixel half trusted
    loss = focal_loss(probabilities(0.8, 0.3), torch.tensor([[[1.0, 0.0]]]))
    assert float(loss) == pytest.approx((0.008926 + 0.032101) / 2, abs=2e-5)


def test_focal_loss_of_a_missed_defect_is_bounded_by_the_smoothing() -> None:
    # The label's 1e-5 and the probability's: (1 - 2e-5)^2 ln 2e-5.
    assert float(focal_loss(probabilities(0.0), torch.ones(1, 1, 1))) == pytest.approx(10.81935, abs=1e-3)
    assert float(focal_loss(probabilities(1.0), torch.ones(1, 1, 1))) == pytest.approx(0, abs=1e-6)


def test_dice_loss_is_the_hand_computed_mean_over_pictures() -> None:
    abnormal = torch.tensor([[[0.5, 0.5], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])
    masks = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])
    # 1 - (2 * 1.5 + 1) / (2 + 2 + 1) = 0.2 of the first; a good picture seen as good costs nothing.
    assert float(dice_loss(abnormal, masks)) == pytest.approx(0.1)


def test_published_epochs_and_mosaics() -> None:
    assert asdict(PUBLISHED_MVTEC) == {"epochs": 3, "mosaic": 0.2, "batch": 8, "seed": 111}
    assert asdict(PUBLISHED_VISA) == {"epochs": 15, "mosaic": 0.0, "batch": 8, "seed": 111}


# examples


def flat(value: int, height: int = 4, width: int = 6) -> NDArray[np.uint8]:
    return np.full((height, width), value, np.uint8)


def spot(row: int, column: int, height: int = 4, width: int = 6) -> NDArray[np.bool_]:
    mask = np.zeros((height, width), np.bool_)
    mask[row, column] = True
    return mask


def test_mosaic_places_four_pictures_and_their_masks_row_by_row() -> None:
    colour = np.dstack([flat(7), flat(8), flat(9)])
    parts = [(flat(1), spot(0, 0)), (colour, spot(3, 5)), (flat(3), spot(0, 5)), (flat(4), spot(3, 0))]
    picture, mask = mosaic_of(parts)
    assert picture.shape == (8, 12, 3)
    assert np.unique(picture[:4, :6]).tolist() == [1]
    assert picture[0, 6].tolist() == picture[3, 11].tolist() == [7, 8, 9]
    assert np.unique(picture[4:, :6]).tolist() == [3]
    assert np.unique(picture[4:, 6:]).tolist() == [4]
    assert np.argwhere(mask).tolist() == [[0, 0], [3, 11], [4, 5], [7, 6]]


def test_mosaic_of_pictures_of_other_sizes_is_in_the_size_of_the_first() -> None:
    large = flat(5, 8, 12)
    picture, mask = mosaic_of([(flat(1), spot(0, 0)), *[(large, large > 0)] * 3])
    assert picture.shape == (8, 12, 3)
    assert mask[:, 6:].all()
    assert mask[4:].all()
    assert mask[:4, :6].sum() == 1


def two_categories() -> list[Category]:
    """A common kind of 30 and a rare one of 2 in each."""

    def samples(name: str) -> tuple[Sample, ...]:
        good = [Sample(Path(f"{name}/good/{number}"), None, None) for number in range(30)]
        bad = [Sample(Path(f"{name}/cut/{number}"), "cut", Path("mask")) for number in range(2)]
        return (*good, *bad)

    return [Category(name, Path(name), (), samples(name)) for name in ("nut", "pill")]


def test_an_epoch_shows_every_test_picture_once_in_an_order_of_its_own() -> None:
    categories = two_categories()
    first, again, second = (draw_epoch(categories, epoch, seed=111, mosaic=0) for epoch in (0, 0, 1))
    assert first == again
    assert first != second
    shown = [(example.category, *example.samples) for example in first]
    assert Counter(shown) == Counter((category.name, sample) for category in categories for sample in category.test)
    assert draw_epoch(categories, 0, seed=112, mosaic=0) != first


def test_a_fifth_of_the_pictures_are_mosaics_of_their_own_category_with_rare_kinds_as_often_as_common_ones() -> None:
    drawn = [example for epoch in range(30) for example in draw_epoch(two_categories(), epoch, seed=111, mosaic=0.2)]
    mosaics = [example for example in drawn if len(example.samples) == 4]
    assert {len(example.samples) for example in drawn} == {1, 4}
    assert len(mosaics) / len(drawn) == pytest.approx(0.2, abs=0.03)
    samples = [(example.category, sample) for example in mosaics for sample in example.samples]
    assert all(sample.picture.parts[0] == category for category, sample in samples)
    assert sum(sample.defect == "cut" for _, sample in samples) / len(samples) == pytest.approx(0.5, abs=0.05)


def test_every_mask_value_over_0_is_a_defect_and_a_good_picture_has_none(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "part.png"), flat(90, 56, 56))
    mask = flat(0, 56, 56)
    mask[:, 28:] = 1
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    [category] = [Category("part", tmp_path, (), (Sample(tmp_path / "part.png", "cut", tmp_path / "mask.png"),))]
    [example] = draw_epoch([category], 0, seed=1, mosaic=0)
    square, labels = load_example(example, 112, read_picture)
    assert (square.shape, labels.shape) == ((3, 112, 112), (112, 112))
    assert labels[:, 57:].min() == 1
    assert labels[:, :55].max() == 0
    good = replace(example, samples=(Sample(tmp_path / "part.png", None, None),))
    assert load_example(good, 112, read_picture)[1].max() == 0


def test_a_mask_of_another_size_than_its_picture_is_refused(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "part.png"), flat(90))
    cv2.imwrite(str(tmp_path / "mask.png"), flat(1, 4, 4))
    category = Category("part", tmp_path, (), (Sample(tmp_path / "part.png", "cut", tmp_path / "mask.png"),))
    [example] = draw_epoch([category], 0, seed=1, mosaic=0)
    with pytest.raises(DatasetError, match=r"mask.png: expected the size of its picture, 6 x 4 px, got 4 x 4"):
        load_example(example, 112, read_picture)


# a tiny CLIP that learns


def paint(folder: Path, masks: Path, seeds: range) -> None:
    """Drawn parts with a spot of paint anywhere on them, and its mask."""
    folder.mkdir(parents=True)
    masks.mkdir(parents=True)
    for seed in seeds:
        picture = cv2.cvtColor(draw_part(seed), cv2.COLOR_GRAY2BGR)
        mask = np.zeros(picture.shape[:2], np.uint8)
        x, y = map(int, np.random.default_rng(seed).integers(70, 180, 2))
        cv2.circle(picture, (x, y), 22, (40, 60, 220), -1)
        cv2.circle(mask, (x, y), 22, 255, -1)
        cv2.imwrite(str(folder / f"{seed:03}.png"), picture)
        cv2.imwrite(str(masks / f"{seed:03}_mask.png"), mask)


def painted_parts(root: Path, good: int, defective: int) -> Path:
    """A category as MVTec AD lays it out."""
    write_parts(root / "train/good", range(1))
    write_parts(root / "test/good", range(10, 10 + good))
    paint(root / "test/paint", root / "ground_truth/paint", range(100, 100 + defective))
    return root


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """The tiny CLIP at 112 px, without linear layers: the normal case."""
    return tiny_spec(tmp_path_factory.mktemp("tiny"), clip_state(), None)


@pytest.fixture(scope="module")
def extractor(spec: ModelSpec) -> ClipExtractor:
    return ClipExtractor(spec)


def pixel_auroc(preset: Path, folder: Path, masks: Path) -> float:
    """Of the daemon's own zero-shot maps, through the preset's file."""
    detector = Detector(ClipExtractor(load_preset(str(preset), preset.parent)))
    pictures = [read_picture(path) for path in sorted(folder.iterdir())]
    labels = [cv2.resize(read_picture(path), (112, 112), interpolation=cv2.INTER_NEAREST) > 0 for path in sorted(masks.iterdir())]
    reference = detector.reference("zero_shot", object_name="disc")
    maps = detector.judge(pictures, [reference] * len(pictures)).maps
    assert np.isfinite(maps).all()
    return float(roc_auc_score(np.stack(labels).ravel(), maps.ravel()))


def test_trained_layers_localise_paint_on_parts_never_seen_better_than_untrained_ones(
    tmp_path: Path, spec: ModelSpec, extractor: ClipExtractor
) -> None:
    categories = read_dataset(painted_parts(tmp_path / "disc", good=4, defective=12))
    untrained, trained = tmp_path / "untrained.safetensors", tmp_path / "trained.safetensors"
    write_projection(new_projection(extractor, 111), untrained, manifest(spec, extractor.weights_sha256))
    steps: list[Step] = []
    train(
        extractor, categories, TrainingSettings(epochs=10, mosaic=0.2, batch=4), trained, read=read_picture, report=steps.append
    )

    assert [(step.epoch, step.step) for step in steps] == [(epoch, step) for epoch in range(1, 11) for step in (1, 2, 3, 4)]
    first, last = (np.mean([step.loss for step in steps[part]]) for part in (slice(4), slice(-4, None)))
    assert last < 0.6 * first
    paint(tmp_path / "unseen", tmp_path / "masks", range(200, 206))
    before, after = (
        pixel_auroc(
            write_preset(replace(spec, linear_layers=str(layers)), tmp_path / "preset.toml"),
            tmp_path / "unseen",
            tmp_path / "masks",
        )
        for layers in (untrained, trained)
    )
    assert after > max(before + 0.15, 0.75)


def test_layers_are_refused_by_another_model_than_the_one_they_were_trained_for(spec: ModelSpec, uninterrupted: Path) -> None:
    ClipExtractor(replace(spec, linear_layers=str(uninterrupted)))
    with pytest.raises(WeightsError, match="trained with activation quick_gelu, got gelu"):
        ClipExtractor(replace(spec, linear_layers=str(uninterrupted), activation="quick_gelu"))


def test_layers_begin_as_the_seed_says_and_leave_the_process_as_it_was(extractor: ClipExtractor) -> None:
    before = torch.get_rng_state()
    first, again, other = (new_projection(extractor, seed).state_dict() for seed in (111, 111, 112))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["fc.0.weight"], other["fc.0.weight"])


# trainings that are cut off

SHORT = TrainingSettings(epochs=2, mosaic=0.5, batch=2)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> list[Category]:
    return read_dataset(painted_parts(tmp_path_factory.mktemp("few") / "disc", good=2, defective=3))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, extractor: ClipExtractor, few: list[Category]) -> Path:
    out = tmp_path_factory.mktemp("whole") / "layers.safetensors"
    train(extractor, few, SHORT, out, read=read_picture)
    return out


class CutOffError(Exception):
    pass


def cut_off(extractor: ClipExtractor, few: list[Category], out: Path, *, after: int, checkpoint_s: float) -> None:
    """A training that ends during its step `after` + 1, as when the power fails."""
    steps: list[Step] = []

    def report(step: Step) -> None:
        steps.append(step)
        if len(steps) > after:
            raise CutOffError

    with pytest.raises(CutOffError):
        train(extractor, few, SHORT, out, read=read_picture, report=report, checkpoint_s=checkpoint_s)
    assert checkpoint_of(out).exists()
    assert not out.exists()


@pytest.mark.parametrize(
    ("after", "checkpoint_s", "left"),
    [(4, 0.0, 1), (4, 1e9, 3), (5, 0.0, 0)],
    ids=["in the second epoch", "back to the end of the first epoch", "all done but the file"],
)
def test_a_training_cut_off_and_taken_up_gives_the_same_layers_to_the_bit(
    tmp_path: Path,
    extractor: ClipExtractor,
    few: list[Category],
    uninterrupted: Path,
    after: int,
    checkpoint_s: float,
    left: int,
) -> None:
    out = tmp_path / "layers.safetensors"
    cut_off(extractor, few, out, after=after, checkpoint_s=checkpoint_s)
    steps: list[Step] = []
    train(extractor, few, SHORT, out, read=read_picture, report=steps.append)
    assert len(steps) == left
    assert out.read_bytes() == uninterrupted.read_bytes()
    assert list(tmp_path.iterdir()) == [out]


def test_a_checkpoint_of_other_settings_is_refused_naming_them(
    tmp_path: Path, spec: ModelSpec, extractor: ClipExtractor, few: list[Category]
) -> None:
    out = tmp_path / "layers.safetensors"
    cut_off(extractor, few, out, after=1, checkpoint_s=0)
    kept = checkpoint_of(out).read_bytes()
    with pytest.raises(CheckpointError, match=r"layers.safetensors.checkpoint: .* had seed 111, this one has 5. Go on with"):
        train(extractor, few, replace(SHORT, seed=5), out, read=read_picture)
    fewer = [replace(category, test=category.test[1:]) for category in few]
    with pytest.raises(CheckpointError, match="had pictures 5, this one has 4"):
        train(extractor, fewer, SHORT, out, read=read_picture)
    with pytest.raises(CheckpointError, match="had activation gelu, this one has quick_gelu"):
        train(ClipExtractor(replace(spec, activation="quick_gelu")), few, SHORT, out, read=read_picture)
    assert checkpoint_of(out).read_bytes() == kept


def test_a_damaged_checkpoint_is_told(tmp_path: Path, extractor: ClipExtractor, few: list[Category]) -> None:
    out = tmp_path / "layers.safetensors"
    cut_off(extractor, few, out, after=1, checkpoint_s=0)
    whole = checkpoint_of(out).read_bytes()
    for damaged in (whole[:1000], safetensors.torch.save({"fc": torch.zeros(1)})):
        checkpoint_of(out).write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"cannot be read: .*Remove it to train from the start"):
            train(extractor, few, SHORT, out, read=read_picture)


def test_a_loss_that_is_not_finite_ends_the_training_without_a_file(tmp_path: Path, few: list[Category]) -> None:
    state = clip_state()
    state["visual.conv1.weight"][0] = torch.nan
    broken = ClipExtractor(tiny_spec(tmp_path, state, None))
    out = tmp_path / "layers.safetensors"
    with pytest.raises(ModelError, match="training, epoch 1, step 1: expected a finite loss and gradient, got a loss of nan"):
        train(broken, few, SHORT, out, read=read_picture)
    assert not out.exists()
    assert not checkpoint_of(out).exists()


# the command


def aprilcam(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr("sys.argv", ["aprilcam", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_command_trains_and_says_how_the_file_is_used(
    tmp_path: Path, spec: ModelSpec, extractor: ClipExtractor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = painted_parts(tmp_path / "data" / "disc", good=1, defective=1).parent
    out = tmp_path / "layers.safetensors"
    # The preset may name the file that is yet to be written.
    preset = write_preset(replace(spec, linear_layers=str(out)), tmp_path / "tiny.toml")
    words = ("train", root, "--preset", preset, "--out", out, "--categories", "disc", "--batch", "2")
    assert aprilcam(monkeypatch, *words) == 0
    told = capsys.readouterr()
    assert told.err == ""
    assert "tiny on cpu: 2 test pictures of 1 categories, 3 epochs" in told.out
    assert "epoch 3 of 3: mean loss" in told.out
    assert f'linear_layers = "{out}"' in told.out
    stated = manifest(spec, extractor.weights_sha256)
    read_projection(out, extractor.widths, extractor.joint_width, stated=stated)
    assert aprilcam(monkeypatch, *words) == 2
    assert "--out: there is one already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"--preset": "efficientnet-lite0"},
            "expected a CLIP (family open_clip), got timm tf_efficientnet_lite0, which knows no",
        ),
        ({"--preset": "none"}, "no preset is named 'none'"),
        ({"--out": "layers.pth"}, "layers.pth: --out: expected a .safetensors file, got .pth"),
        ({"--out": "nowhere/layers.safetensors"}, "nowhere cannot be written (No such file or directory)"),
        ({"--device": "cuda:7"}, "device cuda:7: expected that CUDA device, got"),
        ({"--epochs": "0"}, "epochs: expected 1 or more, got 0"),
        ({"--categories": "disk"}, "no category is named 'disk'. Did you mean disc?"),
    ],
)
def test_command_refuses_with_one_message_and_exit_2(
    tmp_path: Path,
    few: list[Category],
    spec: ModelSpec,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_preset(spec, tmp_path / "tiny.toml")
    options = {"--preset": "tiny.toml", "--out": "layers.safetensors", **change}
    words = [word for pair in options.items() for word in pair]
    assert aprilcam(monkeypatch, "train", few[0].root.parent, *words) == 2
    told = capsys.readouterr().err
    assert told.startswith("aprilcam: ")
    assert told.count("\n") == 1
    assert message in told


def test_command_refuses_a_data_set_without_masks_and_takes_visas_epochs(
    tmp_path: Path, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_parts(tmp_path / "data/disc/Data/Images/Normal", range(2))
    paint(tmp_path / "data/disc/Data/Images/Anomaly", tmp_path / "data/disc/Data/Masks/Anomaly", range(100, 101))
    split = tmp_path / "data" / VISA_SPLIT
    split.parent.mkdir()
    head = "object,split,label,image,mask\n" + "".join(
        f"disc,{part},normal,disc/Data/Images/Normal/000{number}.png,\n" for number, part in enumerate(("train", "test"))
    )
    defective = "disc,test,anomaly,disc/Data/Images/Anomaly/100.png,"
    out = tmp_path / "layers.safetensors"
    words = ("train", tmp_path / "data", "--preset", write_preset(spec, tmp_path / "tiny.toml"), "--out", out)
    for lines, got in ((head, "good pictures only"), (head + defective, "1 of 1 without (")):
        split.write_text(lines)
        assert aprilcam(monkeypatch, *words) == 2
        told = capsys.readouterr().err
        assert "expected defective test pictures, each with a mask of its defect, got" in told
        assert got in told
    split.write_text(head + defective + "disc/Data/Masks/Anomaly/100_mask.png")
    assert aprilcam(monkeypatch, *words) == 0
    assert "epoch 15 of 15: mean loss" in capsys.readouterr().out
