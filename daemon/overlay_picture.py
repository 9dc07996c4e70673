"""One overlay: the part, the outline of its mask, and the verdict as a word.

Colour is never alone: the verdict is a word, and the outline is light within dark, so that it shows on any part and to any eye.
"""

from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from connectors.contract import ResultOut
from model.errors import ModelError

T = TypeVar("T", np.uint8, np.float32)

QUALITY = 85
DARK, LIGHT = (20, 20, 20), (255, 255, 255)
COLOURS = {"pass": (115, 158, 0), "fail": (0, 94, 213), "unknown": (0, 159, 230)}
"""BGR; Okabe and Ito's green, vermilion and orange, which those who see no red or no green can tell apart."""
OUTLINE = (66, 228, 240)
FONT = cv2.FONT_HERSHEY_SIMPLEX


def draw_overlay(result: ResultOut, pixels: NDArray[np.uint8] | None, mask: NDArray[np.uint8] | None, width: int) -> bytes:
    """A JPEG, `width` pixels wide: a banner, and the part fitted into a square. pixels: H x W, or H x W x 3, RGB, what was
    inspected; None gives an empty field. mask: H x W, nonzero = anomalous."""
    picture = _empty(width) if pixels is None else coloured(fitted(pixels, width, enlarge=True))
    if mask is not None and pixels is not None:
        height, inner = picture.shape[:2]
        outline(picture, mask, (inner, height))
    right = width - picture.shape[1]
    field = cv2.copyMakeBorder(picture, 0, 0, right // 2, right - right // 2, cv2.BORDER_CONSTANT, value=DARK)
    drawn = np.asarray(np.vstack((_banner(result, width), field)), np.uint8)
    return jpeg(drawn)


def jpeg(picture: NDArray[np.uint8]) -> bytes:
    """A JPEG of H x W or H x W x 3, BGR. Raises ModelError when it cannot be encoded."""
    encoded, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    if not encoded:
        raise ModelError(f"overlay: cannot encode {picture.shape} as JPEG")
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


def coloured(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """BGR, of grey or RGB."""
    picture = np.empty((*pixels.shape[:2], 3), np.uint8)
    picture[:] = pixels[:, :, None] if pixels.ndim == 2 else pixels[:, :, ::-1]
    return picture


def outline(
    picture: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    size: tuple[int, int],
    at: tuple[int, int] = (0, 0),
    colours: tuple[tuple[int, ...], tuple[int, ...]] = (DARK, OUTLINE),
) -> None:
    """Draw a mask's outline into a picture of any channels. mask: H x W, nonzero = anomalous, stretched to `size` (width,
    height) and put `at` (x, y), in the picture's pixels; colours: the dark and the light one, in its channels."""
    shown = stretched((mask != 0).view(np.uint8) * np.uint8(255), size)
    contours, _ = cv2.findContours((shown > 0).view(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE, offset=at)
    # Around the defect, not on it.
    line = max(1, picture.shape[1] // 400)
    for colour, thickness in zip(colours, (5 * line, 2 * line), strict=True):
        cv2.drawContours(picture, contours, -1, colour, thickness, cv2.LINE_AA)


def stretched(values: NDArray[T], size: tuple[int, int]) -> NDArray[T]:
    """H x W as `size` (width, height). Where it shrinks the largest value stays, so that a single pixel is still seen."""
    width, height = size
    for axis, to in enumerate((height, width)):
        if to < values.shape[axis]:
            values = np.maximum.reduceat(values, np.arange(to) * values.shape[axis] // to, axis=axis)
    made = np.empty((height, width), values.dtype)
    cv2.resize(np.ascontiguousarray(values), size, dst=made, interpolation=cv2.INTER_LINEAR)
    return made


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
