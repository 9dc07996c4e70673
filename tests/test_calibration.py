import math
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
from model.calibration import (
    ENOUGH_SHOTS,
    LONE_FACTOR,
    SELF_ROOM,
    SPREADS,
    Calibration,
    calibrate,
    even_odds,
    false_reject_rule,
    mirror,
    threshold_rule,
)
from model.detector import Detector, Reference
from model.errors import ModelError, ShotsError
from model.features import PatchFeatures, create_extractor
from model.rate import rate
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
        self.callers = 1
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


def one_by_one(detector: Detector, levels: Sequence[int]) -> list[PatchFeatures]:
    return [encoded(detector, [level]) for level in levels]


def calibrated(detector: Detector, levels: Sequence[int], mirrored: Sequence[int] | None = None) -> Calibration:
    """mirrored: the levels of the mirror images; None: those of the shots, as an even grey has."""
    views = one_by_one(detector, levels if mirrored is None else mirrored)
    return calibrate(detector, encoded(detector, levels), views, Reference(bank_of(detector, levels)))


@pytest.fixture
def detector() -> Detector:
    return Detector(CornerExtractor())


def cosine(one: int, two: int) -> float:
    a, b = np.array([one, 255 - one]), np.array([two, 255 - two])
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


# the rules, by hand


def test_threshold_is_two_standard_deviations_over_the_mean_of_shots_and_mirror_images() -> None:
    # The mirror image at 9 counts as 1.15 x 3 = 3.45. Mean 14.45 / 6 = 2.408333, squares about it 4.102083, s = 0.905769.
    assert threshold_rule((1, 2, 3), (2, 3, 9), (0, 0, 0)) == pytest.approx(2.408333 + 2 * 0.905769, abs=1e-5)
    assert threshold_rule((1, 2, 3), (2, 3, 3.4), (0, 0, 0)) == pytest.approx(2.4 + 2 * math.sqrt(4.0 / 5), abs=1e-9)


def test_threshold_is_never_under_what_the_shots_themselves_need() -> None:
    assert threshold_rule((1, 2, 3), (2, 3, 9), (0, 4.0, 0)) == pytest.approx(4.219870, abs=1e-5)
    assert threshold_rule((1, 2, 3), (2, 3, 9), (0, 4.5, 0)) == pytest.approx(1.05 * 4.5)


def test_a_lone_shots_threshold_is_of_its_mirror_image() -> None:
    assert threshold_rule((), (2,), (1,)) == pytest.approx(1.4 * 2)
    assert threshold_rule((), (2,), (3,)) == pytest.approx(1.05 * 3)


def test_expected_rate_counts_the_shots_that_fail_by_what_the_others_make() -> None:
    # Without the last: mean 1.1, s = sqrt(0.04 / 5), threshold 1.2789. With its mirror image it would be 1.39, and with its
    # self-test 1.05 x 1.3 = 1.365: it would pass by either.
    scores = (1.0, 1.1, 1.2, 1.35)
    assert false_reject_rule(scores, scores, (0, 0, 0, 1.3)) == rate(1, 4)
    assert false_reject_rule(scores, scores, (0, 0, 0, 0), factor=1.1) == rate(0, 4)
    # 1.2 fails as well: by 1.0, 1.1, 1.35 the threshold is 0.9 x (1.15 + 2 x 0.1612) = 1.325, so at 0.8, by 1.178.
    assert false_reject_rule(scores, scores, (0, 0, 0, 0), factor=0.8) == rate(2, 4)


def test_expected_rate_of_two_shots_and_of_one() -> None:
    # Each by the other and its mirror image, which do not spread at all: 1 passes 2, 2 does not pass 1.
    assert false_reject_rule((1, 2), (1, 2), (0, 0)) == rate(1, 2)
    assert false_reject_rule((), (1,), (0,)) is None
    assert false_reject_rule((1,), (1,), (0,)) is None


def test_a_mirror_image_is_mirrored_left_to_right() -> None:
    assert mirror(np.array([[1, 2, 3], [4, 5, 6]], np.uint8)).tolist() == [[3, 2, 1], [6, 5, 4]]
    assert mirror(np.arange(12, dtype=np.uint8).reshape(2, 2, 3))[0].tolist() == [[3, 4, 5], [0, 1, 2]]


# calibrating


def test_shots_and_mirror_images_are_scored_against_the_other_shots(detector: Detector) -> None:
    calibration = calibrated(detector, [100, 110, 140], [104, 111, 142])
    own = [1 - cosine(100, 110), 1 - cosine(110, 100), 1 - cosine(140, 110)]
    views = [1 - cosine(104, 110), 1 - cosine(111, 100), 1 - cosine(142, 110)]
    assert calibration.shot_scores == pytest.approx(own, abs=1e-5)
    assert calibration.mirror_scores == pytest.approx(views, abs=1e-5)
    assert calibration.self_test == pytest.approx([0, 0, 0], abs=1e-6)
    scores = np.array([*own, *views])
    assert calibration.threshold == pytest.approx(scores.mean() + SPREADS * scores.std(ddof=1), abs=1e-5)
    assert calibration.pixel_threshold == pytest.approx(0.8 * calibration.threshold)
    assert calibration.false_reject == rate(1, 3)


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
    mirrored = one_by_one(detector, [100, 110, 140])
    calls = extractor.calls
    calibrate(detector, features, mirrored, Reference(bank))
    assert extractor.calls == calls


def test_few_shots_are_provisional_and_say_how_many_more(detector: Detector) -> None:
    few = calibrated(detector, [100, 110, 140])
    assert (few.shots, few.provisional) == (3, True)
    assert few.false_reject == rate(1, 3)
    assert few.advice == (
        "3 shots: the threshold is provisional, register 5 more; expected to fail 37.5% of good parts (0.8% to 90.6%)"
    )
    enough = calibrated(detector, range(100, 100 + 5 * ENOUGH_SHOTS, 5))
    assert (enough.shots, enough.provisional) == (ENOUGH_SHOTS, False)
    assert "8 shots: the threshold stands; expected to fail " in enough.advice


def test_a_lone_shot_is_calibrated_by_its_mirror_image(detector: Detector) -> None:
    # Mirroring moves features about, and the search finds them wherever they are: only what mirroring changes counts.
    calibration = calibrated(detector, [100], [150])
    assert calibration.shot_scores == ()
    assert calibration.mirror_scores == pytest.approx([1 - cosine(150, 100)], abs=1e-5)
    assert calibration.threshold == pytest.approx((1 - cosine(150, 100)) * LONE_FACTOR, abs=1e-5)
    assert (calibration.shots, calibration.provisional, calibration.false_reject) == (1, True, None)
    assert calibration.advice == (
        "1 shot: the threshold is provisional, register 7 more; a lone shot does not tell how many good parts will fail"
    )


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
    views = [clip.encode([mirror(shot)]) for shot in shots]
    calibration = calibrate(clip, features, views, reference)
    peaks, scores, mirrored = [], [], []
    for number, shot in enumerate(shots):
        alone = replace(reference, bank=bank.without(number))
        peaks.append(float(clip.judge([shot], [alone]).scores[0]))
        weighted = replace(alone, image_weight=calibration.image_weight)
        scores.append(float(clip.judge([shot], [weighted]).scores[0]))
        mirrored.append(float(clip.judge([mirror(shot)], [weighted]).scores[0]))
    assert calibration.image_weight == pytest.approx(max(peaks), abs=1e-5)
    assert calibration.shot_scores == pytest.approx(scores, abs=1e-5)
    assert calibration.mirror_scores == pytest.approx(mirrored, abs=1e-5)
    assert min(np.subtract(scores, peaks)) > 0
    assert calibration.threshold == threshold_rule(calibration.shot_scores, calibration.mirror_scores, calibration.self_test)


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
    one = calibrate(clip, clip.encode([noise(0)]), [clip.encode([mirror(noise(0))])], reference)
    told = clip.judge([noise(0)], [reference])
    peak, chance = float(told.maps.max()), float(told.image_probabilities[0])
    # Words have not seen the shot, so it counts as one left out; it must pass all the same.
    assert one.shot_scores == pytest.approx([peak + peak * chance], abs=1e-5)
    assert one.self_test == pytest.approx(one.shot_scores, abs=1e-5)
    assert one.threshold == threshold_rule(one.shot_scores, one.mirror_scores, one.self_test)
    assert one.threshold >= SELF_ROOM * one.self_test[0]
    assert one.provisional
    none = even_odds(4)
    assert (none.shots, none.threshold, none.image_weight, none.provisional) == (0, 4.0, 4.0, True)
    assert "register 8 good parts" in none.advice


def test_image_weight_without_text_is_refused(detector: Detector) -> None:
    with pytest.raises(ModelError, match="expected text vectors"):
        Reference(bank_of(detector, [100, 110]), image_weight=1.0)
