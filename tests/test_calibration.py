import tomllib
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter

from model.bank import Bank, build_bank
from model.calibration import ENOUGH_SHOTS, FACTOR, LONE_FACTOR, Calibration, calibrate, even_odds, mirrors, threshold_rule
from model.detector import Detector, Reference
from model.errors import ModelError, ShotsError
from model.features import PatchFeatures, create_extractor
from model.scoring import score
from model.spec import ModelSpec
from tests.tiny_clip import clip_state, linear_state, tiny_spec


class CornerExtractor:
    """One patch for each quarter of a picture, its feature the direction (mean, 255 - mean): easy to do by hand."""

    def __init__(self) -> None:
        preset = tomllib.loads(resources.files("config").joinpath("models/efficientnet-lite0.toml").read_text())
        plain: ModelSpec = TypeAdapter(ModelSpec).validate_python(preset)
        self.spec = replace(plain, joined=None, score_share=0.0, background=None)
        self.weights_sha256 = "00"
        self.device = torch.device("cpu")
        self.calls = 0

    def extract(self, pictures: Sequence[NDArray[np.uint8]]) -> PatchFeatures:
        self.calls += 1
        means = torch.tensor(np.stack([p.reshape(2, 4, 2, 4).mean((1, 3)).reshape(4) for p in pictures]))
        pairs = torch.stack([means, 255 - means], dim=2).float()
        return PatchFeatures((torch.nn.functional.normalize(pairs, dim=-1),), ((2, 2),))


def encoded(detector: Detector, levels: Sequence[int]) -> PatchFeatures:
    return detector.encode([np.full((8, 8), level, np.uint8) for level in levels])


def bank_of(detector: Detector, levels: Sequence[int]) -> Bank:
    return detector.build([np.full((8, 8), level, np.uint8) for level in levels], [f"shot{n}" for n in range(len(levels))])


def calibrated(detector: Detector, levels: Sequence[int]) -> Calibration:
    return calibrate(detector, encoded(detector, levels), Reference(bank_of(detector, levels)))


@pytest.fixture
def detector() -> Detector:
    return Detector(CornerExtractor())


def cosine(one: int, two: int) -> float:
    a, b = np.array([one, 255 - one]), np.array([two, 255 - two])
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_threshold_is_the_worst_leave_one_out_score_times_the_factor(detector: Detector) -> None:
    calibration = calibrated(detector, [100, 110, 140])
    want = [1 - cosine(100, 110), 1 - cosine(110, 100), 1 - cosine(140, 110)]
    assert calibration.shot_scores == pytest.approx(want, abs=1e-5)
    assert calibration.threshold == pytest.approx(want[2] * FACTOR, abs=1e-5)
    assert calibration.threshold == threshold_rule(calibration.shot_scores)
    assert calibration.pixel_threshold == calibration.threshold
    assert calibration.self_test == pytest.approx([0, 0, 0], abs=1e-6)


def test_leaving_one_out_equals_a_bank_built_without_it(detector: Detector) -> None:
    levels = [90, 100, 125, 160]
    calibration = calibrated(detector, levels)
    for number, level in enumerate(levels):
        others = bank_of(detector, levels[:number] + levels[number + 1 :])
        alone = score(detector.maps(detector.encode([np.full((8, 8), level, np.uint8)]), [others]))
        assert calibration.shot_scores[number] == pytest.approx(float(alone), abs=1e-6)


def test_calibrating_encodes_nothing_again() -> None:
    extractor = CornerExtractor()
    detector = Detector(extractor)
    features = encoded(detector, [100, 110, 140])
    bank = build_bank(features, fingerprint=detector.fingerprint, shots=["a", "b", "c"])
    calibrate(detector, features, Reference(bank))
    assert extractor.calls == 1


def test_few_shots_are_provisional_and_say_how_many_more(detector: Detector) -> None:
    few = calibrated(detector, [100, 110, 140])
    assert (few.shots, few.provisional) == (3, True)
    assert few.advice == "3 shots: the threshold is provisional, register 5 more"
    enough = calibrated(detector, range(100, 100 + 5 * ENOUGH_SHOTS, 5))
    assert (enough.shots, enough.provisional) == (ENOUGH_SHOTS, False)


def test_a_lone_shot_is_calibrated_by_its_mirror_images(detector: Detector) -> None:
    picture = np.zeros((8, 8), np.uint8)
    picture[:4, :4], picture[:4, 4:], picture[4:, :4], picture[4:, 4:] = 100, 110, 120, 140
    assert [own[0, 0] for own in mirrors(picture)] == [110, 120, 140]
    # Mirroring moves features about, and the search finds them wherever they are: only what mirrors change counts.
    views = [np.full((8, 8), level, np.uint8) for level in (100, 105, 150)]
    calibration = calibrate(detector, encoded(detector, [100]), Reference(bank_of(detector, [100])), detector.encode(views))
    assert calibration.shot_scores == pytest.approx([0, 1 - cosine(105, 100), 1 - cosine(150, 100)], abs=1e-5)
    assert calibration.threshold == pytest.approx((1 - cosine(150, 100)) * LONE_FACTOR, abs=1e-5)
    assert (calibration.shots, calibration.provisional) == (1, True)
    assert calibration.advice == "1 shot: the threshold is provisional, register 7 more"


def test_a_lone_shot_without_them_is_refused(detector: Detector) -> None:
    with pytest.raises(ShotsError, match=r"at least 2 shots, got 1\. Register 7 more"):
        calibrated(detector, [100])


def test_shots_that_would_not_pass_themselves_are_refused(detector: Detector) -> None:
    # Equal pictures leave nothing to calibrate on: the threshold would be 0, and the shots are not under it.
    with pytest.raises(ShotsError, match="Register shots that differ"):
        calibrated(detector, [100, 100, 100])


# with text


@pytest.fixture
def clip(tmp_path: Path) -> Detector:
    return Detector(create_extractor(tiny_spec(tmp_path, clip_state(), linear_state())))


def noise(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (90, 80, 3), dtype=np.uint8)


def test_with_text_the_image_probability_weighs_what_good_parts_peaks_do(clip: Detector) -> None:
    shots = [noise(n) for n in range(4)]
    features = clip.encode(shots)
    bank = build_bank(features, fingerprint=clip.fingerprint, shots=list("abcd"))
    reference = clip.reference("both", bank=bank, object_name="bottle")
    calibration = calibrate(clip, features, reference)
    peaks, scores = [], []
    for number, shot in enumerate(shots):
        alone = replace(reference, bank=bank.without(number))
        peaks.append(float(clip.judge([shot], [alone]).scores[0]))
        scores.append(float(clip.judge([shot], [replace(alone, image_weight=calibration.image_weight)]).scores[0]))
    assert calibration.image_weight == pytest.approx(max(peaks), abs=1e-5)
    assert calibration.shot_scores == pytest.approx(scores, abs=1e-5)
    assert min(np.subtract(scores, peaks)) > 0
    assert calibration.threshold == pytest.approx(max(scores) * FACTOR, abs=1e-5)


def test_image_weight_ranks_pictures_as_the_published_score_does(clip: Detector) -> None:
    pictures, reference = [noise(n) for n in range(10, 18)], clip.reference("zero_shot", object_name="bottle")
    told = clip.judge(pictures, [reference] * len(pictures))
    peaks, chances = told.maps.max((1, 2)), told.image_probabilities
    published = (chances + (peaks - peaks.min()) / (peaks.max() - peaks.min())) / 2
    weighted = replace(reference, image_weight=float(peaks.max() - peaks.min()))
    ours = clip.judge(pictures, [weighted] * len(pictures)).scores
    assert np.argsort(ours).tolist() == np.argsort(published).tolist()


def test_zero_shot_is_calibrated_by_one_shot_and_judges_without_any(clip: Detector) -> None:
    reference = clip.reference("zero_shot", object_name="bottle")
    one = calibrate(clip, clip.encode([noise(0)]), reference)
    told = clip.judge([noise(0)], [reference])
    peak, chance = float(told.maps.max()), float(told.image_probabilities[0])
    assert one.threshold == pytest.approx((peak + peak * chance) * FACTOR, abs=1e-5)
    assert one.provisional
    none = even_odds(4)
    assert (none.shots, none.threshold, none.image_weight, none.provisional) == (0, 4.0, 4.0, True)
    assert "register 8 good parts" in none.advice


def test_image_weight_without_text_is_refused(detector: Detector) -> None:
    with pytest.raises(ModelError, match="expected text vectors"):
        Reference(bank_of(detector, [100, 110]), image_weight=1.0)
