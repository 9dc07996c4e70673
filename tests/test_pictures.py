"""daemon/web/pictures.py: what lies over a frame, in the right place and on one scale."""

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from config.schema import Region
from daemon.web.pictures import OPAQUE, heat_overlay, mask_outline, thumbnail
from model.errors import ModelError

FRAME = np.full((200, 400), 90, np.uint8)
REGION = Region(x=100, y=40, width=160, height=80)


def a_map(value: float = 2.0, size: int = 40) -> NDArray[np.float32]:
    """A square over rows 10 to 20 and columns 20 to 30."""
    made = np.zeros((size, size), np.float32)
    made[10:20, 20:30] = value
    return made


@pytest.mark.parametrize("frame", [FRAME, np.dstack([FRAME] * 3)], ids=["grey", "colour"])
@pytest.mark.parametrize("shrunk", [1, 2, 4])
def test_heat_lies_where_the_anomaly_is_in_the_frame(frame: NDArray[np.uint8], shrunk: int) -> None:
    heat = heat_overlay(frame.shape, a_map(), REGION, 1.0, 400 // shrunk)
    assert heat.shape == (200 // shrunk, 400 // shrunk, 4)
    assert heat.dtype == np.uint8
    # Map to region: 4 px a column, 2 px a row. So columns 180 to 220, rows 60 to 80 of the frame.
    left, right, top, bottom = (edge // shrunk for edge in (180, 220, 60, 80))
    assert np.all(heat[top:bottom, left:right, 3] >= OPAQUE * 0.9)
    outside = heat[:, :, 3].copy()
    outside[top - 2 : bottom + 2, left - 3 : right + 3] = 0  # what linear enlarging blurs
    assert not outside.any()


def test_without_a_region_the_map_covers_the_frame() -> None:
    hot = np.argwhere(heat_overlay(FRAME.shape, a_map(), None, 1.0, 400)[:, :, 3] == OPAQUE)
    np.testing.assert_allclose([hot.min(axis=0), hot.max(axis=0)], [[50, 200], [99, 299]], atol=4)


def test_heat_is_scaled_by_the_threshold_and_not_by_the_picture() -> None:
    def alpha(value: float, threshold: float) -> int:
        return int(heat_overlay(FRAME.shape, a_map(value), REGION, threshold, 400)[70, 200, 3])

    assert alpha(0.25, 1.0) == OPAQUE // 4
    assert alpha(0.25, 0.5) == OPAQUE // 2
    assert alpha(0.5, 0.5) == alpha(3.0, 0.5) == OPAQUE
    assert alpha(0.0, 0.5) == alpha(-1.0, 0.5) == 0
    more, less = (heat_overlay(FRAME.shape, a_map(value), REGION, 1.0, 400)[70, 200, :3].astype(int) for value in (2.0, 0.5))
    assert more.sum() > less.sum() + 100, "the more, the brighter: it reads without colour"
    beside = a_map(0.5)
    beside[0, 0] = 50.0
    np.testing.assert_array_equal(heat_overlay(FRAME.shape, beside, REGION, 1.0, 400)[70, 200, :3], less)


def test_what_is_not_a_number_is_no_heat_and_infinity_is_the_hottest() -> None:
    odd = a_map()
    odd[10:20, 20:30] = np.nan
    assert not heat_overlay(FRAME.shape, odd, REGION, 1.0, 400)[:, :, 3].any()
    odd[10:20, 20:30] = np.inf
    np.testing.assert_array_equal(
        heat_overlay(FRAME.shape, odd, REGION, 1.0, 400), heat_overlay(FRAME.shape, a_map(), REGION, 1.0, 400)
    )
    for threshold in (0.0, -1.0, float("nan")):
        with pytest.raises(ModelError, match="expected one over 0"):
            heat_overlay(FRAME.shape, a_map(), REGION, threshold, 400)


@pytest.mark.parametrize("at", [(0, 0), (101, 57), (255, 255)])
def test_a_single_anomalous_pixel_survives_shrinking(at: tuple[int, int]) -> None:
    frame = np.zeros((3000, 4000), np.uint8)
    region = Region(x=400, y=300, width=3200, height=2400)
    anomaly_map = np.zeros((256, 256), np.float32)
    anomaly_map[at] = 1.0
    hot = np.argwhere(heat_overlay(frame.shape, anomaly_map, region, 1.0, 100)[:, :, 3] == OPAQUE)
    row, column = (300 + at[0] * 2400 / 256) / 40, (400 + at[1] * 3200 / 256) / 40
    assert len(hot) == 1
    assert np.abs(hot[0] - (row, column)).max() <= 1

    mask = np.zeros((2400, 3200), np.uint8)
    mask[at[0] * 9, at[1] * 12] = 255
    drawn = np.argwhere(mask_outline(frame.shape, mask, region, 100)[:, :, 3])
    expected = ((300 + at[0] * 9) / 40, (400 + at[1] * 12) / 40)
    assert np.abs(drawn.mean(axis=0) - expected).max() <= 1


def test_an_outline_is_light_within_dark_around_the_mask_and_nothing_else() -> None:
    mask = np.zeros((80, 160), np.uint8)
    mask[20:60, 40:120] = 1
    drawn = mask_outline(FRAME.shape, mask, REGION, 400)
    assert drawn.shape == (200, 400, 4)
    rows, columns = np.nonzero(drawn[:, :, 3])
    np.testing.assert_allclose((rows.min(), rows.max(), columns.min(), columns.max()), (60, 99, 140, 219), atol=4)
    assert not drawn[70:90, 150:210].any(), "the defect itself stays seen"
    across = drawn[80, 134:147].astype(int)  # over the left edge: dark, light, dark
    bright = across[:, :3].sum(axis=1) * (across[:, 3] > 200)
    assert bright.max() > 400
    assert 0 < across[across[:, 3] == 255][0, :3].sum() < 100
    assert not mask_outline(FRAME.shape, np.zeros_like(mask), REGION, 400).any()


@pytest.mark.parametrize("channels", [(), (3,)], ids=["grey", "colour"])
def test_a_thumbnail_is_small_and_true(channels: tuple[int, ...]) -> None:
    frame = np.zeros((300, 600, *channels), np.uint8)
    frame[:, 300:] = (200, 100, 0) if channels else 180
    made = cv2.imdecode(np.frombuffer(thumbnail(frame, 120), np.uint8), cv2.IMREAD_UNCHANGED)
    assert made is not None
    assert made.shape == (60, 120, *channels)
    np.testing.assert_allclose(made[30, 90], (0, 100, 200) if channels else 180, atol=6)  # BGR
    assert made[30, 20].max() < 6
