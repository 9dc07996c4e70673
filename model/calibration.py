"""The threshold, from reference shots alone: no defective part and no test set (what the paper needs, a line lacks)."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from model.detector import Detector, Judgement, Reference
from model.errors import ShotsError
from model.features import PatchFeatures
from model.rate import Rate, rate
from model.steps import Steps, finish

ENOUGH_SHOTS = 8
"""Under this many shots the threshold is too much a matter of luck: which good parts happened to be registered."""

SPREADS = 2.0
"""Standard deviations over the mean of the normal scores. Chosen on four sets, see docs/accuracy.md: mean of the sets and of
4, 8 and 16 shots, false rejects / escapes in percent: 7.3 / 15.6 with 1.5, 4.9 / 20.2 with 2, 3.6 / 25.6 with 2.5."""

MIRROR_ROOM = 1.15
"""A mirror image counts at most so many times the largest score of the shots: that of a part with a left and a right is not
a good part. Had every mirror image reached it, the four sets' 4.9 / 20.2 would have become 1.8 / 47.7."""

LONE_FACTOR = 1.4
"""Times the score of a lone shot's mirror image, as there is no spread.

False rejects / escapes in percent: 38.6 / 8.9 with 1.2, 21.6 / 18.4 with 1.4, 15.7 / 33.4 with 1.6.
"""

PIXEL_SHARE = 0.8
"""Of the threshold: over this a pixel is in the mask. As the score is the mean of the map's largest values or the largest, what
fails has a mask. F1 of the masks of failed defective parts, 4 shots, bottle / cookie / pill in percent: 75 / 45 / 65; 78 / 22 /
57 with 1, 72 / 43 / 67 with 0.7."""

SELF_ROOM = 1.05
"""At least so many times the largest score of a shot against the whole bank: the same part, taken again, must pass."""

BACKGROUND_ROOM = 3.0
"""At most so many times the largest background of a shot that was left out is taken off a map: light and focus that differ
from the shots' lift the whole map, and so does a part that is missing altogether, which must not be forgiven. Without any
limit blank frames passed, all of 36, and 24 of 216 pictures of something else; with 1.5 to 3 none did. 2 in place of 3 cost
cookies an AUROC of 0.995 (0.985), and would have failed 2 of 12 strongly blurred frames more.
"""

RULE = 4
"""Raised whenever the same shots would give another calibration, so that those made before are made again."""


@dataclass(frozen=True)
class Calibration:
    """A threshold and what it came from. Data beside the bank: changing it rebuilds nothing.

    threshold: a frame fails when its score is over it. pixel_threshold: a pixel of such a frame is in the mask when its map is
        over it.
    image_weight, background_limit: for `Reference`.
    shot_scores: of each shot against the bank without it; none of a lone shot. mirror_scores: of each shot's mirror image
        against the same. self_test: of each shot against the whole bank.
    false_reject: how often a good part is to be expected to fail; None where the shots cannot tell.
    """

    threshold: float
    pixel_threshold: float
    shot_scores: tuple[float, ...]
    self_test: tuple[float, ...]
    provisional: bool
    advice: str
    image_weight: float = 0.0
    background_limit: float = 0.0
    mirror_scores: tuple[float, ...] = ()
    false_reject: Rate | None = None

    def apply(self, reference: Reference) -> Reference:
        """The reference that judges as calibrated."""
        return replace(reference, image_weight=self.image_weight, background_limit=self.background_limit)

    @property
    def shots(self) -> int:
        return len(self.self_test)


def threshold_rule(shot_scores: Sequence[float], mirror_scores: Sequence[float], self_test: Sequence[float]) -> float:
    """THE rule: mean and SPREADS standard deviations of what good parts score that the bank has not seen.

    Those are the shots, each left out, and their mirror images: other pictures of good parts, or nearly so.
    """
    least = SELF_ROOM * max(self_test)
    if not shot_scores:
        return max(LONE_FACTOR * max(mirror_scores), least)
    most = MIRROR_ROOM * max(shot_scores)
    scores = [*shot_scores, *(min(own, most) for own in mirror_scores)]
    return max(statistics.fmean(scores) + SPREADS * statistics.stdev(scores), least)


def false_reject_rule(
    shot_scores: Sequence[float], mirror_scores: Sequence[float], self_test: Sequence[float], factor: float = 1.0
) -> Rate | None:
    """How often good parts will fail: how many shots do by the threshold that the others make. None of fewer than two.

    factor: between the threshold that judges and the one that the rule makes.
    Each is judged as a part that nobody has seen, by a bank and a threshold without it (Stone, JRSS B 36, 1974), so nothing
    need be known of how scores are distributed. Those that judge have a shot less, so it is rather too high for few shots.
    """
    numbers = range(len(shot_scores))
    if len(numbers) < 2:
        return None

    def others(scores: Sequence[float], number: int) -> list[float]:
        return [*scores[:number], *scores[number + 1 :]]

    wrong = sum(
        shot_scores[number]
        > factor * threshold_rule(*(others(scores, number) for scores in (shot_scores, mirror_scores, self_test)))
        for number in numbers
    )
    return rate(wrong, len(numbers))


def mirror(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A shot's stand-in for another good part: mirrored left to right."""
    return picture[:, ::-1]


def image_weight_rule(peaks: Sequence[float]) -> float:
    """What the image probability weighs: the largest map peak of a shot that was left out.

    APRIL-GAN's image score is the mean of the image probability and of the map's peak, brought to 0..1 by the least and
    the largest peak of the whole test set. Up to scale and shift, which change no ranking, that is
    `peak + (largest - least) * probability`. A line has no test set, so good parts stand for it: a defect is taken to
    reach twice their level, that is `largest - least` = their level.
    """
    return max(peaks)


def calibrate(
    detector: Detector, features: PatchFeatures, mirrored: Sequence[PatchFeatures], reference: Reference
) -> Calibration:
    """`calibrating` at once."""
    return finish(calibrating(detector, features, mirrored, reference))


def calibrating(
    detector: Detector, features: PatchFeatures, mirrored: Sequence[PatchFeatures], reference: Reference
) -> Steps[Calibration]:
    """Score each shot as if it were no shot, and set threshold, image weight and background limit by the rules.

    features: of all shots, in the order of the bank's. mirrored: of each shot's `mirror` image, in any device's memory.
    reference: what will judge; what it has of an earlier calibration is not looked at.
    Against a bank a shot is scored without its own rows; text has not seen it anyway.
    Raises ShotsError when the shots themselves fail.
    """
    shots, bank = len(features), reference.bank
    lone = bank is not None and shots < 2
    spec = detector.extractor.spec
    plain = replace(reference, image_weight=0.0, background_limit=math.inf)
    each = [features.select(slice(number, number + 1)) for number in range(shots)]  # views
    steps = (2 if lone else 3) * shots
    judged: list[Judgement] = []
    views: list[Judgement] = []
    for shot, (own, view) in enumerate(zip(each, mirrored, strict=True)):
        # One at a time: each is nearly a whole bank.
        others = plain if bank is None or lone else replace(plain, bank=bank.without(shot))
        if not lone:
            judged.append(detector.judge_features(own, [others]))
            yield len(judged) + len(views), steps
        views.append(detector.judge_features(view.to(detector.extractor.device), [others]))
        yield len(judged) + len(views), steps
    unseen = judged or views
    weight = image_weight_rule([float(own.scores[0]) for own in unseen]) if reference.text is not None else 0.0
    limit = BACKGROUND_ROOM * max(-float(own.shifts[0]) for own in unseen) if spec.background is not None else 0.0

    def scored(judgements: Sequence[Judgement]) -> tuple[float, ...]:
        chances = [float(own.image_probabilities[0]) if weight else 0.0 for own in judgements]
        return tuple(float(own.scores[0]) + weight * chance for own, chance in zip(judgements, chances, strict=True))

    left_out, mirror_scores = scored(judged), scored(views)
    taught = replace(reference, image_weight=weight, background_limit=limit)
    scores: list[float] = []
    for own in each:
        scores.append(float(detector.judge_features(own, [taught]).scores[0]))
        yield len(judged) + len(views) + len(scores), steps
    self_test = tuple(scores)
    threshold = threshold_rule(left_out, mirror_scores, self_test)
    # Written so that NaN fails it.
    if not all(value < threshold for value in self_test):
        raise ShotsError(
            f"calibration: expected every shot to pass against its own bank, got scores up to {max(self_test):.6f} at "
            f"a threshold of {threshold:.6f}. Register shots that differ, as good parts do"
        )
    false_reject = false_reject_rule(left_out, mirror_scores, self_test)
    provisional = shots < ENOUGH_SHOTS
    advice = _advice(shots, false_reject)
    pixels = PIXEL_SHARE * threshold
    return Calibration(threshold, pixels, left_out, self_test, provisional, advice, weight, limit, mirror_scores, false_reject)


def _advice(shots: int, false_reject: Rate | None) -> str:
    stands = f"is provisional, register {ENOUGH_SHOTS - shots} more" if shots < ENOUGH_SHOTS else "stands"
    expected = "a lone shot does not tell how many good parts will fail"
    if false_reject is not None:
        expected = (
            f"expected to fail {false_reject.expected:.1%} of good parts ({false_reject.low:.1%} to {false_reject.high:.1%})"
        )
    return f"{shots} shot{'s' if shots > 1 else ''}: the threshold {stands}; {expected}"


def even_odds(layers: int) -> Calibration:
    """What zero-shot judges by before there is any shot: words alone, failing what they call more likely abnormal than not.

    layers: tapped. A zero-shot map reaches from 0 to one per layer, so the published score's range is known without a
    test set: it is (peak / layers + probability) / 2, and 1/2 is even odds.
    """
    advice = f"no shots: the threshold is what words say at even odds, register {ENOUGH_SHOTS} good parts to calibrate it"
    return Calibration(float(layers), float(layers), (), (), True, advice, float(layers))
