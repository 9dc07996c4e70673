"""The threshold from marked parts: what people said of parts that were inspected, on top of what the shots say alone.

The rule moves the shots' threshold only as far as the marks force it. A frame fails when its score is over the threshold.
1. The cut: the place that gets the fewest marked parts and shots wrong; of equal ones the one with the fewest escapes, then
   the nearest to the shots' threshold. Shots count as good. Where good and bad parts lie apart nobody is wrong there.
2. Down: at most to the middle between the highest good part under the cut and the lowest bad one over it, so that a bad part
   that was caught by a hair pulls the threshold towards the middle, and one far over it does nothing.
3. Up: for good parts over the shots' threshold, with `ROOM` over the highest, but never past that middle, and by one mark at
   most 20 %, by four at most 50 %, by any number less than double. A good part over that moves nothing and is told: one
   wrong click must not open the gate.
So it is never over the score of a part marked bad, unless failing that one would reject more good ones; that is a conflict,
and is told. Bad parts that were caught with room never raise the threshold: what escapes is seldom archived and marked, so
marked bad parts score higher than bad parts do.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

from model.calibration import Calibration, false_reject_rule
from model.rate import Rate, rate

ROOM = 1.05
"""Over the highest good part that lifts the threshold: the same part, taken again, scores a little differently."""

HALF_LIFT = 4
"""So many good parts over the shots' threshold may lift it by half; more by less and less more, less than double in all."""


@dataclass(frozen=True)
class Labelled:
    """A threshold from shots and marks.

    shots_threshold: what it would be without marks. false_reject, escape: each mark judged by the threshold that the others
        make, None without marks of that kind. They speak of parts like those marked: who marks mostly rejects will see more
        false rejects here than on the line.
    rejected: scores of parts marked good that fail all the same; escaped: of parts marked bad that pass.
    """

    threshold: float
    shots_threshold: float
    good: int
    bad: int
    false_reject: Rate | None
    escape: Rate | None
    rejected: tuple[float, ...]
    escaped: tuple[float, ...]

    @property
    def conflict(self) -> bool:
        """Whether marks are not followed: no threshold follows all of them, or none that may be reached."""
        return bool(self.rejected or self.escaped)

    @property
    def advice(self) -> str:
        """What the marks came to, and what mends it, for the engineer."""
        told = f"{self.good} marked good, {self.bad} marked bad"
        if self.false_reject is not None:
            told += f"; expect false rejects {self.false_reject}"
        if self.escape is not None:
            told += f"; expect escapes {self.escape}"
        if self.rejected:
            told += f"; {len(self.rejected)} marked good still fail: look whether the marks are right, then promote them to shots"
        if self.escaped:
            told += (
                f"; {len(self.escaped)} marked bad pass, as good parts score as high: register more shots, or narrow the region"
            )
        return told

    def apply(self, calibration: Calibration) -> Calibration:
        """The calibration with this threshold; the pixel threshold moves in proportion, and the expected rate with it."""
        factor = self.threshold / calibration.threshold
        advice = f"{calibration.advice}; {self.advice}"
        pixel_threshold = calibration.pixel_threshold * factor
        false_reject = calibration.false_reject
        if false_reject is not None:
            scores = calibration.shot_scores, calibration.mirror_scores, calibration.self_test
            false_reject = false_reject_rule(*scores, factor)
        return replace(
            calibration,
            threshold=self.threshold,
            pixel_threshold=pixel_threshold,
            advice=advice,
            false_reject=false_reject,
        )


def labelled_threshold(
    shots_threshold: float, shot_scores: Sequence[float], good: Sequence[float], bad: Sequence[float]
) -> Labelled:
    """The rule above, with what is to be expected of it.

    shots_threshold, shot_scores: of the calibration from shots alone. good, bad: scores of marked parts by the bank that
    judges now. Raises ValueError for a threshold that is not over 0, or scores that are not finite.
    """
    if not (shots_threshold > 0 and all(map(math.isfinite, (shots_threshold, *shot_scores, *good, *bad)))):
        raise ValueError(
            f"labelled threshold: expected finite scores and a threshold over 0, got {shots_threshold}, {good}, {bad}"
        )
    # Shots over their own threshold were given up by the shots' rule; they are not to hold up the marks.
    shots = [value for value in shot_scores if value <= shots_threshold]
    threshold = _rule(shots_threshold, shots, good, bad)
    wrong_good = sum(own > _rule(shots_threshold, shots, rest, bad) for own, rest in _each(good))
    wrong_bad = sum(own <= _rule(shots_threshold, shots, good, rest) for own, rest in _each(bad))
    return Labelled(
        threshold,
        shots_threshold,
        len(good),
        len(bad),
        rate(wrong_good, len(good)) if good else None,
        rate(wrong_bad, len(bad)) if bad else None,
        tuple(sorted(own for own in good if own > threshold)),
        tuple(sorted(own for own in bad if own <= threshold)),
    )


def _each(scores: Sequence[float]) -> list[tuple[float, list[float]]]:
    return [(own, [*scores[:number], *scores[number + 1 :]]) for number, own in enumerate(scores)]


def _rule(start: float, shots: Sequence[float], good: Sequence[float], bad: Sequence[float]) -> float:
    reach = _reach(start, good)
    cut = _cut(start, sorted((*shots, *good)), sorted(bad), reach)
    under = max((own for own in (*shots, *good) if own <= cut), default=0.0)
    over = min((own for own in bad if own > cut), default=math.inf)
    lifted = max((own for own in good if own <= cut), default=0.0) * ROOM
    # Between neighbouring numbers the middle may round up to the upper one.
    middle = min((under + over) / 2, math.nextafter(over, -math.inf))
    return min(max(start, min(lifted, reach)), middle)


def _reach(start: float, good: Sequence[float]) -> float:
    """How far up the marked good parts may lift it."""
    lifting = sum(own * ROOM > start for own in good)
    return start * (1 + lifting / (lifting + HALF_LIFT))


def _cut(start: float, good: Sequence[float], bad: Sequence[float], reach: float) -> float:
    """The place that gets the fewest parts wrong, no higher than `reach`. Only at a part's score does their number change.

    good, bad: sorted.
    """
    places = {start, *good, *(math.nextafter(own, -math.inf) for own in bad)}

    def cost(place: float) -> tuple[int, int, float, float]:
        escapes = bisect_right(bad, place)
        return escapes + len(good) - bisect_right(good, place), escapes, abs(place - start), place

    return min((place for place in places if place <= reach), key=cost)
