"""Pixels of the GenICam formats that cameras send, as 8 bits grey or RGB (pylon converts its own)."""

import re
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from connectors.cameras import Pixels

_FORMAT = re.compile(r"(Mono|Bayer(?:RG|GR|GB|BG))(8|10|12|14|16)(p|Packed|)$")
_COLOURS = {"RGB8": 3, "BGR8": 3, "RGB8Packed": 3, "BGR8Packed": 3, "YUV422_8": 2, "YUV422Packed": 2, "YUV422_8_UYVY": 2}
FORMATS = "Mono8, Mono10, Mono12, Mono14, Mono16, Mono10p, Mono12p, Mono12Packed, the same as BayerRG8 ..., RGB8, BGR8, YUV422_8"
_DEMOSAIC = {
    "BayerRG": cv2.COLOR_BayerRGGB2RGB,
    "BayerGR": cv2.COLOR_BayerGRBG2RGB,
    "BayerGB": cv2.COLOR_BayerGBRG2RGB,
    "BayerBG": cv2.COLOR_BayerBGGR2RGB,
}


def channels_of(pixel_format: str) -> int | None:
    """1 for grey, 3 for colour, None for a format that cannot be converted."""
    if match := _FORMAT.match(pixel_format):
        kind, bits, packing = match.groups()
        if (packing and bits not in ("10", "12")) or (packing == "Packed" and bits != "12"):
            return None
        return 1 if kind == "Mono" else 3
    return 3 if pixel_format in _COLOURS else None


def convert(data: bytes, pixel_format: str, width: int, height: int) -> Pixels:
    """Pixels H x W (grey) or H x W x 3 (RGB). More than 8 bits lose the lowest ones, as in pylon.

    Raises ValueError when `data` is not so many pixels of that format.
    """
    raw = np.frombuffer(data, np.uint8)
    if match := _FORMAT.match(pixel_format):
        kind, bits, packing = match.groups()
        grey = _grey(raw, int(bits), packing, width * height).reshape(height, width)
        return grey if kind == "Mono" else _uint8(cv2.cvtColor(grey, _DEMOSAIC[kind]))
    channels = _COLOURS[pixel_format]
    picture = _whole(raw, width * height * channels).reshape(height, width, channels)
    match pixel_format:
        case "RGB8" | "RGB8Packed":
            return picture
        case "BGR8" | "BGR8Packed":
            return np.ascontiguousarray(picture[:, :, ::-1])
        case "YUV422_8":
            return _uint8(cv2.cvtColor(picture, cv2.COLOR_YUV2RGB_YUYV))
    return _uint8(cv2.cvtColor(picture, cv2.COLOR_YUV2RGB_UYVY))


def _grey(raw: Pixels, bits: int, packing: str, count: int) -> Pixels:
    if bits == 8:
        return _whole(raw, count)
    if not packing:
        return (_whole(raw, 2 * count).view("<u2") >> (bits - 8)).astype(np.uint8)
    if packing == "Packed":
        # GigE Vision's own: two pixels in three bytes, the middle one holds both low halves.
        return np.ascontiguousarray(_whole(raw, 3 * -(-count // 2)).reshape(-1, 3)[:, ::2]).reshape(-1)[:count]
    # PFNC's: a stream of bits, the lowest first. 10 bits: 4 pixels in 5 bytes; 12 bits: 2 in 3.
    pixels, size = (4, 5) if bits == 10 else (2, 3)
    groups = -(-count // pixels)
    padded = np.zeros(groups * size, np.uint8)
    needed = -(-count * bits // 8)
    padded[:needed] = _whole(raw, needed)
    rows = padded.reshape(groups, size).astype(np.uint16)
    columns = [
        ((rows[:, start // 8] | rows[:, start // 8 + 1] << 8) >> (start % 8) & ((1 << bits) - 1)) >> (bits - 8)
        for start in range(0, pixels * bits, bits)
    ]
    return np.stack(columns, axis=1).astype(np.uint8).reshape(-1)[:count]


def _whole(raw: Pixels, needed: int) -> Pixels:
    if len(raw) < needed:
        raise ValueError(f"{len(raw)} bytes, {needed} are needed")
    return raw[:needed]


def _uint8(picture: Any) -> NDArray[np.uint8]:
    return np.asarray(picture, np.uint8)
