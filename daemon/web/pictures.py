"""What the page draws of a frame: the heat map and the outline that lie over it, and its thumbnail.

An overlay has the frame's own proportions, so that a page lays one over the other at any size. Heat is scaled by the threshold
alone, never by the picture: the same colour is the same anomaly on every part.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from config.schema import Region
from daemon.overlay_picture import DARK, OUTLINE, coloured, fitted, jpeg, outline, stretched
from model.errors import ModelError

OPAQUE = 200
"""Alpha of heat from the threshold up: the part still shows through."""
HOTTEST = 2.0
"""So many thresholds have the map's last colour; the threshold itself has the middle one."""
# Blue to yellow, ever brighter: read the same by those who see no red or no green, and in grey.
_CIVIDIS = cv2.applyColorMap(np.arange(256, dtype=np.uint8).reshape(256, 1), cv2.COLORMAP_CIVIDIS)[:, 0, ::-1].copy()
Pixels = NDArray[np.uint8]


def heat_overlay(
    frame: tuple[int, ...], anomaly_map: NDArray[np.float32], region: Region | None, threshold: float, most: int
) -> Pixels:
    """RGBA of the frame's proportions, at most `most` x `most`: anomaly as colour and alpha, transparent where it is 0 or less.

    frame: its height and width; anomaly_map: S x S, of the region (None: of the whole frame), what is not a number counts as
    none; threshold: of one pixel, as the mask has it. Raises ModelError for a threshold that is not over 0.
    """
    if not (np.isfinite(threshold) and threshold > 0):
        raise ModelError(f"heat map: a threshold of {threshold}, expected one over 0")
    canvas, (left, top), size = _place(frame, region, most)
    known = np.nan_to_num(anomaly_map.astype(np.float32), nan=0.0, posinf=HOTTEST * threshold, neginf=0.0)
    levels = stretched((known / np.float32(threshold)).clip(0, HOTTEST).astype(np.float32), size)
    heat = np.empty((*levels.shape, 4), np.uint8)
    heat[:, :, :3] = _CIVIDIS[np.round(levels * (255 / HOTTEST)).astype(np.uint8)]
    heat[:, :, 3] = np.round(levels.clip(0, 1) * OPAQUE)
    into = canvas[top : top + size[1], left : left + size[0]]
    into[:] = heat[: into.shape[0], : into.shape[1]]
    return canvas


def mask_outline(frame: tuple[int, ...], mask: Pixels, region: Region | None, most: int) -> Pixels:
    """RGBA as `heat_overlay` gives it, of the mask's outline alone. mask: H x W of the region, nonzero = anomalous."""
    canvas, at, size = _place(frame, region, most)
    outline(canvas, mask, size, at, ((*DARK[::-1], 255), (*OUTLINE[::-1], 255)))
    return canvas


def thumbnail(pixels: Pixels, most: int) -> bytes:
    """A JPEG of H x W or H x W x 3, RGB, at most `most` x `most`. Raises ModelError when it cannot be encoded."""
    small = fitted(pixels, most)
    return jpeg(small if small.ndim == 2 else coloured(small))


def _place(frame: tuple[int, ...], region: Region | None, most: int) -> tuple[Pixels, tuple[int, int], tuple[int, int]]:
    """An empty overlay of the frame, and the region's place (x, y) and size (width, height) in it."""
    height, width = frame[:2]
    scale = min(1.0, most / max(width, height))
    canvas = np.zeros((max(1, round(height * scale)), max(1, round(width * scale)), 4), np.uint8)
    if region is None:
        return canvas, (0, 0), (canvas.shape[1], canvas.shape[0])
    left, top = round(region.x * scale), round(region.y * scale)
    right, bottom = round((region.x + region.width) * scale), round((region.y + region.height) * scale)
    return canvas, (left, top), (max(1, right - left), max(1, bottom - top))
