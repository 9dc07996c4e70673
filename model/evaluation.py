"""How good verdicts and maps are: the figures of the field, and the two that a line feels.

As APRIL-GAN's authors compute them (arXiv 2305.17382, section 4, and their code): AUROC, F1-max and AP over pictures and
over all pixels of a category; PRO over 200 thresholds, connected regions of the ground truth, up to an FPR of 0.3.
All are fractions 0 to 1, and None where they are not defined (AUROC without good pictures, say).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

PRO_THRESHOLDS = 200
PRO_FPR_LIMIT = 0.3

# Levels of a map value: as many as float32 has with 14 bits after the first, from 2^-40 (what is under it counts as 0) to
# 2^8. Non-negative floats sort as their bits do, so a level is a shift away.
_SHIFT = 23 - 14
_FIRST = (127 - 40) << 14
_LEVELS = 48 << 14


@dataclass(frozen=True)
class Ranking:
    """How well scores put the defective above the good.

    f1_max: the best F1 over all thresholds. ap: average precision, by steps, as scikit-learn's.
    """

    auroc: float | None
    f1_max: float | None
    ap: float | None


@dataclass(frozen=True)
class Rates:
    """At a threshold: false_reject, of the good, those over it; escape, of the defective, those not over it."""

    false_reject: float | None
    escape: float | None


def rank(scores: NDArray[np.floating], defective: NDArray[np.bool_]) -> Ranking:
    """Of N scores and labels. Exact; equal scores count half in the AUROC."""
    values, level = np.unique(scores, return_inverse=True)
    good = np.bincount(level[~defective], minlength=len(values))
    return _rank_counts(good, np.bincount(level[defective], minlength=len(values)))


def rates(scores: NDArray[np.floating], defective: NDArray[np.bool_], threshold: float) -> Rates:
    """False rejects and escapes when what is over the threshold is rejected."""
    rejected = scores > threshold
    good, bad = rejected[~defective], rejected[defective]
    return Rates(float(good.mean()) if good.size else None, float((~bad).mean()) if bad.size else None)


def published_scores(image_probabilities: NDArray[np.floating], peaks: NDArray[np.floating]) -> NDArray[np.float64]:
    """The image score as published, for tables: the mean of probability and peak, the peaks brought to 0..1 over all N.

    It needs the whole test set of an object, which a line does not have: `Calibration.image_weight` stands for it there.
    """
    least, span = peaks.min(), peaks.max() - peaks.min()
    scaled = (peaks - least) / span if span > 0 else np.zeros(len(peaks))
    return np.asarray(0.5 * (image_probabilities + scaled), dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Truth:
    """Which pixels of a picture are defective, at the size of its map: `mask` is S x S."""

    mask: NDArray[np.bool_]

    @cached_property
    def regions(self) -> tuple[NDArray[np.intp], tuple[int, ...]]:
        """Flat places of the defective pixels, region after region, and each region's pixels. Corners connect."""
        _, labels = cv2.connectedComponents(self.mask.astype(np.uint8), connectivity=8)
        flat = labels.ravel()
        places = np.flatnonzero(flat)
        places = places[np.argsort(flat[places], kind="stable")]
        return places, tuple(int(area) for area in np.bincount(flat)[1:])


def truth(defect: NDArray[np.bool_] | None, size: int) -> Truth:
    """From a mask of the picture's own size (None: a good picture) to S x S as the authors do: bilinear, over one half."""
    if defect is None:
        return Truth(np.zeros((size, size), bool))
    # PIL's resize is antialiased, as theirs.
    resized = Image.fromarray(defect.astype(np.uint8) * 255).resize((size, size), Image.Resampling.BILINEAR)
    return Truth(np.asarray(resized) > 127)


class PixelTally:
    """Counts the pixels of a category picture by picture, and never holds its maps.

    Memory: 6 MiB and 4 bytes for each defective pixel, however many pictures. For this, map values are rounded down to 15
    significant bits (1 part in 16,384); the figures are exact for those.
    """

    def __init__(self) -> None:
        self._good = np.zeros(_LEVELS, np.int64)
        self._defective: list[NDArray[np.int32]] = []
        self._areas: list[int] = []

    def add(self, anomaly_map: NDArray[np.float32], truth: Truth) -> None:
        """A picture's map, S x S, not negative, and what is true of it."""
        levels = _level(anomaly_map).ravel()
        self._good += np.bincount(levels[~truth.mask.ravel()], minlength=_LEVELS)
        places, areas = truth.regions
        self._defective.append(levels[places])
        self._areas += areas

    def ranking(self) -> Ranking:
        """AUROC, F1-max and AP over all pixels."""
        return _rank_counts(self._good, np.bincount(self._levels(), minlength=_LEVELS))

    def pro(self) -> float | None:
        """Per-region overlap: mean over regions of the share found, its curve's area up to the FPR limit, normalised.

        As the authors: thresholds evenly from the least to the largest value; the area by trapezoids from the least FPR to
        the largest under the limit, divided by that span. Where the FPR has no span, the largest overlap.
        """
        defective, used = self._levels(), np.flatnonzero(self._good)
        if not defective.size or not used.size:
            return None
        values = _value(np.arange(_LEVELS))
        least, most = min(values[defective.min()], values[used[0]]), max(values[defective.max()], values[used[-1]])
        if least == most:
            return None
        thresholds = least + (most - least) / PRO_THRESHOLDS * np.arange(PRO_THRESHOLDS)
        # A pixel is found at those thresholds that are under its value; so many are.
        under = np.searchsorted(thresholds, values, side="left")
        fpr = _reached(np.bincount(under[used], self._good[used], PRO_THRESHOLDS + 1)) / self._good.sum()
        areas = np.array(self._areas)
        share = np.repeat(1 / areas, areas)
        overlap = _reached(np.bincount(under[defective], share, PRO_THRESHOLDS + 1)) / len(areas)
        counted = fpr < PRO_FPR_LIMIT
        if not counted.any():
            return None
        fpr, overlap = fpr[counted], overlap[counted]
        span = fpr.max() - fpr.min()
        if span == 0:
            return float(overlap.max())
        # The thresholds rise, so the FPR falls.
        return float(np.trapezoid(overlap[::-1], fpr[::-1]) / span)

    def _levels(self) -> NDArray[np.int32]:
        return np.concatenate(self._defective) if self._defective else np.empty(0, np.int32)


def _level(values: NDArray[np.float32]) -> NDArray[np.int32]:
    bits = np.maximum(values, np.float32(0), dtype=np.float32).view(np.int32) >> _SHIFT
    return np.asarray(np.clip(bits - _FIRST, 0, _LEVELS - 1), dtype=np.int32)


def _value(levels: NDArray[np.integer]) -> NDArray[np.float64]:
    values = ((levels + _FIRST).astype(np.int32) << _SHIFT).view(np.float32).astype(np.float64)
    return np.where(levels == 0, 0.0, values)


def _reached(counts: NDArray[Any]) -> NDArray[np.float64]:
    """From what is found at just so many thresholds to what is found at each."""
    return np.asarray(counts[::-1].cumsum()[::-1][1:], dtype=np.float64)


def _rank_counts(good: NDArray[np.int64], defective: NDArray[np.int64]) -> Ranking:
    """From how many good and defective have each value, values rising."""
    goods, bads = int(good.sum()), int(defective.sum())
    if not bads:
        return Ranking(None, None, None)
    below = np.cumsum(good) - good
    auroc = float((defective * (below + good / 2)).sum() / goods / bads) if goods else None
    # Recall changes only where there are defective ones, and just there F1 and each step of AP have their best precision.
    at = np.flatnonzero(defective)[::-1]
    found = defective[at].cumsum()
    precision = found / (found + goods - below[at])
    f1 = 2 * found / (found + goods - below[at] + bads)
    return Ranking(auroc, float(f1.max()), float((precision * defective[at]).sum() / bads))
