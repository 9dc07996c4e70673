import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from model.errors import ModelError
from model.regions import MAX_POINTS, MAX_REGIONS, encode_mask_png, find_regions


def flat() -> NDArray[np.float32]:
    return np.full((64, 64), 0.1, np.float32)


def test_a_map_at_or_under_the_threshold_has_an_empty_mask() -> None:
    anomaly = flat()
    anomaly[3, 3] = 0.5
    for size in ((64, 64), (300, 200), (10, 20)):
        mask, regions = find_regions(anomaly, *size, pixel_threshold=float(anomaly.max()))
        assert mask.shape == size[::-1]
        assert not mask.any()
        assert regions == ()


@pytest.mark.parametrize("size", [(64, 64), (300, 200), (7, 9), (1, 1), (65, 63)])
@pytest.mark.parametrize("place", [(0, 0), (63, 63), (31, 40)])
def test_one_pixel_over_the_threshold_is_never_lost(size: tuple[int, int], place: tuple[int, int]) -> None:
    anomaly = flat()
    anomaly[place] = 0.5
    score = float(anomaly.max())
    mask, regions = find_regions(anomaly, *size, pixel_threshold=float(np.nextafter(score, 0)))
    (region,) = regions
    assert region.peak == score
    assert mask[int((place[0] + 0.5) * size[1] / 64), int((place[1] + 0.5) * size[0] / 64)]
    assert int((mask > 0).sum()) == region.area_px


def test_mask_is_empty_exactly_when_the_score_is_not_over_the_threshold() -> None:
    random = np.random.default_rng(0)
    for _ in range(300):
        anomaly = random.random((16, 16), dtype=np.float32)
        # Thresholds that float32 cannot hold, on both sides of the score.
        threshold = float(anomaly.max()) + random.choice([-1e-9, 0.0, 1e-9, -0.01, 0.01])
        width, height = (int(side) for side in random.integers(1, 40, 2))
        mask, regions = find_regions(anomaly, width, height, threshold)
        assert mask.any() == bool(regions) == (float(anomaly.max()) > threshold)


def test_regions_are_boxed_in_pixels_of_the_region_of_interest_largest_peak_first() -> None:
    anomaly = flat()
    anomaly[8:16, 16:32] = 0.5
    anomaly[40:50, 40:60] = 0.9
    mask, (first, second) = find_regions(anomaly, 128, 64, 0.35)
    assert (first.peak, second.peak) == (float(np.float32(0.9)), 0.5)
    assert (second.x, second.y, second.width, second.height) == (32, 8, 32, 8)
    assert second.area_px == 256
    assert set(second.polygon) == {(32, 8), (63, 8), (63, 15), (32, 15)}
    assert (first.x, first.y, first.width, first.height) == (80, 40, 40, 10)
    assert set(np.unique(mask)) == {0, 255}
    assert int((mask > 0).sum()) == first.area_px + second.area_px


def test_pixels_that_touch_at_a_corner_are_one_region() -> None:
    anomaly = flat()
    anomaly[10, 10] = anomaly[11, 11] = 0.5
    _, regions = find_regions(anomaly, 64, 64, 0.3)
    assert [region.area_px for region in regions] == [2]


def test_regions_and_points_are_bounded_and_the_worst_are_kept() -> None:
    anomaly = flat()
    anomaly[::2, ::2] = np.linspace(0.5, 0.9, 32 * 32, dtype=np.float32).reshape(32, 32)
    mask, regions = find_regions(anomaly, 64, 64, 0.3)
    assert len(regions) == MAX_REGIONS
    assert int((mask > 0).sum()) == 1024
    peaks = [region.peak for region in regions]
    assert peaks == sorted(anomaly[::2, ::2].ravel().tolist(), reverse=True)[:MAX_REGIONS]
    comb = flat()
    comb[:, ::4] = comb[30:34] = 0.5
    _, (one,) = find_regions(comb, 640, 640, 0.3)
    assert 3 <= len(one.polygon) <= MAX_POINTS


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_map_or_threshold_that_is_not_finite_is_refused_not_passed(broken: float) -> None:
    anomaly = flat()
    with pytest.raises(ModelError, match="finite"):
        find_regions(anomaly, 64, 64, broken)
    anomaly[5, 5] = broken
    with pytest.raises(ModelError, match="finite"):
        find_regions(anomaly, 64, 64, 0.3)


def test_mask_png_is_one_bit_and_comes_back_equal() -> None:
    anomaly = flat()
    anomaly[5:9, 7:30] = 0.5
    mask, _ = find_regions(anomaly, 61, 43, 0.3)
    data = encode_mask_png(mask)
    # Bit depth and colour type of IHDR.
    assert data[24:26] == b"\x01\x00"
    back = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert back is not None
    np.testing.assert_array_equal(back, mask)
