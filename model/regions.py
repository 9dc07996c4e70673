"""Where a frame is anomalous: an anomaly map to a mask and its connected parts, in pixels of the region of interest."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from model.errors import ModelError

MAX_REGIONS = 64
MAX_POINTS = 32
"""Together they bound the message a frame gives, whatever is on it."""


@dataclass(frozen=True)
class Region:
    """One connected part (8 neighbours) of the mask.

    x, y, width, height: its box in px of the region of interest. area_px: its pixels. peak: the largest value in it.
    polygon: its outer contour, simplified, at most MAX_POINTS points (x, y); 1 or 2 points when it is that thin.
    """

    x: int
    y: int
    width: int
    height: int
    area_px: int
    peak: float
    polygon: tuple[tuple[int, int], ...]


def find_regions(
    anomaly_map: NDArray[np.float32], width: int, height: int, pixel_threshold: float
) -> tuple[NDArray[np.uint8], tuple[Region, ...]]:
    """The mask (height x width, 0 or 255) and its regions, largest peak first, at most MAX_REGIONS.

    anomaly_map: S x S, of a region of interest of width x height px. The mask is not empty exactly when the map's
    largest value is over the threshold, and the first region's peak is that value. Raises ModelError for a map or
    threshold that is not finite.
    """
    peak = float(anomaly_map.max())
    if not np.isfinite(peak) or not np.isfinite(pixel_threshold):
        raise ModelError(
            f"regions: expected a finite anomaly map and threshold, got a largest value of {peak} and a threshold of "
            f"{pixel_threshold}. This frame cannot be judged"
        )
    if peak <= pixel_threshold:
        return np.zeros((height, width), np.uint8), ()
    values = np.empty((height, width), np.float32)
    cv2.resize(anomaly_map, (width, height), dst=values, interpolation=cv2.INTER_LINEAR)
    # Resizing samples between the map's pixels, and fewer of them when it shrinks: the peak, on which the verdict
    # rests, is put back in its place; and rounding must not make another one.
    rows, columns = anomaly_map.shape
    at_row, at_column = divmod(int(anomaly_map.argmax()), columns)
    place = (int((at_row + 0.5) * height / rows), int((at_column + 0.5) * width / columns))
    np.minimum(values, np.float32(peak), out=values)
    values[place] = peak
    mask = (values > _float32_at_most(pixel_threshold)).view(np.uint8) * np.uint8(255)
    return mask, _regions(mask, values)


def _float32_at_most(number: float) -> np.float32:
    # The score is compared with the threshold in float64: a pixel must be over it in the same cases.
    near = np.float32(number)
    return near if float(near) <= number else np.nextafter(near, np.float32(-np.inf))


def _regions(mask: NDArray[np.uint8], values: NDArray[np.float32]) -> tuple[Region, ...]:
    count, labels, boxes, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    inside = np.flatnonzero(mask)
    peaks = np.full(count, -np.inf, np.float32)
    np.maximum.at(peaks, labels.reshape(-1)[inside].astype(np.intp), values.reshape(-1)[inside])
    # Label 0 is the background; a stable order among equal peaks.
    largest_first = np.argsort(-peaks[1:], kind="stable")[:MAX_REGIONS] + 1
    regions = []
    for label in largest_first:
        x, y, width, height, area = (int(number) for number in boxes[label])
        part = (labels[y : y + height, x : x + width] == label).view(np.uint8)
        regions.append(Region(x, y, width, height, area, float(peaks[label]), _polygon(part, x, y)))
    return tuple(regions)


def _polygon(part: NDArray[np.uint8], x: int, y: int) -> tuple[tuple[int, int], ...]:
    contours, _ = cv2.findContours(part, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE, offset=(x, y))
    epsilon = 1.0
    while len(points := cv2.approxPolyDP(contours[0], epsilon, closed=True)) > MAX_POINTS:
        epsilon *= 2
    return tuple((int(column), int(row)) for column, row in points.reshape(-1, 2))


def run_lengths(mask: NDArray[np.uint8]) -> tuple[int, ...]:
    """A mask (H x W, nonzero = anomalous) as COCO's uncompressed run lengths: pixels column by column, runs of background and
    of mask in turn, background first (0 where the first pixel is mask). Their sum is H * W."""
    pixels = np.ravel(mask, order="F") != 0
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    runs = np.diff(np.concatenate(([0], changes, [pixels.size])))
    return ((0,) if pixels[0] else ()) + tuple(runs.tolist())


def encode_mask_png(mask: NDArray[np.uint8]) -> bytes:
    """A mask (H x W, nonzero = anomalous) as a PNG of 1 bit per pixel."""
    encoded, data = cv2.imencode(".png", mask, [cv2.IMWRITE_PNG_BILEVEL, 1])
    if not encoded:
        raise ModelError(f"mask: cannot encode {mask.shape} as PNG")
    return data.tobytes()
