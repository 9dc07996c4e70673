"""model/labelled.py: marks move the shots' threshold only as far as they force it, and say what is to be expected."""

import math

import pytest

from model.calibration import Calibration
from model.labelled import Labelled, labelled_threshold
from model.rate import rate

SHOTS = (0.30, 0.36, 0.40)
ALONE = 0.5
"""The threshold from the shots alone."""


def labelled(good: tuple[float, ...] = (), bad: tuple[float, ...] = ()) -> Labelled:
    return labelled_threshold(ALONE, SHOTS, good, bad)


def test_without_marks_the_shots_threshold_stands_and_nothing_is_claimed() -> None:
    found = labelled()
    assert found.threshold == ALONE
    assert found.false_reject is None
    assert found.escape is None
    assert not found.conflict


@pytest.mark.parametrize(
    ("good", "bad"),
    [((0.1, 0.45), ()), ((), (0.6, 0.9)), ((0.2, 0.45), (0.55, 3.0))],
    ids=["good that pass", "bad that fail with room", "both"],
)
def test_marks_that_agree_with_it_change_nothing(good: tuple[float, ...], bad: tuple[float, ...]) -> None:
    assert labelled(good, bad).threshold == ALONE


def test_a_bad_part_that_passed_pulls_the_threshold_to_the_middle_under_it() -> None:
    # Between the highest shot, 0.40, and the part, 0.46.
    assert labelled(bad=(0.46,)).threshold == pytest.approx(0.43)


def test_a_bad_part_caught_by_a_hair_pulls_it_too_and_steadily() -> None:
    # The middle of 0.40 and 0.60 is the threshold itself: from there down it follows, without a jump at 0.5.
    values = [labelled(bad=(score,)).threshold for score in (0.6, 0.56, 0.5001, 0.4999)]
    assert values == pytest.approx([0.5, 0.48, 0.45005, 0.44995])


def test_a_good_part_that_failed_lifts_the_threshold_over_it_with_room() -> None:
    assert labelled(good=(0.52,)).threshold == pytest.approx(0.52 * 1.05)


def test_one_good_mark_lifts_by_a_fifth_at_most_and_more_by_more() -> None:
    # Reach: 0.5 * (1 + n / (n + 4)): 0.6 for one, 0.6667 for two, 0.75 for four.
    assert labelled(good=(0.59,)).threshold == pytest.approx(0.6)
    one = labelled(good=(0.65,))
    assert (one.threshold, one.rejected, one.conflict) == (ALONE, (0.65,), True)
    assert "1 marked good still fail" in one.advice
    assert labelled(good=(0.65, 0.64)).threshold == pytest.approx(0.5 * (1 + 2 / 6))
    assert labelled(good=(0.7,) * 4).threshold == pytest.approx(0.7 * 1.05)


def test_a_lift_stays_under_the_middle_to_the_bad_parts() -> None:
    found = labelled(good=(0.52,), bad=(0.54,))
    assert found.threshold == pytest.approx(0.53)
    assert not found.conflict


@pytest.mark.parametrize("bad", [0.01, 0.2, 0.41, 0.5, 0.5000001, 0.6])
@pytest.mark.parametrize("good", [(), (0.005,), (0.3, 0.35)])
def test_no_marked_bad_part_passes_where_good_parts_lie_under_it(bad: float, good: tuple[float, ...]) -> None:
    found = labelled_threshold(ALONE, (), good, (bad,))
    if all(own < bad for own in good):
        assert bad > found.threshold
        assert not found.conflict
    else:
        assert found.conflict


def test_a_bad_part_next_to_a_good_one_on_the_number_line_still_fails() -> None:
    bad = math.nextafter(0.45, 1)
    found = labelled_threshold(ALONE, (), (0.45,), (bad,))
    assert 0.45 <= found.threshold < bad


def test_one_against_one_the_bad_part_fails_and_the_conflict_is_told() -> None:
    found = labelled_threshold(ALONE, (), (0.48,), (0.46,))
    assert (found.rejected, found.escaped) == ((0.48,), ())
    assert found.threshold < 0.46


def test_a_bad_mark_under_many_good_parts_passes_and_is_told() -> None:
    found = labelled(bad=(0.2,))
    assert (found.threshold, found.escaped, found.conflict) == (ALONE, (0.2,), True)
    assert "1 marked bad pass" in found.advice


def test_shots_that_their_own_rule_gave_up_do_not_hold_up_the_marks() -> None:
    assert labelled_threshold(0.5, (0.4, 0.7, 0.8), (), (0.6,)).threshold == pytest.approx(0.5)


def test_each_mark_is_counted_by_the_threshold_that_the_others_make() -> None:
    # Good: without 0.52 the threshold is 0.5 and fails it; the other two pass by any. Bad: without 0.46... there is none.
    found = labelled(good=(0.3, 0.4, 0.52), bad=(0.9,))
    assert found.false_reject is not None
    assert found.escape is not None
    assert (found.false_reject.wrong, found.false_reject.parts) == (1, 3)
    assert (found.escape.wrong, found.escape.parts) == (0, 1)
    # Two that passed: without either, the other one's threshold, (0.40 + 0.46) / 2 or (0.40 + 0.47) / 2, catches it.
    caught = labelled(bad=(0.46, 0.47)).escape
    assert caught is not None
    assert caught.wrong == 0
    # A lone one that passed: without it nothing catches it.
    lone = labelled(bad=(0.46,)).escape
    assert lone is not None
    assert (lone.wrong, lone.parts) == (1, 1)


def test_what_is_not_a_score_is_refused() -> None:
    with pytest.raises(ValueError, match="finite scores"):
        labelled(good=(math.nan,))
    with pytest.raises(ValueError, match="over 0"):
        labelled_threshold(0.0, (), (), ())


def test_it_is_applied_beside_the_bank_and_the_mask_follows() -> None:
    calibration = Calibration(0.5, 0.4, SHOTS, (0.0, 0.0, 0.0), True, "3 shots")
    applied = labelled(bad=(0.46,)).apply(calibration)
    assert applied.threshold == pytest.approx(0.43)
    assert applied.pixel_threshold == pytest.approx(0.4 * 0.43 / 0.5)
    # The one bad mark, judged by the threshold without it (0.5), escapes: 1 of 1, Jeffreys' 3/4, lower bound 0.025.
    assert applied.advice == "3 shots; 0 marked good, 1 marked bad; expect escapes 75.0% (2.5% to 100.0%; 1 of 1 parts)"
    assert applied.shot_scores == SHOTS
    assert applied.false_reject is None


def test_the_expected_rate_is_that_of_the_threshold_that_judges() -> None:
    # 1.2 fails what 1.0 and 1.1 make, 1.05 + 2 x 0.0577; at 0.8 of that, 1.1 fails too: over 0.8 x (1.1 + 2 x 0.1155) = 1.065.
    own = (1.0, 1.1, 1.2)
    calibration = Calibration(1.3, 1.3, own, (0.0, 0.0, 0.0), True, "", mirror_scores=own, false_reject=rate(0, 3))
    low = Labelled(1.3 * 0.8, 1.3, 0, 1, None, None, (), ())
    assert low.apply(calibration).false_reject == rate(2, 3)
    same = Labelled(1.3, 1.3, 0, 1, None, None, (), ())
    assert same.apply(calibration).false_reject == rate(1, 3)
