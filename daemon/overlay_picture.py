"""One overlay: the part, the outline of its mask, and the verdict as a word.

Colour is never alone: the verdict is a word, and the outline is light within dark, so that it shows on any part and to any eye.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from connectors.contract import ResultOut
from model.errors import ModelError

QUALITY = 85
DARK, LIGHT = (20, 20, 20), (255, 255, 255)
COLOURS = {"pass": (115, 158, 0), "fail": (0, 94, 213), "unknown": (0, 159, 230)}
"""BGR; Okabe and Ito's green, vermilion and orange, which those who see no red or no green can tell apart."""
OUTLINE = (66, 228, 240)
FONT = cv2.FONT_HERSHEY_SIMPLEX


def draw_overlay(result: ResultOut, pixels: NDArray[np.uint8] | None, mask: NDArray[np.uint8] | None, width: int) -> bytes:
    """A JPEG, `width` pixels wide: a banner, and the part fitted into a square. pixels: H x W, or H x W x 3, RGB, what was
    inspected; None gives an empty field. mask: H x W, nonzero = anomalous."""
    picture = _empty(width) if pixels is None else _coloured(fitted(pixels, width, enlarge=True))
    if mask is not None and pixels is not None:
        _outline(picture, mask)
    right = width - picture.shape[1]
    field = cv2.copyMakeBorder(picture, 0, 0, right // 2, right - right // 2, cv2.BORDER_CONSTANT, value=DARK)
    drawn = np.vstack((_banner(result, width), field))
    encoded, data = cv2.imencode(".jpg", drawn, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    if not encoded:
        raise ModelError(f"overlay: cannot encode {drawn.shape} as JPEG")
    return data.tobytes()


def _empty(width: int) -> NDArray[np.uint8]:
    picture = np.full((width * 3 // 4, width, 3), 96, np.uint8)
    text, scale = "no picture", width / 640
    (text_width, _), _ = cv2.getTextSize(text, FONT, scale, 1)
    _write(picture, text, ((width - text_width) // 2, width * 3 // 8), scale, LIGHT)
    return picture


def fitted(pixels: NDArray[np.uint8], most: int, *, enlarge: bool = False) -> NDArray[np.uint8]:
    """A copy of H x W or H x W x 3 that fits into most x most pixels; a smaller one stays as it is, or is enlarged."""
    height, width = pixels.shape[:2]
    scale = most / max(width, height)
    if scale >= 1 and not enlarge:
        return pixels.copy()
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    made = np.empty((size[1], size[0], *pixels.shape[2:]), np.uint8)
    cv2.resize(pixels, size, dst=made, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    return made


def fitted_mask(mask: NDArray[np.uint8], most: int) -> NDArray[np.uint8]:
    """The same of a mask; a single nonzero pixel is not lost."""
    return fitted((mask != 0).view(np.uint8) * np.uint8(255), most)


def _coloured(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """BGR, of grey or RGB."""
    picture = np.empty((*pixels.shape[:2], 3), np.uint8)
    picture[:] = pixels[:, :, None] if pixels.ndim == 2 else pixels[:, :, ::-1]
    return picture


def _outline(picture: NDArray[np.uint8], mask: NDArray[np.uint8]) -> None:
    height, width = picture.shape[:2]
    small = np.empty((height, width), np.uint8)
    # By area, so that a single pixel of the mask is still seen.
    cv2.resize((mask != 0).view(np.uint8) * np.uint8(255), (width, height), dst=small, interpolation=cv2.INTER_AREA)
    contours, _ = cv2.findContours((small > 0).view(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    # Around the defect, not on it.
    line = max(1, width // 400)
    cv2.drawContours(picture, contours, -1, DARK, 5 * line, cv2.LINE_AA)
    cv2.drawContours(picture, contours, -1, OUTLINE, 2 * line, cv2.LINE_AA)


def _banner(result: ResultOut, width: int) -> NDArray[np.uint8]:
    """The verdict's word, which part it is, and what the verdict rests on."""
    scale = width / 640
    if result.verdict == "unknown":
        why = str(result.reason)
    else:
        why = f"{result.score:.3f} {'>' if result.verdict == 'fail' else '<='} {result.threshold:.3f}"
    which = f"#{result.sequence}  {result.created_at:%H:%M:%S} UTC  {result.station}"
    banner = np.empty((round(60 * scale), width, 3), np.uint8)
    banner[:] = COLOURS[result.verdict]
    _write(banner, result.verdict.upper(), (round(12 * scale), round(41 * scale)), 1.15 * scale, DARK, weight=3)
    _write(banner, which, (round(215 * scale), round(24 * scale)), 0.7 * scale, DARK)
    _write(banner, why, (round(215 * scale), round(50 * scale)), 0.7 * scale, DARK)
    return banner


def _write(
    picture: NDArray[np.uint8], text: str, at: tuple[int, int], scale: float, colour: tuple[int, int, int], weight: float = 1.4
) -> None:
    cv2.putText(picture, text, at, FONT, scale, colour, max(1, round(weight * scale)), cv2.LINE_AA)
