import tomllib
from collections.abc import Sequence
from importlib import resources

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter

from model.bank import Bank
from model.calibration import ENOUGH_SHOTS, FACTOR, calibrate, threshold_rule
from model.detector import Detector, score
from model.errors import ShotsError
from model.features import PatchFeatures
from model.spec import ModelSpec


class CornerExtractor:
    """One patch for each quarter of a picture, its feature the direction (mean, 255 - mean): easy to do by hand."""

    def __init__(self) -> None:
        preset = tomllib.loads(resources.files("config").joinpath("models/efficientnet-lite0.toml").read_text())
        self.spec = TypeAdapter(ModelSpec).validate_python(preset)
        self.weights_sha256 = "00"
        self.device = torch.device("cpu")
        self.calls = 0

    def extract(self, pictures: Sequence[NDArray[np.uint8]]) -> PatchFeatures:
        self.calls += 1
        means = torch.tensor(np.stack([p.reshape(2, 4, 2, 4).mean((1, 3)).reshape(4) for p in pictures]))
        pairs = torch.stack([means, 255 - means], dim=2).float()
        return PatchFeatures((torch.nn.functional.normalize(pairs, dim=-1),), ((2, 2),))


def bank_of(detector: Detector, levels: Sequence[int]) -> Bank:
    return detector.build([np.full((8, 8), level, np.uint8) for level in levels], [f"shot{n}" for n in range(len(levels))])


@pytest.fixture
def detector() -> Detector:
    return Detector(CornerExtractor())


def cosine(one: int, two: int) -> float:
    a, b = np.array([one, 255 - one]), np.array([two, 255 - two])
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_threshold_is_the_worst_leave_one_out_score_times_the_factor(detector: Detector) -> None:
    calibration = calibrate(detector, bank_of(detector, [100, 110, 140]))
    want = [1 - cosine(100, 110), 1 - cosine(110, 100), 1 - cosine(140, 110)]
    assert calibration.shot_scores == pytest.approx(want, abs=1e-5)
    assert calibration.threshold == pytest.approx(want[2] * FACTOR, abs=1e-5)
    assert calibration.threshold == threshold_rule(calibration.shot_scores)
    assert calibration.pixel_threshold == calibration.threshold
    assert calibration.self_test == pytest.approx([0, 0, 0], abs=1e-6)


def test_leaving_one_out_equals_a_bank_built_without_it(detector: Detector) -> None:
    levels = [90, 100, 125, 160]
    calibration = calibrate(detector, bank_of(detector, levels))
    for number, level in enumerate(levels):
        others = bank_of(detector, levels[:number] + levels[number + 1 :])
        alone = score(detector.maps(detector.encode([np.full((8, 8), level, np.uint8)]), [others]))
        assert calibration.shot_scores[number] == pytest.approx(float(alone), abs=1e-6)


def test_calibrating_encodes_nothing_again() -> None:
    extractor = CornerExtractor()
    detector = Detector(extractor)
    bank = bank_of(detector, [100, 110, 140])
    calibrate(detector, bank)
    assert extractor.calls == 1


def test_few_shots_are_provisional_and_say_how_many_more(detector: Detector) -> None:
    few = calibrate(detector, bank_of(detector, [100, 110, 140]))
    assert (few.shots, few.provisional) == (3, True)
    assert few.advice == "3 shots: the threshold is provisional, register 5 more"
    enough = calibrate(detector, bank_of(detector, range(100, 100 + 5 * ENOUGH_SHOTS, 5)))
    assert (enough.shots, enough.provisional) == (ENOUGH_SHOTS, False)


def test_one_shot_is_refused(detector: Detector) -> None:
    with pytest.raises(ShotsError, match=r"at least 2 shots, got 1\. Register 7 more"):
        calibrate(detector, bank_of(detector, [100]))


def test_shots_that_would_not_pass_themselves_are_refused(detector: Detector) -> None:
    # Equal pictures leave nothing to calibrate on: the threshold would be 0, and the shots are not under it.
    with pytest.raises(ShotsError, match="Register shots that differ"):
        calibrate(detector, bank_of(detector, [100, 100, 100]))
