"""What the model saw of a part, as pictures that lie over the part's."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from config.schema import Region
from connectors.contract import ResultOut
from daemon.web.pictures import heat_overlay, mask_outline
from model.calibration import PIXEL_SHARE
from model.regions import find_regions


@dataclass(frozen=True, eq=False)
class Layers:
    """frame: its height and width. anomaly_map: S x S, of the region of interest (None: of the whole frame)."""

    frame: tuple[int, ...]
    anomaly_map: NDArray[np.float32]
    region: Region | None

    def heat(self, result: ResultOut, most: int) -> bytes | None:
        """The anomaly map as a PNG, at most `most` x `most`; None without a threshold to scale it by."""
        threshold = _pixel_threshold(result)
        return _png(heat_overlay(self.frame, self.anomaly_map, self.region, threshold, most)) if threshold else None

    def mask(self, result: ResultOut, most: int) -> bytes | None:
        """The mask's outline as a PNG, at most `most` x `most`; None where there is none, as only a fail has one."""
        if result.verdict != "fail" or not (threshold := _pixel_threshold(result)):
            return None
        height, width = (self.region.height, self.region.width) if self.region else self.frame[:2]
        mask, _ = find_regions(self.anomaly_map, width, height, threshold)
        return _png(mask_outline(self.frame, mask, self.region, most))


def _pixel_threshold(result: ResultOut) -> float:
    """0 where nothing judged. Where words alone do, a pixel counts from the threshold itself."""
    return (PIXEL_SHARE if result.bank else 1.0) * (result.threshold or 0.0)


def _png(overlay: NDArray[np.uint8]) -> bytes:
    _, data = cv2.imencode(".png", cv2.cvtColor(overlay, cv2.COLOR_RGBA2BGRA), [cv2.IMWRITE_PNG_COMPRESSION, 1])
    return data.tobytes()
