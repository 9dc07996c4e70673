"""The figures: by hand where a hand can, against scikit-learn, and against the authors' PRO written out plainly."""

import time

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score

from model.evaluation import PixelTally, Ranking, Rates, Truth, published_scores, rank, rates, truth


def figures(ranking: Ranking) -> tuple[float | None, float | None, float | None]:
    return ranking.auroc, ranking.f1_max, ranking.ap


def by_sklearn(scores: NDArray[np.floating], defective: NDArray[np.bool_]) -> tuple[float, float, float]:
    precision, recall, _ = precision_recall_curve(defective, scores)
    with np.errstate(invalid="ignore"):
        f1 = 2 * precision * recall / (precision + recall)
    return (
        float(roc_auc_score(defective, scores)),
        float(np.nanmax(f1)),
        float(average_precision_score(defective, scores)),
    )


def slow_pro(masks: NDArray[np.bool_], maps: NDArray[np.floating]) -> float:
    """The authors' procedure, a mask per threshold."""
    least, most = maps.min(), maps.max()
    regions = []
    for picture, mask in enumerate(masks):
        count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
        regions += [(picture, labels == label) for label in range(1, count)]
    overlaps, fprs = [], []
    for step in range(200):
        found = maps > least + (most - least) / 200 * step
        overlaps.append(np.mean([found[picture][region].mean() for picture, region in regions]))
        fprs.append(found[~masks].mean())
    fpr, overlap = np.array(fprs), np.array(overlaps)
    overlap, fpr = overlap[fpr < 0.3], fpr[fpr < 0.3]
    return float(auc((fpr - fpr.min()) / (fpr.max() - fpr.min()), overlap))


def drawn(seed: int, pictures: int = 6, size: int = 64) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Masks with regions of many sizes (some touching at a corner only), and maps that find them more or less."""
    random = np.random.default_rng(seed)
    masks = np.zeros((pictures, size, size), bool)
    for mask in masks[1:]:
        for _ in range(3):
            x, y, width, height = random.integers(0, size - 12, 2).tolist() + random.integers(1, 12, 2).tolist()
            mask[y : y + height, x : x + width] = True
            mask[y + height, x + width] = True
    maps = np.stack([cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 3) for mask in masks])
    return masks, (maps + random.gamma(2, 0.1, maps.shape)).astype(np.float32)


def tally(masks: NDArray[np.bool_], maps: NDArray[np.float32]) -> PixelTally:
    counted = PixelTally()
    for mask, own in zip(masks, maps, strict=True):
        counted.add(own, Truth(mask))
    return counted


def test_figures_of_five_pictures_by_hand() -> None:
    """Falling: bad 4, good 3, bad 2, bad 1, good 0. Of 6 pairs 4 are in order; at the score 1 precision 3/4, recall 1."""
    scores, defective = np.array([3.0, 4, 1, 0, 2]), np.array([False, True, True, False, True])
    assert figures(rank(scores, defective)) == pytest.approx((4 / 6, 6 / 7, (1 + 2 / 3 + 3 / 4) / 3))


def test_equal_scores_count_half() -> None:
    assert figures(rank(np.array([1.0, 1, 1]), np.array([False, True, False]))) == pytest.approx((0.5, 0.5, 1 / 3))


def test_figures_agree_with_scikit_learn_ties_included() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        defective = random.random(60) < 0.4
        scores = np.round(random.normal(0, 1, 60) + defective, 1)
        assert figures(rank(scores, defective)) == pytest.approx(by_sklearn(scores, defective), abs=1e-12)


def test_without_one_of_the_two_kinds_what_is_not_defined_is_none() -> None:
    scores = np.array([1.0, 2])
    assert rank(scores, np.array([False, False])) == Ranking(None, None, None)
    assert rank(scores, np.array([True, True])) == Ranking(None, 1.0, 1.0)
    assert rates(scores, np.array([False, False]), 1.0) == Rates(0.5, None)
    assert rates(scores, np.array([True, True]), 1.0) == Rates(None, 0.5)
    assert (PixelTally().ranking(), PixelTally().pro()) == (Ranking(None, None, None), None)


def test_only_what_is_over_the_threshold_is_rejected() -> None:
    scores, defective = np.array([1.0, 2, 3, 1, 2, 3, 4]), np.array([False, False, False, True, True, True, True])
    got = rates(scores, defective, 2.0)
    assert (got.false_reject, got.escape) == pytest.approx((1 / 3, 0.5))


def test_published_score_is_the_mean_of_probability_and_scaled_peak() -> None:
    got = published_scores(np.array([0.2, 0.4, 1.0]), np.array([3.0, 5.0, 4.0]))
    assert got.tolist() == pytest.approx([0.1, 0.7, 0.75])
    assert published_scores(np.array([0.2, 0.4]), np.array([1.0, 1.0])).tolist() == pytest.approx([0.1, 0.2])


def test_pixel_figures_agree_with_scikit_learn_over_all_pixels() -> None:
    masks, maps = drawn(1)
    assert figures(tally(masks, maps).ranking()) == pytest.approx(by_sklearn(maps.ravel(), masks.ravel()), abs=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_pro_agrees_with_the_authors_procedure(seed: int) -> None:
    masks, maps = drawn(seed)
    # Values with 15 significant bits: what is not rounded must agree to the last digit.
    maps = (maps.view(np.uint32) & np.uint32(0xFFFFFE00)).view(np.float32)
    assert tally(masks, maps).pro() == pytest.approx(slow_pro(masks, maps), abs=1e-9)


def test_pro_of_unrounded_maps_is_near_enough() -> None:
    masks, maps = drawn(7)
    assert tally(masks, maps).pro() == pytest.approx(slow_pro(masks, maps), abs=1e-3)


def test_pro_counts_small_regions_as_much_as_large_ones() -> None:
    """A region of 16 pixels found whole, one of 4 missed: half, at whatever FPR."""
    mask = np.zeros((1, 16, 16), bool)
    mask[0, :4, :4] = mask[0, 10:12, 10:12] = True
    maps = np.zeros((1, 16, 16), np.float32)
    maps[0, :4, :4] = 1
    assert tally(mask, maps).pro() == pytest.approx(0.5)


def test_pixels_that_touch_at_a_corner_are_one_region() -> None:
    mask = np.eye(4, dtype=bool)
    places, areas = Truth(mask).regions
    assert (sorted(places.tolist()), areas) == ([0, 5, 10, 15], (4,))


def test_a_mask_is_resized_to_the_pixels_that_are_half_covered() -> None:
    defect = np.zeros((8, 8), bool)
    defect[:4, :4] = True
    defect[7, 7] = True
    assert truth(defect, 4).mask.tolist() == truth(defect, 2).mask.repeat(2, 0).repeat(2, 1).tolist()
    assert truth(defect, 2).mask.tolist() == [[True, False], [False, False]]
    assert not truth(None, 4).mask.any()


def test_values_under_and_over_all_levels_keep_their_order() -> None:
    mask = np.zeros((1, 2, 2), bool)
    mask[0, 1] = True
    assert tally(mask, np.array([[[-1, 1e-30], [1e30, 300]]], np.float32)).ranking().auroc == 1


def test_a_category_takes_seconds() -> None:
    """40 pictures of 256 px within 4 s here: the authors' way takes minutes, and this a tenth of a second."""
    masks, maps = drawn(3, pictures=40, size=256)
    begin = time.perf_counter()
    counted = tally(masks, maps)
    counted.ranking()
    counted.pro()
    assert time.perf_counter() - begin < 4
