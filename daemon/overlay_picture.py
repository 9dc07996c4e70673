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


def draw_overlay(result: ResultOut, pixels: NDArray[np.uint8] | None, mask: NDArray[np.uint8] | None, most_width: int) -> bytes:
    """A JPEG, at most `most_width` pixels wide. pixels: H x W, or H x W x 3, RGB, what was inspected; None gives an empty field.
    mask: H x W, nonzero = anomalous."""
    picture = _empty(most_width) if pixels is None else _shrunk(pixels, most_width)
    if mask is not None and pixels is not None:
        _outline(picture, mask)
    drawn = np.vstack((_banner(result, picture.shape[1]), picture))
    encoded, data = cv2.imencode(".jpg", drawn, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    if not encoded:
        raise ModelError(f"overlay: cannot encode {drawn.shape} as JPEG")
    return data.tobytes()


def _empty(width: int) -> NDArray[np.uint8]:
    picture = np.full((width * 3 // 4, width, 3), 96, np.uint8)
    _write(picture, "no picture", (width // 2, width * 3 // 8), width / 640, LIGHT, centred=True)
    return picture


def _shrunk(pixels: NDArray[np.uint8], most_width: int) -> NDArray[np.uint8]:
    """BGR."""
    height, width = pixels.shape[:2]
    if width > most_width:
        size = (most_width, max(1, round(height * most_width / width)))
        small = np.empty((size[1], size[0], *pixels.shape[2:]), np.uint8)
        cv2.resize(pixels, size, dst=small, interpolation=cv2.INTER_AREA)
        pixels = small
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
    """The verdict's word, the station and sequence, and what it rests on."""
    scale = width / 640
    banner = np.empty((max(16, round(48 * scale)), width, 3), np.uint8)
    banner[:] = COLOURS[result.verdict]
    if result.verdict == "unknown":
        why = str(result.reason)
    else:
        relation = ">" if result.verdict == "fail" else "<="
        why = f"{result.score:.3f} {relation} {result.threshold:.3f}"
    middle = banner.shape[0]
    _write(banner, result.verdict.upper(), (round(12 * scale), round(middle * 0.72)), 1.1 * scale, DARK, bold=True)
    moment = result.created_at.strftime("%H:%M:%S UTC")
    for line, text in enumerate((f"{result.station} #{result.sequence}  {moment}", why)):
        _write(banner, text, (round(220 * scale), round(middle * (0.42 + 0.42 * line))), 0.55 * scale, DARK)
    return banner


def _write(
    picture: NDArray[np.uint8],
    text: str,
    at: tuple[int, int],
    scale: float,
    colour: tuple[int, int, int],
    *,
    bold: bool = False,
    centred: bool = False,
) -> None:
    thickness = max(1, round((3 if bold else 1.4) * scale))
    x, y = at
    if centred:
        (width, _), _ = cv2.getTextSize(text, FONT, scale, thickness)
        x -= width // 2
    cv2.putText(picture, text, (x, y), FONT, scale, colour, thickness, cv2.LINE_AA)
