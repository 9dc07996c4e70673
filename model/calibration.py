"""The threshold, from reference shots alone: no defective part and no test set (what the paper needs, a line lacks)."""

from dataclasses import dataclass

from model.bank import Bank
from model.detector import Detector, score
from model.errors import ShotsError

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


@dataclass(frozen=True)
class Calibration:
    """A threshold and what it came from. Data beside the bank: changing it rebuilds nothing.

    threshold: a frame fails when its score is over it. pixel_threshold: a pixel is in the mask when its map is over it;
        the same number, as the score is the map's largest value: a frame fails exactly when its mask is not empty.
    shot_scores: of each shot against the bank without it. self_test: of each shot against the whole bank.
    """

    threshold: float
    pixel_threshold: float
    shot_scores: tuple[float, ...]
    self_test: tuple[float, ...]
    provisional: bool
    advice: str

    @property
    def shots(self) -> int:
        return len(self.shot_scores)


def threshold_rule(shot_scores: tuple[float, ...]) -> float:
    """THE rule: the largest leave-one-out score, times FACTOR."""
    return max(shot_scores) * FACTOR


def calibrate(detector: Detector, bank: Bank) -> Calibration:
    """Score each shot against the bank without it, from the bank's own rows, and set the threshold by the rule.

    Raises ShotsError with fewer than 2 shots (nothing to leave one out of), or when the shots themselves fail.
    """
    shots = len(bank.manifest.shots)
    if shots < 2:
        raise ShotsError(f"calibration: expected at least 2 shots, got {shots}. Register {ENOUGH_SHOTS - shots} more")
    features = [bank.shot_features(shot) for shot in range(shots)]
    left_out = tuple(float(score(detector.maps(own, [bank.without(n)]))) for n, own in enumerate(features))
    self_test = tuple(float(score(detector.maps(own, [bank]))) for own in features)
    threshold = threshold_rule(left_out)
    # Written so that NaN fails it.
    if not all(value < threshold for value in self_test):
        raise ShotsError(
            f"calibration: expected every shot to pass against its own bank, got scores up to {max(self_test):.6f} at "
            f"a threshold of {threshold:.6f}. Register shots that differ, as good parts do"
        )
    provisional = shots < ENOUGH_SHOTS
    advice = (
        f"{shots} shots: the threshold is provisional, register {ENOUGH_SHOTS - shots} more"
        if provisional
        else f"{shots} shots: the threshold stands"
    )
    return Calibration(threshold, threshold, left_out, self_test, provisional, advice)
