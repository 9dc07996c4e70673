"""The threshold in force: an engineer's override, the recipe's configured one, or the calibrated one.

A factor follows every new bank. An absolute threshold was chosen against one calibration: under another one it stays in
force, as nobody else may move it, and is told as stale until somebody looks at it.
"""

import math
from dataclasses import dataclass, replace

from config.schema import RecipeConfig
from model.calibration import Calibration

SAME = 1e-3
"""Calibrated thresholds closer than this (relative) are one: the same shots on another device differ by rounding."""


@dataclass(frozen=True)
class Limits:
    """A frame fails when its score is over `score`; a pixel is in the mask when its map is over `pixel`."""

    score: float
    pixel: float


@dataclass(frozen=True)
class ThresholdOverride:
    """What an engineer set: one of `threshold` (absolute) and `factor` (of what is calibrated).

    calibrated, bank: of an absolute one, the calibrated threshold and the bank's hash when it was set; None where nothing
    was calibrated, or no bank judged.
    """

    threshold: float | None = None
    factor: float | None = None
    calibrated: float | None = None
    bank: str | None = None

    def __str__(self) -> str:
        return f"{self.threshold:g}" if self.threshold is not None else f"{self.factor:g} times the calibrated one"

    def at(self, calibration: Calibration | None, bank: str | None) -> "ThresholdOverride":
        """The same, set against what judges now."""
        if self.threshold is None:
            return self
        return replace(self, calibrated=calibration.threshold if calibration else None, bank=bank)

    def stale(self, calibration: Calibration | None, bank: str | None) -> bool:
        """Whether it is absolute and what judges now is not what it was set against. Not while nothing judges."""
        if self.threshold is None or calibration is None:
            return False
        if self.calibrated is None or not math.isclose(self.calibrated, calibration.threshold, rel_tol=SAME):
            return True
        return self.bank is not None and bank is not None and self.bank != bank


def limits_of(recipe: RecipeConfig, override: ThresholdOverride | None, calibration: Calibration | None) -> Limits | None:
    """What is in force; None where it would be the calibrated threshold, or a factor of it, and there is none."""
    if override is not None and override.threshold is not None:
        return _absolute(override.threshold, calibration)
    if override is not None and override.factor is not None:
        if calibration is None:
            return None
        return Limits(override.factor * calibration.threshold, override.factor * calibration.pixel_threshold)
    if recipe.threshold is not None:
        return _absolute(recipe.threshold, calibration)
    return Limits(calibration.threshold, calibration.pixel_threshold) if calibration is not None else None


def _absolute(threshold: float, calibration: Calibration | None) -> Limits:
    """The mask's threshold moves with it."""
    if calibration is None:
        return Limits(threshold, threshold)
    return Limits(threshold, calibration.pixel_threshold * (threshold / calibration.threshold))
