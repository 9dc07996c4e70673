"""The threshold, from reference shots alone: no defective part and no test set (what the paper needs, a line lacks)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from model.detector import Detector, Judgement, Reference
from model.errors import ShotsError
from model.features import PatchFeatures
from model.steps import Steps, finish

ENOUGH_SHOTS = 8
"""Under this many shots the largest normal score is too much a matter of luck."""

FACTOR = 1.05
"""Room over the worst normal score: what the line's own noise adds, against defects let through.

Chosen on mono cells of ELPV (two kinds in one recipe, embedded default, 12 draws of shots). False rejects / escapes
in percent:
12 shots: 2.9 / 5.9 at 1.0, 2.0 / 7.5 at 1.05, 1.6 / 9.9 at 1.1, 0.6 / 16.3 at 1.2;
8 shots: 9.1 / 4.8 at 1.0, 8.2 / 6.9 at 1.05, 7.1 / 8.6 at 1.1, 4.3 / 13.2 at 1.2.
Here even 1.05 costs more escapes than it saves good parts; it is kept as room for noise that no shot shows.
"""


LONE_FACTOR = 1.2
"""Instead of FACTOR for a lone shot, whose mirror images tell little of how other good parts differ."""

BACKGROUND_ROOM = 3.0
"""At most so many times the largest background of a shot that was left out is taken off a map: light and focus that differ
from the shots' lift the whole map, and so does a part that is missing altogether, which must not be forgiven. Without any
limit blank frames passed, all of 36, and 24 of 216 pictures of something else; with 1.5 to 3 none did. 2 in place of 3 cost
cookies an AUROC of 0.995 (0.985), and would have failed 2 of 12 strongly blurred frames more.
"""

RULE = 3
"""Raised whenever the same shots would give another calibration, so that those made before are made again."""


@dataclass(frozen=True)
class Calibration:
    """A threshold and what it came from. Data beside the bank: changing it rebuilds nothing.

    threshold: a frame fails when its score is over it. pixel_threshold: a pixel is in the mask when its map is over it; the
        same number, as the score is the map's largest value or the mean of its largest: what fails has a mask.
    image_weight, background_limit: for `Reference`.
    shot_scores: of each shot against the bank without it; of a lone shot's mirror images against the shot.
    self_test: of each shot against the whole bank.
    """

    threshold: float
    pixel_threshold: float
    shot_scores: tuple[float, ...]
    self_test: tuple[float, ...]
    provisional: bool
    advice: str
    image_weight: float = 0.0
    background_limit: float = 0.0

    def apply(self, reference: Reference) -> Reference:
        """The reference that judges as calibrated."""
        return replace(reference, image_weight=self.image_weight, background_limit=self.background_limit)

    @property
    def shots(self) -> int:
        return len(self.self_test)


def threshold_rule(shot_scores: Sequence[float], factor: float = FACTOR) -> float:
    """THE rule: the largest leave-one-out score, times the factor."""
    return max(shot_scores) * factor


def mirrors(picture: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """A lone shot's stand-ins for other good parts: mirrored left to right, upside down, and both."""
    return [picture[:, ::-1], picture[::-1], picture[::-1, ::-1]]


def image_weight_rule(peaks: Sequence[float]) -> float:
    """What the image probability weighs: the largest map peak of a shot that was left out.

    APRIL-GAN's image score is the mean of the image probability and of the map's peak, brought to 0..1 by the least and
    the largest peak of the whole test set. Up to scale and shift, which change no ranking, that is
    `peak + (largest - least) * probability`. A line has no test set, so good parts stand for it: a defect is taken to
    reach twice their level, that is `largest - least` = their level.
    """
    return max(peaks)


def calibrate(
    detector: Detector, features: PatchFeatures, reference: Reference, mirrored: PatchFeatures | None = None
) -> Calibration:
    """`calibrating` at once."""
    return finish(calibrating(detector, features, reference, mirrored))


def calibrating(
    detector: Detector, features: PatchFeatures, reference: Reference, mirrored: PatchFeatures | None = None
) -> Steps[Calibration]:
    """Score each shot as if it were no shot, and set threshold, image weight and background limit by the rules.

    features: of all shots, in the order of the bank's. reference: what will judge; what it has of an earlier calibration is
    not looked at. mirrored: features of a lone shot's `mirrors`, as there is no other to score it against.
    Against a bank a shot is scored without its own rows; text has not seen it anyway.
    Raises ShotsError for a lone shot without `mirrored`, or when the shots themselves fail.
    """
    shots, bank = len(features), reference.bank
    lone = bank is not None and shots < 2
    if lone and mirrored is None:
        raise ShotsError(f"calibration: expected at least 2 shots, got {shots}. Register {ENOUGH_SHOTS - shots} more")
    spec = detector.extractor.spec
    plain = replace(reference, image_weight=0.0, background_limit=math.inf)
    each = [features.select(slice(number, number + 1)) for number in range(shots)]  # views
    judged: list[Judgement] = []
    if lone and mirrored is not None:
        for view in range(len(mirrored)):
            judged.append(detector.judge_features(mirrored.select([view]), [plain]))
            yield view + 1, len(mirrored) + shots
    else:
        # One at a time: each is nearly a whole bank.
        for shot, own in enumerate(each):
            others = plain if bank is None else replace(plain, bank=bank.without(shot))
            judged.append(detector.judge_features(own, [others]))
            yield shot + 1, 2 * shots
    peaks = [float(own.scores[0]) for own in judged]
    weight = image_weight_rule(peaks) if reference.text is not None else 0.0
    limit = BACKGROUND_ROOM * max(-float(own.shifts[0]) for own in judged) if spec.background is not None else 0.0
    shares = [weight * float(own.image_probabilities[0]) if weight else 0.0 for own in judged]
    left_out = tuple(peak + share for peak, share in zip(peaks, shares, strict=True))
    threshold = threshold_rule(left_out, LONE_FACTOR if lone else FACTOR)
    taught = replace(reference, image_weight=weight, background_limit=limit)
    scores: list[float] = []
    for own in each:
        scores.append(float(detector.judge_features(own, [taught]).scores[0]))
        yield len(judged) + len(scores), len(judged) + shots
    self_test = tuple(scores)
    # Written so that NaN fails it.
    if not all(value < threshold for value in self_test):
        raise ShotsError(
            f"calibration: expected every shot to pass against its own bank, got scores up to {max(self_test):.6f} at "
            f"a threshold of {threshold:.6f}. Register shots that differ, as good parts do"
        )
    provisional = shots < ENOUGH_SHOTS
    advice = (
        f"{shots} shot{'s' if shots > 1 else ''}: the threshold is provisional, register {ENOUGH_SHOTS - shots} more"
        if provisional
        else f"{shots} shots: the threshold stands"
    )
    return Calibration(threshold, threshold, left_out, self_test, provisional, advice, weight, limit)


def even_odds(layers: int) -> Calibration:
    """What zero-shot judges by before there is any shot: words alone, failing what they call more likely abnormal than not.

    layers: tapped. A zero-shot map reaches from 0 to one per layer, so the published score's range is known without a
    test set: it is (peak / layers + probability) / 2, and 1/2 is even odds.
    """
    advice = f"no shots: the threshold is what words say at even odds, register {ENOUGH_SHOTS} good parts to calibrate it"
    return Calibration(float(layers), float(layers), (), (), True, advice, float(layers))
