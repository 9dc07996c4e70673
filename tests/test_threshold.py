"""daemon/threshold.py: which threshold is in force, and when one that was set is stale."""

from dataclasses import replace

import pytest

from config.schema import RecipeConfig
from daemon.threshold import Limits, ThresholdOverride, limits_of
from model.calibration import Calibration

PLAIN = RecipeConfig(name="r", object="thing")
OWN = RecipeConfig(name="r", object="thing", threshold=0.7)
CALIBRATED = Calibration(0.5, 0.4, (0.1, 0.1), (0.0, 0.0), False, "")


@pytest.mark.parametrize(
    ("recipe", "override", "calibration", "limits"),
    [
        (PLAIN, None, CALIBRATED, Limits(0.5, 0.4)),
        (PLAIN, None, None, None),
        (OWN, None, CALIBRATED, Limits(0.7, 0.4 * (0.7 / 0.5))),
        (OWN, None, None, Limits(0.7, 0.7)),
        (OWN, ThresholdOverride(threshold=0.9), CALIBRATED, Limits(0.9, 0.4 * (0.9 / 0.5))),
        (PLAIN, ThresholdOverride(threshold=0.9), None, Limits(0.9, 0.9)),
        (OWN, ThresholdOverride(factor=2.0), CALIBRATED, Limits(1.0, 0.8)),
        (OWN, ThresholdOverride(factor=2.0), None, None),
    ],
)
def test_an_override_wins_over_the_recipes_own_threshold_and_that_over_the_calibrated_one(
    recipe: RecipeConfig, override: ThresholdOverride | None, calibration: Calibration | None, limits: Limits | None
) -> None:
    assert limits_of(recipe, override, calibration) == limits


def test_an_absolute_threshold_is_stale_under_another_calibration_or_bank_and_fresh_under_its_own() -> None:
    own = ThresholdOverride(threshold=0.9).at(CALIBRATED, "a" * 64)
    assert not own.stale(CALIBRATED, "a" * 64)
    assert own.stale(replace(CALIBRATED, threshold=0.6), "a" * 64)
    assert own.stale(CALIBRATED, "b" * 64)
    assert not own.stale(None, None)
    rounded = replace(CALIBRATED, threshold=0.5 * (1 + 1e-5))
    assert not own.stale(rounded, "a" * 64)


def test_one_that_was_set_before_the_first_bank_is_stale_once_there_is_one() -> None:
    early = ThresholdOverride(threshold=0.9).at(None, None)
    assert not early.stale(None, None)
    assert early.stale(CALIBRATED, "a" * 64)


def test_a_factor_is_never_stale() -> None:
    factor = ThresholdOverride(factor=1.2).at(CALIBRATED, "a" * 64)
    assert not factor.stale(replace(CALIBRATED, threshold=9.0), "b" * 64)
